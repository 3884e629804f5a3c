"""Which machine the options name, and what it can be asked for."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING

from policyc.emulator.linux import attacks as linux_attacks
from policyc.emulator.routines import ROUTINES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from policyc.emulator.linux.snapshot import Snapshot
    from policyc.emulator.machine import Machine
    from policyc.emulator.options import GuestOptions
    from policyc.emulator.routines import Routine

__all__ = ["new_machine", "routines_of"]

_WORKLOAD = "workload &"
_NANOSECONDS = 1_000_000_000


def routines_of(options: GuestOptions) -> Mapping[str, Routine]:
    """What the guest can be asked for; needs no engine."""
    return ROUTINES if options.snapshot is None else linux_attacks.ROUTINES


def new_machine(options: GuestOptions) -> Machine:
    """The machine, booted unless it is to begin at power-on.

    Raises:
        SnapshotError: there is no snapshot in the folder that was named.
        ValueError: an option can't be had.
    """
    return _small(options) if options.snapshot is None else _linux(options.snapshot, options)


def _small(options: GuestOptions) -> Machine:
    from policyc.emulator.image import SLIDE_ALIGNMENT, SLIDE_LIMIT
    from policyc.emulator.small_machine import SmallMachine

    slide = options.slide
    if slide is None:
        slide = random.SystemRandom().randrange(0, SLIDE_LIMIT + 1, SLIDE_ALIGNMENT)
    create = SmallMachine if options.boot else SmallMachine.boot
    return create(
        slide=slide,
        ram=options.ram_mib << 20,
        cpu=options.cpu,
        vcpus=options.vcpus,
        online=options.online,
        seed=options.seed,
        kpti=options.kpti,
    )


def _linux(folder: Path, options: GuestOptions) -> Machine:
    from policyc.emulator.linux.machine import LinuxMachine

    machine = LinuxMachine(_snapshot(folder), tick_ns=int(options.tick * _NANOSECONDS))
    if options.workload:
        machine.type_line(_WORKLOAD)
    return machine


@lru_cache(maxsize=1)
def _snapshot(folder: Path) -> Snapshot:
    """Kept for resets: reading and checking it takes longer than all the rest."""
    from policyc.emulator.linux.snapshot import load_snapshot

    return load_snapshot(folder)
