"""What makes the processor leave the guest, besides memory: every reason, with RIP where it belongs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gva
from policyc.emulator.decode import decode
from policyc.emulator.stops import (
    Breakpoint,
    BudgetSpent,
    GuestFault,
    Halted,
    Hypercall,
    Sensitive,
    Shutdown,
    SoftwareInterrupt,
)
from tests.support.emulator_bench import CODE, DATA, Bench

NOP = b"\x90"

SENSITIVE = {
    "mov cr0, rax": "0f22c0",
    "mov cr3, r15": "410f22df",
    "mov cr4, rax": "0f22e0",
    "mov cr8, rax": "440f22c0",
    "clts": "0f06",
    "lmsw ax": "0f01f0",
    "lmsw [rbx+8]": "0f017308",
    "invlpg [gs:rbx]": "650f013b",
    "wrmsr": "0f30",
    "cpuid": "0fa2",
    "syscall": "0f05",
    "sysenter": "0f34",
    "xsetbv": "0f01d1",
    "sgdt [rbx]": "0f0103",
    "sidt [rbx+8]": "0f014b08",
    "lgdt [rbx]": "0f0113",
    "lidt [rip+disp]": "0f011d00000000",
    "lidt [gs:rbx]": "650f011b",
    "sldt ax": "0f00c0",
    "rdrand rax": "480fc7f0",
    "rdrand r9w": "66410fc7f1",
    "str [rbx]": "0f000b",
    "lldt ax": "0f00d0",
    "ltr word [r8]": "410f0018",
}


@pytest.mark.parametrize("code", SENSITIVE.values(), ids=SENSITIVE)
def test_a_sensitive_instruction_stops_the_processor_before_it_runs(code: str) -> None:
    instruction = bytes.fromhex(code)
    bench = Bench(NOP * 3 + instruction)
    decoded = decode(instruction)
    assert decoded is not None
    assert bench.run() == Sensitive(decoded)
    assert bench.rip == 3
    assert bench.engine.instructions == 3


@pytest.mark.parametrize(
    "code", ["0f20c0", "0f32", "0f01f9", "0f01e0", "0f0123", "0f31", "0f1f00", "0f0103"[:4] + "fb"]
)
def test_other_instructions_do_not(code: str) -> None:
    assert isinstance(Bench(bytes.fromhex(code)).run(), Halted | GuestFault)


def test_bytes_that_look_sensitive_inside_another_instruction_do_not_stop_it() -> None:
    bench = Bench(bytes.fromhex("48b80f300fa20f050f22 90"))
    assert bench.run() == Halted()
    assert bench.engine.get("rax") == 0x220F_050F_A20F_300F


def test_a_jump_into_the_middle_of_an_instruction_finds_the_sensitive_one_there() -> None:
    bench = Bench(bytes.fromhex("48b8 0f30 f4 0000000000"))
    assert isinstance(bench.run_at(CODE + 2), Sensitive)
    assert bench.rip == 2


def test_stepping_executes_it_and_running_on_does_not_stop_again() -> None:
    bench = Bench(bytes.fromhex("0f30 48ffc2"), rcx=0xC000_0082, rax=0x1234, rdx=0)
    assert isinstance(bench.run(), Sensitive)
    assert bench.engine.step() == BudgetSpent()
    assert bench.engine.msr_read(0xC000_0082) == 0x1234
    assert bench.run() == Halted()
    assert bench.engine.get("rdx") == 1


@settings(max_examples=40, deadline=None)
@given(offset=st.integers(0xFF0, 0x1000), code=st.sampled_from(sorted(SENSITIVE.values())))
def test_wherever_it_lies_across_a_page_end(offset: int, code: str) -> None:
    bench = Bench()
    bench.put(CODE + offset - 2, NOP * 2 + bytes.fromhex(code) + b"\xf4")
    assert isinstance(bench.run_at(CODE + offset - 2), Sensitive)
    assert bench.rip == offset


def test_a_hypercall_of_either_maker() -> None:
    for code in ("0f01c1", "0f01d9"):
        bench = Bench(NOP + bytes.fromhex(code))
        assert bench.run() == Hypercall(3)
        assert bench.rip == 1


@pytest.mark.parametrize(("code", "size"), [("cc", 1), ("cd03", 2)])
def test_a_breakpoint_leaves_rip_on_it(code: str, size: int) -> None:
    bench = Bench(NOP + bytes.fromhex(code))
    assert bench.run() == Breakpoint(size)
    assert bench.rip == 1


@pytest.mark.parametrize(("code", "vector", "size"), [("cd80", 0x80, 2), ("cd04", 4, 2), ("cdcc", 0xCC, 2)])
def test_a_software_interrupt_leaves_rip_on_it(code: str, vector: int, size: int) -> None:
    bench = Bench(NOP + bytes.fromhex(code))
    assert bench.run() == SoftwareInterrupt(vector, size)
    assert bench.rip == 1
    assert bench.engine.instructions == 2


FAULTS = {
    "ud2": ("0f0b", GuestFault(6)),
    "vex is not known": ("c5fc28c1", GuestFault(6)),
    "div by zero": ("48f7f2", GuestFault(0)),
    "no such selector": ("8ed8", GuestFault(13, 0x1234)),
    "load not canonical": ("488b06", GuestFault(13, 0)),
    "unmapped load": ("488b07", GuestFault(14, 0, Gva(0x5000_0123))),
    "unmapped store": ("488907", GuestFault(14, 2, Gva(0x5000_0123))),
}


@pytest.mark.parametrize(("code", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_guest_leaves_rip_on_the_instruction(code: str, fault: GuestFault) -> None:
    bench = Bench(NOP + bytes.fromhex(code), rax=0x1234, rdx=0, rsi=1 << 63, rdi=0x5000_0123)
    assert bench.run() == fault
    assert bench.rip == 1


def test_a_stack_that_is_not_canonical_is_a_stack_fault() -> None:
    bench = Bench(bytes.fromhex("58"), rsp=1 << 62)
    assert bench.run() == GuestFault(12, 0)


def test_a_jump_to_nowhere_is_a_page_fault_at_its_target() -> None:
    bench = Bench(bytes.fromhex("ffe3"), rbx=0x5000_0123)
    assert bench.run() == GuestFault(14, 0, Gva(0x5000_0123))


def test_a_trap_flag_stops_after_the_instruction() -> None:
    bench = Bench(bytes.fromhex("9c 814c2400 00010000 9d 90 90"))
    assert bench.run() == GuestFault(1)
    assert bench.rip == 1 + 8 + 1 + 1


def test_code_outside_memory_shuts_the_processor_down() -> None:
    bench = Bench(bytes.fromhex("ffe3"), rbx=0x1F_F000)
    bench.words(0x4000 + 8 * 0x1FF, 0x4000_0007)
    assert bench.run() == Shutdown("the guest runs code at 0x40000000, where it has no memory")


def test_data_outside_memory_reads_as_ones_and_takes_no_writes() -> None:
    bench = Bench(bytes.fromhex("488b03 488903 488b13"), rbx=0x1F_F000)
    bench.words(0x4000 + 8 * 0x1FF, 0x4000_0007)
    assert bench.run() == Halted()
    assert bench.engine.get("rax") == bench.engine.get("rdx") == 0xFFFF_FFFF_FFFF_FFFF


def test_a_port_without_a_device_reads_as_ones() -> None:
    bench = Bench(bytes.fromhex("ec ee ed"), rdx=0x3F8, rax=0)
    assert bench.run() == Halted()
    assert bench.engine.get("rax") == 0xFFFF_FFFF


def test_a_halt_is_told_from_a_budget_that_ends_behind_a_byte_like_it() -> None:
    """`mov al, 0xf4` ends in the opcode of HLT; the budget ends right after it."""
    bench = Bench(bytes.fromhex("b0f4 90"))
    assert bench.run(budget=1) == BudgetSpent()
    assert bench.rip == 2
    assert bench.run() == Halted()


@given(st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_a_budget_is_kept_to_the_instruction(budget: int) -> None:
    bench = Bench(bytes.fromhex("48ffc1 ebfb"))
    assert bench.run(budget) == BudgetSpent()
    assert bench.engine.instructions == budget
    assert bench.engine.get("rcx") == (budget + 1) // 2


def test_the_count_of_instructions_leaves_out_the_one_that_faulted() -> None:
    bench = Bench(NOP * 4 + bytes.fromhex("488907"), rdi=0x5000_0000)
    bench.run()
    assert bench.engine.instructions == 4


def test_a_repeated_instruction_counts_its_rounds() -> None:
    bench = Bench(bytes.fromhex("f3a4"), rcx=5, rsi=DATA, rdi=DATA + 64)
    assert bench.run() == Halted()
    assert bench.engine.instructions == 7  # five rounds, the look at RCX, HLT
