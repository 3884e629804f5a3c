"""How far a Linux kernel has booted, from its `system_state`, whose numbers moved twice.

SYSTEM_SCHEDULING came in Linux 4.13 and SYSTEM_FREEING_INITMEM in 5.16 (enum system_states in include/linux/kernel.h;
commits 69a78ff226fe and d2635f2012a4), and distributions took the latter into older kernels, so a version alone can't
settle what the value 2 means between 5.10 and 5.15. A kernel stays in SYSTEM_FREEING_INITMEM for milliseconds, so such
a value is UNSETTLED: whoever reads it again a second later, and finds it again, may take it for RUNNING.
"""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["STATE_BYTES", "BootState", "boot_state", "kernel_version"]

STATE_BYTES = 4
"""Size of an enum in the kernel's ABI."""

LAST_STATE = 7
"""SYSTEM_SUSPEND with every state that ever came before it: a larger value is no state."""

VERSION = re.compile(r"Linux version (\d{1,3})\.(\d{1,3})\b")

# From this version on, the value of SYSTEM_RUNNING; the row that isn't certain is the one distributions changed.
RUNNING_SINCE: tuple[tuple[tuple[int, int], int, bool], ...] = (
    ((5, 16), 3, True),
    ((5, 10), 2, False),
    ((4, 13), 2, True),
    ((0, 0), 1, True),
)


class BootState(Enum):
    """What `system_state` says. What comes after running (halt, restart, suspend) counts as running."""

    BOOTING = "booting"
    UNSETTLED = "about to run, or running"
    RUNNING = "running"
    UNKNOWN = "unknown"


def kernel_version(banner: str | None) -> tuple[int, int] | None:
    """The first two numbers of the version in a kernel's banner, or None without a banner that has them."""
    found = VERSION.match(banner or "")
    return (int(found[1]), int(found[2])) if found else None


def boot_state(value: int | None, banner: str | None) -> BootState:
    """What the value of `system_state` means for the kernel of this banner; None is a value that couldn't be read."""
    if value is None or value > LAST_STATE:
        return BootState.UNKNOWN
    version = kernel_version(banner)
    if version is None:
        return (BootState.BOOTING, BootState.UNSETTLED, BootState.UNSETTLED)[value] if value < 3 else BootState.RUNNING
    running, certain = next((running, certain) for since, running, certain in RUNNING_SINCE if version >= since)
    if value == running and not certain:
        return BootState.UNSETTLED
    return BootState.RUNNING if value >= running else BootState.BOOTING
