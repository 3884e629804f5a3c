"""Defects of deployed kernels and VMMs, each behind a name: without it the emulator does what was intended."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["QUIRKS", "Quirk"]


class Quirk(Enum):
    """A defect, by the name that the command line has for it."""

    V7_GFN_BIT1 = "v7-gfn-bit1"
    AMD_MSR = "amd-msr"
    CRASH_IGNORED = "crash-ignored"
    HOOK_BUSY = "hook-busy"
    FETCHES_TWICE = "fetches-twice"


QUIRKS: Final[Mapping[Quirk, str]] = {
    Quirk.V7_GFN_BIT1: "writes to write-protected frames whose number has bit 1 set pass without an event",
    Quirk.AMD_MSR: "no MSR event comes on AMD processors, as in the v12 series, which inverts the intercept bit there",
    Quirk.CRASH_IGNORED: "the VMM goes on running a vCPU whose event was answered CRASH",
    Quirk.HOOK_BUSY: "after a tool has left, no other is let in while a vCPU hasn't been started (EEXIST)",
    Quirk.FETCHES_TWICE: "an execute violation that is answered CONTINUE comes twice, as on running kernels",
}
"""What each does; in all of them every reply says success."""
