"""What Unicorn does otherwise than a processor, and that none of it gets through."""

from __future__ import annotations

import pytest

from policyc.addresses import Gpa, Gva
from policyc.emulator.engine import Engine
from policyc.emulator.stops import BudgetSpent, GuestFault, Halted, PageViolation, Sensitive
from policyc.emulator.walk import WRITE
from tests.support.emulator_bench import CODE, DATA, HIGH, HIGH_PDPT, LOW_PT, PML4, SPARE, USER, Bench

INC_RCX = "48ffc1"


def test_the_second_fault_is_not_a_double_fault() -> None:
    """Unicorn never delivers an exception, so it never forgets the one in flight."""
    bench = Bench(bytes.fromhex("488b07"), rdi=0x5000_0123)
    for _ in range(3):
        assert bench.run() == GuestFault(14, 0, Gva(0x5000_0123))
    bench = Bench(bytes.fromhex("48f7f2"), rdx=0)
    for _ in range(3):
        assert bench.run() == GuestFault(0)


def test_a_violation_leaves_no_exception_behind() -> None:
    bench = Bench(bytes.fromhex("488903"), rbx=DATA)
    bench.restrict(DATA, 5)
    for _ in range(3):
        assert bench.run() == PageViolation(Gva(DATA), Gpa(DATA), WRITE)
    bench.put(SPARE, bytes.fromhex("8ed8"))
    bench.set(rax=0x1234)
    assert bench.run_at(SPARE) == GuestFault(13, 0x1234)


def test_a_stop_fetches_nothing_elsewhere() -> None:
    """An `until` address makes Unicorn fetch from the page before it (Unicorn issue 2376)."""
    bench = Bench(bytes.fromhex("9090"))
    bench.words(LOW_PT, 0)
    assert bench.run(1) == BudgetSpent()


def test_one_step_is_one_instruction_in_code_that_ran_freely_before() -> None:
    bench = Bench(bytes.fromhex(INC_RCX * 4))
    assert bench.run() == Halted()
    bench.set(rip=CODE, rcx=0)
    for count in (1, 2, 3):
        assert bench.engine.step() == BudgetSpent()
        assert bench.engine.get("rcx") == count


def test_one_step_is_one_instruction_when_it_jumps_to_code_never_seen_before() -> None:
    bench = Bench(bytes.fromhex("ffe3"), rbx=DATA)
    bench.put(DATA, bytes.fromhex(INC_RCX * 2))
    assert bench.engine.step() == BudgetSpent()
    assert (bench.engine.get("rip"), bench.engine.get("rcx"), bench.engine.instructions) == (DATA, 0, 1)


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


def test_user_mode_is_entered_by_iretq_and_left_by_a_patch() -> None:
    bench = Bench(bytes.fromhex("48cf"), rsp=SPARE)
    bench.words(SPARE, DATA, 0x33, 2, USER + 0x800, 0x2B)
    bench.put(DATA, bytes.fromhex("0f20c0"))
    assert bench.run() == GuestFault(13, 0)
    assert bench.engine.cpl == 3
    bench.engine.enter(0, 0x10, 0x18)
    assert bench.engine.step() == BudgetSpent()
    assert bench.engine.cpl == 0


def test_user_code_does_not_reach_supervisor_pages() -> None:
    bench = Bench(bytes.fromhex("488b03"), rbx=HIGH + DATA)
    bench.words(HIGH_PDPT, int.from_bytes(bench.get(HIGH_PDPT), "little") & ~4)
    bench.user_mode()
    assert bench.run() == GuestFault(14, 5, Gva(HIGH + DATA))
    bench.engine.enter(0, 0x10, 0x18)
    assert bench.run() == Halted()


def test_the_processor_reads_descriptors_as_a_supervisor() -> None:
    """`mov ds, ax` in user mode, with a GDT that user code may not read."""
    bench = Bench(bytes.fromhex("8ed8"), rax=0x2B)
    bench.words(LOW_PT + 8 * 8, 0x8003)
    bench.user_mode()
    assert bench.run(1) == BudgetSpent()


def test_code_changed_by_the_host_is_translated_again() -> None:
    bench = Bench(bytes.fromhex("b801000000"))
    assert bench.run() == Halted()
    bench.put(CODE + 1, b"\x02")
    assert bench.run_at(CODE) == Halted()
    assert bench.engine.get("rax") == 2


@pytest.mark.parametrize("base", [0, HIGH])
def test_code_that_changes_itself(base: int) -> None:
    """mov byte [rbx], 2; then `mov eax, imm` whose immediate that was: in the same page, by either address."""
    bench = Bench(bytes.fromhex("c60302 b801000000"), rbx=base + CODE + 4)
    assert bench.run() == Halted()
    assert bench.engine.get("rax") == 2


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


def test_the_guest_is_not_told_of_avx() -> None:
    from policyc.emulator.cpuid import cpuid_table

    for cpu in ("intel", "amd"):
        assert not cpuid_table(cpu)[1, 0].ecx >> 28 & 1
        assert not cpuid_table(cpu)[7, 0].ebx >> 5 & 1
