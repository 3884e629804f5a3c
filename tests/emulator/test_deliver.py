"""Exceptions, interrupts and system calls on their way into the guest's handlers."""

from __future__ import annotations

import struct

import pytest

from policyc.emulator.deliver import Delivery, deliver, enter_syscall
from policyc.emulator.stops import Halted, PageViolation, Shutdown
from tests.support.emulator_bench import CODE, DATA, IDT, LOW_PT, SPARE, STACK, TSS, USER, Bench

HANDLER = SPARE + 0x100
IF, TF, RF = 1 << 9, 1 << 8, 1 << 16


def bench() -> Bench:
    made = Bench()
    for vector in (0, 3, 6, 8, 13, 14, 0x80):
        made.gate(vector, HANDLER + vector)
    made.set(rip=CODE + 0x20, rflags=2 | IF)
    return made


def frame(made: Bench, words: int = 6) -> tuple[int, ...]:
    return struct.unpack(f"<{words}Q", made.get(made.engine.get("rsp"), 8 * words))


def test_an_exception_without_a_code() -> None:
    made = bench()
    made.set(rsp=STACK - 5)
    assert deliver(made.engine, Delivery(6)) is None
    assert made.engine.get("rip") == HANDLER + 6
    assert made.engine.get("rsp") == (STACK - 16) - 40
    assert frame(made, 5) == (CODE + 0x20, 0x10, 2 | IF, STACK - 5, 0x18)
    assert not made.engine.get("rflags") & IF


def test_an_exception_with_a_code_and_an_address() -> None:
    made = bench()
    assert deliver(made.engine, Delivery(14, 3, 0x1234)) is None
    assert frame(made) == (3, CODE + 0x20, 0x10, 2 | IF, STACK, 0x18)
    assert made.engine.get("cr2") == 0x1234


def test_a_trap_gate_leaves_interrupts_on() -> None:
    made = bench()
    made.gate(3, HANDLER, kind=0xF)
    made.set(rflags=2 | IF | TF)
    assert deliver(made.engine, Delivery(3)) is None
    assert made.engine.get("rflags") & (IF | TF) == IF


def test_from_user_mode_the_stack_is_the_task_state_segments() -> None:
    made = bench()
    made.engine.set_table("gdtr", 0x8000, 79)
    made.put(SPARE, bytes.fromhex("b840000000 0f00d8 f4"))
    assert str(made.run_at(SPARE)).startswith("Sensitive")
    made.engine.step()
    made.user_mode()
    made.set(rip=CODE + 0x20, rsp=USER + 0x500)
    assert deliver(made.engine, Delivery(13, 0)) is None
    assert made.engine.get("rsp") == STACK - 48
    assert frame(made) == (0, CODE + 0x20, 0x33, made.engine.get("rflags") | IF, USER + 0x500, 0x2B)
    assert (made.engine.cpl, made.engine.get("ss")) == (0, 0)
    made.put(HANDLER + 13, bytes.fromhex("4883c408 48cf"))
    made.put(CODE + 0x20, b"\xf4")
    assert made.run() != Halted()  # HLT is not for user mode: back there it faults
    assert made.engine.cpl == 3


def test_a_gate_may_bring_its_own_stack() -> None:
    made = bench()
    made.put(SPARE, bytes.fromhex("b840000000 0f00d8 f4"))
    made.run_at(SPARE)
    made.engine.step()
    made.words(TSS + 36 + 8, DATA + 0x1000)
    made.gate(8, HANDLER, stack=2)
    assert deliver(made.engine, Delivery(8, 0)) is None
    assert made.engine.get("rsp") == DATA + 0x1000 - 48


@pytest.mark.parametrize("spoil", ["absent", "no gate", "not present", "beyond the limit", "no handler"])
def test_a_fault_on_the_way_is_a_double_fault(spoil: str) -> None:
    made = bench()
    match spoil:
        case "absent":
            made.put(IDT + 16 * 6, bytes(16))
        case "no gate":
            made.gate(6, HANDLER, kind=0x5)
        case "not present":
            made.gate(6, HANDLER, present=0)
        case "beyond the limit":
            made.engine.set_table("idtr", IDT, 16 * 15 - 1)
        case "no handler":
            made.gate(6, 1 << 60)
    vector = 20 if spoil == "beyond the limit" else 6
    assert deliver(made.engine, Delivery(vector)) is None
    assert made.engine.get("rip") == HANDLER + 8
    assert frame(made)[0] == 0


def test_a_fault_on_the_way_of_a_double_fault_shuts_down() -> None:
    made = bench()
    made.engine.set_table("idtr", IDT, 0)
    assert deliver(made.engine, Delivery(6)) == Shutdown(
        "a fault while vector 6 was delivered, and another for the double fault"
    )


def test_a_stack_that_is_not_mapped_is_a_double_fault_too() -> None:
    made = bench()
    made.set(rsp=0x5000_0000)
    assert isinstance(deliver(made.engine, Delivery(6)), Shutdown)


def test_a_gate_refuses_software_that_has_no_privilege() -> None:
    made = bench()
    made.put(SPARE, bytes.fromhex("b840000000 0f00d8 f4"))
    made.run_at(SPARE)
    made.engine.step()
    made.user_mode()
    assert deliver(made.engine, Delivery(0x80, software=True)) is None
    assert made.engine.get("rip") == HANDLER + 13
    assert frame(made)[0] == 0x80 * 8 + 2
    made.gate(0x80, HANDLER, dpl=3)
    made.user_mode()
    assert deliver(made.engine, Delivery(0x80, software=True)) is None
    assert made.engine.get("rip") == HANDLER


def test_a_stack_without_write_is_a_violation_and_nothing_is_pushed() -> None:
    made = bench()
    made.set(rsp=DATA + 16)
    made.restrict(DATA - 1, 1)
    before = made.get(DATA - 64, 80)
    violation = deliver(made.engine, Delivery(6))
    assert isinstance(violation, PageViolation)
    assert violation.gpa == DATA - 8
    assert (made.get(DATA - 64, 80), made.engine.get("rsp")) == (before, DATA + 16)
    assert deliver(made.engine, Delivery(6), lifted={DATA - 8 >> 12}) is None
    assert made.engine.get("rsp") == DATA - 24


def test_a_system_call() -> None:
    made = bench()
    engine = made.engine
    engine.msr_write(0xC000_0081, 0x23_0010 << 32)
    engine.msr_write(0xC000_0082, HANDLER)
    engine.msr_write(0xC000_0084, IF | 0x400)
    made.user_mode()
    made.set(rip=CODE + 0x10, rflags=2 | IF | 0x400 | 1)
    enter_syscall(engine)
    assert (engine.get("rcx"), engine.get("r11") & (IF | 0x401)) == (CODE + 0x12, IF | 0x401)
    assert (engine.get("rip"), engine.cpl, engine.get("cs"), engine.get("ss")) == (HANDLER, 0, 0x10, 0x18)
    assert engine.get("rflags") & (IF | 0x401) == 1


def test_an_interrupt_wakes_and_returns() -> None:
    made = bench()
    made.gate(0x20, HANDLER)
    made.put(HANDLER, bytes.fromhex("48ffc1 48cf"))
    made.put(CODE, bytes.fromhex("f4 48ffc2 f4"))
    made.set(rip=CODE)
    assert made.run() == Halted()
    assert deliver(made.engine, Delivery(0x20)) is None
    assert made.run() == Halted()
    assert (made.engine.get("rcx"), made.engine.get("rdx"), made.engine.get("rsp")) == (1, 1, STACK)
    assert made.get(LOW_PT) != bytes(8)
