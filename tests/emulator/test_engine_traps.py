"""What Unicorn does otherwise than a processor, and that none of it gets through.

Thirteen such traps are known; each has a test or more, marked with its number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from policyc.addresses import Gpa, Gva
from policyc.emulator.decode import accesses
from policyc.emulator.deliver import Delivery, deliver, enter_syscall, enter_sysenter
from policyc.emulator.engine import Engine
from policyc.emulator.memory import Memory
from policyc.emulator.registers import read_state
from policyc.emulator.small_machine import SmallMachine
from policyc.emulator.stops import (
    BudgetSpent,
    GuestFault,
    Halted,
    Hypercall,
    PageViolation,
    Sensitive,
    SoftwareInterrupt,
)
from policyc.emulator.walk import WRITE
from policyc.kvmi import CpuMode
from tests.support.emulator_bench import (
    CODE,
    DATA,
    GDT,
    HIGH,
    HIGH_PDPT,
    LOW_PD,
    LOW_PT,
    PML4,
    SPARE,
    STACK,
    TSS,
    USER,
    Bench,
)

INC_RCX = "48ffc1"

TRAPS = {
    1: "the binding can't flush the TLB",
    2: "an address to stop at is fetched from",
    3: "a step runs on in code that was translated without a counter",
    4: "the exception in flight is never forgotten",
    5: "writing CS doesn't change the privilege level",
    6: "what the TLB was told of CR0 and CR3 is stale after a native write",
    7: "SYSCALL and SYSENTER do nothing",
    8: "CS is 0 when an engine opens",
    9: "locked instructions of two engines aren't atomic",
    10: "the host's stores into translated code aren't seen",
    11: "there is no AVX, on any processor model",
    12: "a stop from another thread comes late",
    13: "a fault tells its page alone",
}
TESTED: dict[int, list[str]] = {}
"""The tests of each trap, by its number."""

Test = TypeVar("Test", bound=Callable[..., None])


def trap(number: int) -> Callable[[Test], Test]:
    """The test is one of that trap."""

    def note(test: Test) -> Test:
        TESTED.setdefault(number, []).append(test.__name__)
        return test

    return note


def test_every_trap_has_a_test() -> None:
    assert sorted(TESTED) == sorted(TRAPS)


@trap(4)
def test_the_second_fault_is_not_a_double_fault() -> None:
    """Unicorn never delivers an exception, so it never forgets the one in flight."""
    bench = Bench(bytes.fromhex("488b07"), rdi=0x5000_0123)
    for _ in range(3):
        assert bench.run() == GuestFault(14, 0, Gva(0x5000_0123))
    bench = Bench(bytes.fromhex("48f7f2"), rdx=0)
    for _ in range(3):
        assert bench.run() == GuestFault(0)


@trap(4)
def test_a_violation_leaves_no_exception_behind() -> None:
    bench = Bench(bytes.fromhex("488903"), rbx=DATA)
    bench.restrict(DATA, 5)
    for _ in range(3):
        assert bench.run() == PageViolation(Gva(DATA), Gpa(DATA), WRITE)
    bench.put(SPARE, bytes.fromhex("8ed8"))
    bench.set(rax=0x1234)
    assert bench.run_at(SPARE) == GuestFault(13, 0x1234)


@trap(2)
def test_a_stop_fetches_nothing_elsewhere() -> None:
    """An `until` address makes Unicorn fetch from the page before it (Unicorn issue 2376)."""
    bench = Bench(bytes.fromhex("9090"))
    bench.words(LOW_PT, 0)
    assert bench.run(1) == BudgetSpent()


@trap(3)
def test_one_step_is_one_instruction_in_code_that_ran_freely_before() -> None:
    bench = Bench(bytes.fromhex(INC_RCX * 4))
    assert bench.run() == Halted()
    bench.set(rip=CODE, rcx=0)
    for count in (1, 2, 3):
        assert bench.engine.step() == BudgetSpent()
        assert bench.engine.get("rcx") == count


@trap(3)
def test_one_step_is_one_instruction_when_it_jumps_to_code_never_seen_before() -> None:
    bench = Bench(bytes.fromhex("ffe3"), rbx=DATA)
    bench.put(DATA, bytes.fromhex(INC_RCX * 2))
    assert bench.engine.step() == BudgetSpent()
    assert (bench.engine.get("rip"), bench.engine.get("rcx"), bench.engine.instructions) == (DATA, 0, 1)


@trap(6)
def test_a_new_root_counts_for_the_next_instruction() -> None:
    """`mov cr3` is followed by an access within the same run."""
    bench = Bench(bytes.fromhex("0f22d8 488b0b"), rbx=HIGH + DATA, rax=0x5_0000)
    bench.words(0x5_0000, *(int.from_bytes(bench.get(PML4 + 8 * n), "little") for n in range(512)))
    bench.words(0x5_0000 + 8 * 256, 0x5_1007)
    bench.words(0x5_1000, 0x5_2007)
    bench.words(0x5_2000 + 8 * (DATA >> 21), 0x5_3007)
    bench.words(0x5_3000 + 8 * (DATA >> 12), SPARE | 7)
    bench.put(SPARE, b"\x11" * 8)
    bench.run(1)
    assert isinstance(bench.run(), Sensitive)
    assert bench.engine.step() == BudgetSpent()
    assert bench.run() == Halted()
    assert bench.engine.get("rcx") == 0x1111_1111_1111_1111


@trap(6)
def test_write_protection_counts_from_the_next_instruction_on() -> None:
    bench = Bench(bytes.fromhex("488903 0f22c0 488903"), rbx=DATA)
    bench.words(LOW_PT + 8 * (DATA >> 12), DATA | 5)
    cr0 = bench.engine.get("cr0")
    bench.set(rax=cr0 & ~(1 << 16))
    assert bench.run() == GuestFault(14, 3, Gva(DATA))
    bench.set(rip=CODE + 3)
    assert isinstance(bench.run(), Sensitive)
    assert bench.engine.step() == BudgetSpent()
    assert bench.run() == Halted()


@trap(5)
def test_user_mode_is_entered_by_iretq_and_left_by_a_patch() -> None:
    bench = Bench(bytes.fromhex("48cf"), rsp=SPARE)
    bench.words(SPARE, DATA, 0x33, 2, USER + 0x800, 0x2B)
    bench.put(DATA, bytes.fromhex("0f20c0"))
    assert bench.run() == GuestFault(13, 0)
    assert bench.engine.cpl == 3
    bench.engine.enter(0, 0x10, 0x18)
    assert bench.engine.step() == BudgetSpent()
    assert bench.engine.cpl == 0


@trap(5)
def test_user_code_does_not_reach_supervisor_pages() -> None:
    bench = Bench(bytes.fromhex("488b03"), rbx=HIGH + DATA)
    bench.words(HIGH_PDPT, int.from_bytes(bench.get(HIGH_PDPT), "little") & ~4)
    bench.user_mode()
    assert bench.run() == GuestFault(14, 5, Gva(HIGH + DATA))
    bench.engine.enter(0, 0x10, 0x18)
    assert bench.run() == Halted()


@trap(5)
def test_the_processor_reads_descriptors_as_a_supervisor() -> None:
    """`mov ds, ax` in user mode, with a GDT that user code may not read."""
    bench = Bench(bytes.fromhex("8ed8"), rax=0x2B)
    bench.words(LOW_PT + 8 * 8, 0x8003)
    bench.user_mode()
    assert bench.run(1) == BudgetSpent()


@trap(10)
def test_code_changed_by_the_host_is_translated_again() -> None:
    bench = Bench(bytes.fromhex("b801000000"))
    assert bench.run() == Halted()
    bench.put(CODE + 1, b"\x02")
    assert bench.run_at(CODE) == Halted()
    assert bench.engine.get("rax") == 2


@trap(10)
@pytest.mark.parametrize("base", [0, HIGH])
def test_code_that_changes_itself(base: int) -> None:
    """mov byte [rbx], 2; then `mov eax, imm` whose immediate that was: in the same page, by either address."""
    bench = Bench(bytes.fromhex("c60302 b801000000"), rbx=base + CODE + 4)
    assert bench.run() == Halted()
    assert bench.engine.get("rax") == 2


@trap(10)
def test_code_that_changes_code_of_another_page_which_ran_before() -> None:
    bench = Bench(bytes.fromhex("ffd6 88030f1f00 ffd6"), rbx=HIGH + DATA + 1, rsi=DATA, rax=9)
    bench.put(DATA, bytes.fromhex("b901000000 c3"))
    assert bench.run() == Halted()
    assert bench.engine.get("rcx") == 9


def test_a_sensitive_instruction_written_over_harmless_code_is_found() -> None:
    bench = Bench(bytes.fromhex("ffd6 66c703 0f30 ffd6"), rbx=HIGH + DATA, rsi=DATA)
    bench.put(DATA, bytes.fromhex("9090 c3"))
    assert isinstance(stop := bench.run(), Sensitive)
    assert stop.instruction.name == "wrmsr"
    assert bench.engine.get("rip") == DATA


def test_a_data_page_that_becomes_code_is_searched() -> None:
    bench = Bench(bytes.fromhex("66c703 0f30 ffe3"), rbx=DATA)
    assert isinstance(bench.run(), Sensitive)
    assert bench.engine.get("rip") == DATA


def test_a_code_page_that_becomes_data_again_can_be_written_freely() -> None:
    bench = Bench(bytes.fromhex("ffd6 48ff03 48ff03 48ff03"), rbx=DATA + 8, rsi=DATA)
    bench.put(DATA, b"\xc3")
    assert bench.run() == Halted()
    assert bench.get(DATA + 8) == (3).to_bytes(8, "little")


def test_a_store_into_a_page_of_code_that_is_denied_stays_denied() -> None:
    bench = Bench(bytes.fromhex("c60302 b801000000"), rbx=CODE + 4)
    bench.restrict(CODE, 5)
    assert bench.run() == PageViolation(Gva(CODE + 4), Gpa(CODE + 4), WRITE)
    assert bench.engine.step({CODE >> 12: WRITE}) == BudgetSpent()
    assert bench.run() == Halted()
    assert bench.engine.get("rax") == 2


@trap(10)
def test_another_processor_sees_code_that_this_one_changed() -> None:
    bench = Bench(bytes.fromhex("c60302"), rbx=DATA + 1)
    bench.put(DATA, bytes.fromhex("b801000000 f4"))
    other = Engine(bench.memory)
    other.set("cr4", 0x620)
    other.set("cr3", PML4)
    other.enter(0, 0x10, 0x18)
    for expected in (1, 2):
        other.set("rip", DATA)
        assert other.run(10) == Halted()
        assert other.get("rax") == expected
        assert bench.run_at(CODE) == Halted()


@trap(9)
def test_locked_instructions_of_two_processors_lose_nothing() -> None:
    """One runs at a time, so an increment is whole whatever the slice."""
    bench = Bench(bytes.fromhex("f048ff03 48ffc9 75f7"), rbx=DATA, rcx=3000)
    other = Engine(bench.memory)
    other.set("cr4", 0x620)
    other.set("cr3", PML4)
    other.enter(0, 0x10, 0x18)
    for name in ("rip", "rbx", "rcx"):
        other.set(name, bench.engine.get(name))
    running = [bench.engine, other]
    while running:
        running = [engine for engine in running if engine.run(7) != Halted()]
    assert int.from_bytes(bench.get(DATA), "little") == 6000


@trap(11)
def test_the_guest_is_not_told_of_avx() -> None:
    from policyc.emulator.cpuid import cpuid_table

    for cpu in ("intel", "amd"):
        assert not cpuid_table(cpu)[1, 0].ecx >> 28 & 1
        assert not cpuid_table(cpu)[7, 0].ebx >> 5 & 1


@trap(11)
@pytest.mark.parametrize("cpu", ["intel", "amd"])
@pytest.mark.parametrize("code", ["c5fc28c1", "c5fd7f03", "c4e27d180b"], ids=["vmovaps", "vmovdqa", "vbroadcastss"])
def test_avx_is_an_undefined_opcode(cpu: str, code: str) -> None:
    """The instruction of a guest that doesn't heed CPUID stores nothing and faults."""
    bench = Bench(bytes.fromhex(code), cpu=cpu, rbx=DATA)
    bench.put(DATA, b"\xaa" * 32)
    assert bench.run() == GuestFault(6)
    assert bench.get(DATA, 32) == b"\xaa" * 32


@trap(1)
def test_a_changed_entry_counts_after_a_flush() -> None:
    bench = Bench(bytes.fromhex("488b03"), rbx=DATA)
    bench.put(SPARE, b"\x11" * 8)
    assert bench.run() == Halted()
    bench.words(LOW_PT + 8 * (DATA >> 12), SPARE | 7)
    bench.engine.flush_tlb()
    assert bench.run_at(CODE) == Halted()
    assert bench.engine.get("rax") == 0x1111_1111_1111_1111


@trap(1)
def test_invlpg_drops_all_pieces_of_a_large_page() -> None:
    """Unicorn keeps 4 KiB at a time: an entry of 2 MiB that changes would live on in the pieces read before."""
    bench = Bench(bytes.fromhex("488b03 488b0e"), rbx=0x20_0000 + DATA, rsi=0x20_0000 + SPARE)
    bench.words(LOW_PD + 8, 0 | 0x87)
    bench.put(DATA, b"\x11" * 8)
    assert bench.run() == Halted()
    bench.put(CODE, bytes.fromhex("0f013b 488b03 488b0e f4"))
    bench.words(LOW_PD + 8, 0)
    stop = bench.run_at(CODE)
    assert isinstance(stop, Sensitive)
    vcpu_invlpg(bench)
    assert bench.run() == GuestFault(14, 0, Gva(0x20_0000 + DATA))
    bench.set(rip=CODE + 6)
    assert bench.run() == GuestFault(14, 0, Gva(0x20_0000 + SPARE))


def vcpu_invlpg(bench: Bench) -> None:
    """What `sensitive` does for INVLPG."""
    insn = bench.engine.instruction()
    assert insn is not None
    (operand,) = accesses(insn, bench.engine.registers())
    assert bench.engine.step() == BudgetSpent()
    bench.engine.forget_large_page(operand.gva)


@trap(7)
def test_syscall_and_sysret_go_there_and_back() -> None:
    """SYSCALL is carried out by us, SYSRET by Unicorn."""
    bench = Bench(bytes.fromhex("0f05 48ffc2 f4"), rdx=0)
    engine = bench.engine
    engine.msr_write(0xC000_0080, engine.efer | 1)
    engine.msr_write(0xC000_0081, 0x0023_0010 << 32)
    engine.msr_write(0xC000_0082, SPARE)
    bench.put(SPARE, bytes.fromhex("48ffc2 480f07"))
    bench.user_mode()
    assert isinstance(bench.run(), Sensitive)
    enter_syscall(engine)
    assert (engine.cpl, engine.get("rip"), engine.get("rcx")) == (0, SPARE, CODE + 2)
    assert bench.run() == GuestFault(13, 0)  # HLT, in user mode again
    assert (engine.cpl, engine.get("cs"), engine.get("rdx"), bench.rip) == (3, 0x33, 2, 5)


@trap(7)
def test_sysenter_and_sysexit_go_there_and_back() -> None:
    """SYSENTER does nothing either, SYSEXIT is Unicorn's own."""
    bench = Bench(bytes.fromhex("0f34"))
    engine = bench.engine
    for index, value in ((0x174, 0x10), (0x175, STACK), (0x176, SPARE)):
        engine.msr_write(index, value)
    bench.words(GDT + 8 * 4, 0x00CF_FB00_0000_FFFF)
    bench.put(SPARE, bytes.fromhex("480f35"))
    bench.user_mode()
    assert isinstance(bench.run(), Sensitive)
    assert enter_sysenter(engine)
    assert (engine.cpl, engine.get("rip"), engine.get("rsp")) == (0, SPARE, STACK)
    bench.set(rdx=CODE + 2, rcx=USER + 0x800)
    assert engine.step() == BudgetSpent()
    assert (engine.cpl, bench.rip, engine.get("rsp")) == (3, 2, USER + 0x800)


@trap(8)
def test_a_processor_shows_a_code_segment_before_its_first_instruction() -> None:
    fresh = Engine(Memory(2 << 20))
    assert fresh.get("cs") == 0
    machine = SmallMachine()
    state = read_state(machine.vcpus[0].engine)
    assert (state.sregs.cs.selector, state.sregs.cs.l, state.sregs.ss.selector) == (0x10, 1, 0x18)
    assert (state.mode, machine.vcpus[0].engine.cpl) == (CpuMode.LONG, 0)


@trap(12)
def test_a_guest_that_loops_for_ever_comes_back_by_itself() -> None:
    """No thread has to stop it: a slice is a number of instructions, kept exactly."""
    bench = Bench(bytes.fromhex("ebfe"))
    for count in (1, 777, 50_000):
        before = bench.engine.instructions
        assert bench.run(count) == BudgetSpent()
        assert bench.engine.instructions - before == count


@trap(13)
@pytest.mark.parametrize("offset", [0, 1, 0x7F3, 0xFF8])
def test_a_fault_and_a_violation_tell_their_byte(offset: int) -> None:
    bench = Bench(bytes.fromhex("488903"), rbx=DATA + offset)
    bench.restrict(DATA, 5)
    assert bench.run() == PageViolation(Gva(DATA + offset), Gpa(DATA + offset), WRITE)
    bench.words(LOW_PT + 8 * (DATA >> 12), DATA | 5)
    bench.engine.flush_tlb()
    assert bench.run() == GuestFault(14, 3, Gva(DATA + offset))


class TestCompatibilityMode:
    """32-bit code of a 64-bit kernel."""

    def bench(self, code: str, rax: int = 0) -> Bench:
        """A bench that is about to enter 32-bit user code by IRETQ."""
        bench = Bench(bytes.fromhex("48cf"), rax=rax)
        bench.words(GDT + 8 * 4, 0x00CF_FB00_0000_FFFF)
        bench.words(STACK - 64, DATA, 0x23, 2, USER + 0x800, 0x2B)
        bench.set(rsp=STACK - 64)
        bench.put(DATA, bytes.fromhex(code))
        return bench

    def test_code_means_what_it_means_in_32_bits(self) -> None:
        bench = self.bench("48 40 cd80", rax=5)  # dec eax; inc eax
        assert bench.run() == SoftwareInterrupt(0x80, 2)
        assert (bench.engine.code_bits, bench.engine.get("rax"), bench.engine.instructions) == (32, 5, 4)

    def test_stack_accesses_are_four_bytes_wide(self) -> None:
        bench = self.bench("50", rax=0x1122_3344)
        bench.restrict(USER, 5)
        assert bench.run() == PageViolation(Gva(USER + 0x7FC), Gpa(USER + 0x7FC), WRITE)
        assert bench.engine.step({USER >> 12: WRITE}) == BudgetSpent()
        assert bench.get(USER + 0x7F8) == bytes.fromhex("00000000 44332211")

    def test_a_handler_is_64_bit_code_again(self) -> None:
        bench = self.bench("cd80 f4")
        bench.gate(0x80, SPARE, dpl=3)
        bench.put(SPARE, bytes.fromhex("48ffc1 48cf"))
        bench.engine.context.load()
        bench.engine.context.set_segment("tr", 0x40, TSS, 0x67, 0x8900)
        bench.engine.context.store()
        stop = bench.run()
        assert isinstance(stop, SoftwareInterrupt)
        assert deliver(bench.engine, Delivery(0x80, software=True, length=2)) is None
        assert bench.engine.code_bits == 64
        assert bench.run() == GuestFault(13, 0)  # back at HLT, in user mode
        assert (bench.engine.code_bits, bench.engine.get("rcx"), bench.engine.get("rip")) == (32, 1, DATA + 2)

    def test_an_undefined_opcode_and_a_hypercall_are_told_apart(self) -> None:
        assert self.bench("0f01c1").run() == Hypercall(3)
        assert self.bench("0f0b").run() == GuestFault(6)
        assert self.bench("0f05").run() != GuestFault(6)

    def test_into_is_one_byte(self) -> None:
        bench = self.bench("b000 0402 b07f 0401 ce")  # 0x7f + 1 overflows
        assert bench.run() == SoftwareInterrupt(4, 1)
