"""Where the write test looks: kernel data in which counters run, and never code, user memory, page tables or stacks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, Gva, gfn_of
from policyc.guest.linux_kernel import VcpuRegisters
from policyc.kvmi import ErrorCode, ReadPhysical, ReadPhysicalReply, Refused
from policyc.runtime.doctor_candidates import MAX_SAMPLED, frames_of_kernel
from policyc.runtime.procedure import Commands, Procedure, Sleep
from tests.support.guest_memory import NX, PRESENT, USER, WRITABLE, GuestMemory

BASE = 0xFFFF_FFFF_8100_0000
DATA = PRESENT | WRITABLE | NX
END = 64 << 20
COUNTER = 0x48


class Machine:
    """Memory with a kernel's page tables; what runs in it runs whenever somebody waits."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.root = self.memory.new_page(2)
        self.running: list[Callable[[], None]] = []
        self.reads = 0

    def page(self, number: int, flags: int = DATA) -> Gpa:
        """The frame of a fresh page, that many pages from the start of the image."""
        gpa = self.memory.new_page()
        self.memory.map(self.root, BASE + number * PAGE_SIZE, gpa, flags=flags)
        return gpa

    def counter(self, gpa: Gpa, step: int = 1) -> Gfn:
        """Let a counter run there."""
        self.memory.set_entry(gpa + COUNTER, 1002)

        def count() -> None:
            self.memory.set_entry(gpa + COUNTER, self.memory.entry(gpa + COUNTER) + step)

        self.running.append(count)
        return gfn_of(gpa)

    def candidates(self, cr3: int | None = None) -> list[Gfn]:
        """What the search finds."""
        registers = VcpuRegisters(0x8000_0001, cr3 or self.root, 0x20, 0xD01, Gva(0), 0, BASE + 0x80)
        return self.drive(frames_of_kernel(registers, END))

    def drive(self, procedure: Procedure[list[Gfn]]) -> list[Gfn]:
        answer: tuple[ReadPhysicalReply | Refused, ...] | None = None
        while True:
            try:
                wait = procedure.send(answer)
            except StopIteration as end:
                found: list[Gfn] = end.value
                return found
            answer = None
            match wait:
                case Commands(commands):
                    answer = tuple(self.read(command) for command in commands if isinstance(command, ReadPhysical))
                    assert len(answer) == len(commands)
                case Sleep():
                    for run in self.running:
                        run()

    def read(self, command: ReadPhysical) -> ReadPhysicalReply | Refused:
        self.reads += 1
        page = self.memory.read(gfn_of(command.gpa))
        return Refused(command, ErrorCode.ENOENT, "ENOENT", "") if page is None else ReadPhysicalReply(page)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_candidates__are_frames_in_which_counters_run(machine: Machine) -> None:
    still, counting = machine.page(0), machine.counter(machine.page(1))
    machine.memory.set_entry(still + COUNTER, 5)
    assert machine.candidates() == [counting]


@pytest.mark.parametrize("flags", [PRESENT | WRITABLE, PRESENT | NX, DATA | USER], ids=["code", "read-only", "user's"])
def test_candidates__arent_other_memory(machine: Machine, flags: int) -> None:
    machine.counter(machine.page(0, flags))
    assert machine.candidates() == []


def test_candidates__arent_the_tables_that_lead_there(machine: Machine) -> None:
    """Every table is mapped as data, and in each something counts in an entry that isn't used."""
    first = machine.memory.next_free + 1
    machine.page(0)
    tables = [machine.root, *(Gpa(gfn * PAGE_SIZE) for gfn in range(first, machine.memory.next_free))]
    assert len(tables) == 4
    for number, table in enumerate(tables, start=256):
        machine.memory.map(machine.root, BASE + number * PAGE_SIZE, table, flags=DATA)
        machine.counter(table)
    assert machine.candidates() == []


def test_candidates__arent_other_tables_either(machine: Machine) -> None:
    """Entries of a table that nothing here leads to are replaced by others that are just a little higher."""
    table = machine.page(0)
    machine.memory.set_entry(table, 0x3003)
    machine.memory.set_entry(table + 8, 0x5063)
    machine.running.append(lambda: machine.memory.set_entry(table, machine.memory.entry(table) + 0x1000))
    assert machine.candidates() == []


def test_candidates__arent_stacks(machine: Machine) -> None:
    """A counter runs there as well, and return addresses come and go."""
    stack = machine.page(0)
    machine.counter(stack)
    machine.memory.set_entry(stack + 0x800, BASE)
    machine.running.append(lambda: machine.memory.set_entry(stack + 0x800, machine.memory.entry(stack + 0x800) + 0x40))
    assert machine.candidates() == []


def test_candidates__with_the_page_tables_of_a_user(machine: Machine) -> None:
    """With page-table isolation a vCPU that was stopped in user mode shows the upper of two roots."""
    counting = machine.counter(machine.page(0))
    upper = machine.root + PAGE_SIZE
    code = machine.memory.new_page()
    machine.memory.map(upper, BASE, code, flags=PRESENT)
    assert not machine.root & PAGE_SIZE
    assert machine.candidates(cr3=upper) == [counting]


def test_candidates__no_more_are_read_than_that(machine: Machine) -> None:
    for number in range(MAX_SAMPLED + 100):
        machine.page(number)
    late = machine.counter(machine.page(MAX_SAMPLED + 100))
    assert late not in machine.candidates()
    assert 2 * MAX_SAMPLED < machine.reads < 2 * MAX_SAMPLED + 50


def test_candidates__frames_without_memory_are_left_out(machine: Machine) -> None:
    machine.memory.map(machine.root, BASE, END * 2, flags=DATA)
    counting = machine.counter(machine.page(1))
    assert machine.candidates() == [counting]
