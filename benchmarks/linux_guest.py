"""How fast the emulator runs a real Linux kernel, and what it costs to have its text and rodata guarded.

Two machines are continued from one snapshot and let run the same ticks with the same busy shell, in turn and several
rounds each: one alone, one with every frame of the kernel's text and rodata restricted as a tool restricts them. An
access that the rights forbid would end the program: a kernel at work makes none. Both run the same instructions, so
what counts is the ratio of their times within a round; the rate against the processor's time moves with the machine.
Start-up is from the folder to the first instruction, by the clock on the wall. The snapshot is what
`policyc guest build-linux -o .guests/linux` makes.

    python benchmarks/linux_guest.py [--quick | --least] [DIR]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from benchmarks.spread import spread
from policyc.addresses import PAGE_SIZE, gfn_of
from policyc.emulator.linux.machine import TICK_NS, LinuxMachine
from policyc.emulator.linux.snapshot import Snapshot, load_snapshot
from policyc.emulator.vcpu import Vcpu
from policyc.emulator.walk import FETCH, READ
from policyc.kvmi import EventData, EventKind
from tests.support.linux_ticks import let_run

SECTIONS = (("_text", "_etext"), ("__start_rodata", "__end_rodata"))
"""First symbol and last symbol; rodata stays executable, since the vDSO lies in it."""

SETTLED = 300
"""Ticks before a measurement: until then the guest is in the pause that its start script ends with."""

AMOUNTS = {"full": (2000, 5), "quick": (500, 3), "least": (5, 1)}
"""Ticks of a round, and rounds."""


class NoEvents:
    """A tool that nothing is reported to."""

    steps_by_itself = True
    fetches_twice = False

    def report(self, vcpu: Vcpu, kind: EventKind, data: EventData | None) -> None:
        raise SystemExit(f"the guest made an access that its kernel never makes: {data}")

    def created(self, vcpu: Vcpu) -> None:
        """The one vCPU that the snapshot has may run."""

    def crash(self, vcpu: Vcpu) -> None:
        raise SystemExit("nobody answers CRASH")


def start_seconds(folder: Path) -> float:
    """Seconds from a snapshot in a folder to a machine that has run its first instruction."""
    begin = time.perf_counter()
    machine = LinuxMachine(load_snapshot(folder))
    machine.run(1)
    elapsed = time.perf_counter() - begin
    if machine.failure is not None or not machine.instructions:
        raise SystemExit(f"the guest doesn't run: {machine.failure or 'it executes nothing'}")
    return elapsed


def busy_machine(snapshot: Snapshot, *, guarded: bool) -> tuple[LinuxMachine, int]:
    """A machine whose shell works, and how many of its frames are restricted."""
    machine = LinuxMachine(snapshot)
    if guarded:
        machine.attach(NoEvents())
        machine.vcpus[0].hooks.events.add(EventKind.PF)
        machine.vcpus[0].update_enforcement()
        for first, last in SECTIONS:
            pages = range(machine.symbol(first), machine.symbol(last), PAGE_SIZE)
            machine.memory.restrict([(gfn_of(machine.gpa(page)), READ | FETCH) for page in pages])
    let_run(machine, SETTLED)
    machine.type_line("workload &")
    return machine, len(machine.memory.rights)


def seconds(machine: LinuxMachine, ticks: int) -> float:
    """How many seconds of the processor so many ticks take: others on it don't count."""
    begin = time.process_time()
    let_run(machine, ticks)
    elapsed = time.process_time() - begin
    if machine.failure is not None or machine.panicked is not None or machine.taint:
        raise SystemExit(f"the guest is no longer well: {machine.failure or 'its kernel says so'}")
    return elapsed


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("folder", nargs="?", default=".guests/linux", help="the snapshot")
    arguments = parser.parse_args()
    ticks, rounds = AMOUNTS[arguments.amount]
    folder = Path(arguments.folder)
    started = [start_seconds(folder) for _ in range(rounds)]
    print(f"start: {min(started):.2f} s from the snapshot to the first instruction, best of {rounds}", flush=True)
    snapshot = load_snapshot(folder)
    guarded_vs_alone, processor_time = [], []
    for number in range(rounds):
        alone, _ = busy_machine(snapshot, guarded=False)
        guarded, frames = busy_machine(snapshot, guarded=True)
        before = alone.instructions
        free = seconds(alone, ticks)
        watched = seconds(guarded, ticks)
        processor_time.append(ticks * TICK_NS / 1e9 / free)
        guarded_vs_alone.append(watched / free)
        print(
            f"round {number + 1}: alone {free:6.2f} s for {ticks * TICK_NS / 1e9:g} s of the guest's time"
            f" ({(alone.instructions - before) / free / 1e6:.0f} M instructions/s), {frames} frames guarded:"
            f" {watched:6.2f} s"
        )
    columns = {"guarded_vs_alone": guarded_vs_alone, "guest_time_vs_processor_time": processor_time}
    print(json.dumps({name: spread(values) for name, values in columns.items()}))


if __name__ == "__main__":
    main()
