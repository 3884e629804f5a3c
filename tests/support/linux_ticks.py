"""How time passes for a Linux guest that runs alone."""

from __future__ import annotations

from policyc.emulator.linux.machine import LinuxMachine

__all__ = ["let_run"]


def let_run(machine: LinuxMachine, ticks: int) -> None:
    """Ticks, each with all the work that it brings, or as much as a busy guest gets done in that time."""
    for _ in range(ticks):
        machine.tick()
        end = machine.now + machine.tick_ns
        while not machine.idle and machine.now < end:
            machine.run()
