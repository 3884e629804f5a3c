"""Accesses that the frames' rights forbid: precise, for every kind of instruction, with nothing written."""

from __future__ import annotations

import pytest

from policyc.addresses import Gpa, Gva
from policyc.emulator.stops import BudgetSpent, Halted, PageViolation
from policyc.emulator.walk import FETCH, READ, WRITE
from tests.support.emulator_bench import CODE, DATA, HIGH, SPARE, Bench

RX, RW, R, W, X, NOTHING = 5, 3, 1, 2, 4, 0

WRITERS = {
    "mov [rbx], rax": ("488903", 0),
    "mov byte [rbx+5], 1": ("c6430501", 5),
    "add [rbx+8], rax": ("48014308", 8),
    "lock xadd [rbx+0x20], rax": ("f0480fc14320", 0x20),
    "xchg [rbx], rax": ("488703", 0),
    "lock cmpxchg [rbx], rcx": ("f0480fb10b", 0),
    "lock cmpxchg16b [rbx+0x40]": ("f0480fc74b40", 0x40),
    "lock bts qword [rbx], 5": ("f0480fba2b05", 0),
    "bts [rbx], rcx, bit 130": ("480fab0b", 16),
    "stosq at rdi": ("48ab", 0x10),
    "movsb": ("a4", 0x10),
    "rep movsb": ("f3a4", 0x10),
    "movdqu [rbx+0x30], xmm0": ("f30f7f4330", 0x30),
    "movntdq [rbx], xmm0": ("660fe703", 0),
    "movnti [rbx+4], eax": ("0fc34304", 4),
    "fxsave [rbx+0x200]": ("0fae8300020000", 0x200),
    "pop [rbx+8]": ("8f4308", 8),
    "sgdt [rbx+2]": ("0f014302", 2),
    "mov [gs:0x10], rax": ("654889042510000000", 0x10),
    "mov [ebx+0x18], rax": ("6748894318", 0x18),
    "setz [rbx+3]": ("0f944303", 3),
    "fst qword [rbx+8]": ("dd5308", 8),
}


@pytest.mark.parametrize(("code", "offset"), WRITERS.values(), ids=WRITERS)
def test_a_write_is_caught_before_anything_is_written(code: str, offset: int) -> None:
    bench = Bench(bytes.fromhex(code), rbx=DATA, rdi=DATA + 0x10, rsi=SPARE, rax=0x1122, rcx=130)
    bench.engine.msr_write(0xC000_0101, DATA)
    bench.put(DATA, bytes(range(256)) * 16)
    before = bench.get(DATA, 4096)
    bench.restrict(DATA, RX)
    stop = bench.run() if "0f0143" not in code else bench.engine.step()
    assert stop == PageViolation(Gva(DATA + offset), Gpa(DATA + offset), WRITE)
    assert bench.rip == 0
    assert bench.get(DATA, 4096) == before


STACK_WRITERS = {"push rax": "50", "push [rbx]": "ff33", "call": "e800000000", "call rbx": "ffd3", "pushfq": "9c"}


@pytest.mark.parametrize("code", STACK_WRITERS.values(), ids=STACK_WRITERS)
def test_a_push_is_caught_where_the_stack_goes(code: str) -> None:
    bench = Bench(bytes.fromhex(code), rbx=SPARE, rsp=DATA + 0x80)
    bench.restrict(DATA, RX)
    assert bench.run() == PageViolation(Gva(DATA + 0x78), Gpa(DATA + 0x78), WRITE)
    assert bench.engine.get("rsp") == DATA + 0x80


READERS = {
    "mov rax, [rbx]": ("488b03", 0),
    "cmp [rbx+4], eax": ("394304", 4),
    "add [rbx+8], rax": ("48014308", 8),
    "lodsb": ("ac", 0x10),
    "movsb": ("a4", 0x10),
    "push [rbx]": ("ff33", 0),
    "jmp [rbx+0x10]": ("ff6310", 0x10),
    "fxrstor [rbx+0x200]": ("0fae8b00020000", 0x200),
    "lgdt [rbx]": ("0f0113", 0),
    "xlatb": ("d7", 0x22),
}


@pytest.mark.parametrize(("code", "offset"), READERS.values(), ids=READERS)
def test_a_read_is_caught(code: str, offset: int) -> None:
    bench = Bench(bytes.fromhex(code), rbx=DATA, rsi=DATA + 0x10, rdi=SPARE, rax=0x22)
    bench.restrict(DATA, NOTHING)
    assert bench.engine.step() == PageViolation(Gva(DATA + offset), Gpa(DATA + offset), READ)
    assert bench.rip == 0


def test_a_pop_and_a_return_read_the_stack() -> None:
    for code in ("58", "c3", "c9", "48cf"):
        bench = Bench(bytes.fromhex(code), rsp=DATA + 0x40, rbp=DATA + 0x40)
        bench.restrict(DATA, NOTHING)
        assert bench.run() == PageViolation(Gva(DATA + 0x40), Gpa(DATA + 0x40), READ)


def test_an_alias_is_caught_by_its_frame_and_reported_by_its_address() -> None:
    bench = Bench(bytes.fromhex("488903"), rbx=HIGH + DATA + 8, rax=1)
    bench.restrict(DATA, R)
    assert bench.run() == PageViolation(Gva(HIGH + DATA + 8), Gpa(DATA + 8), WRITE)


def test_a_read_after_a_write_that_was_allowed_is_still_caught() -> None:
    bench = Bench(bytes.fromhex("488903 488b0b"), rbx=DATA, rax=7)
    bench.restrict(DATA, W)
    assert bench.run() == PageViolation(Gva(DATA), Gpa(DATA), READ)
    assert bench.rip == 3
    assert bench.get(DATA) == (7).to_bytes(8, "little")


def test_rights_taken_away_hold_for_code_that_ran_before() -> None:
    bench = Bench(bytes.fromhex("488903"), rbx=DATA, rax=7)
    assert bench.run() == Halted()
    bench.restrict(DATA, RX)
    assert bench.run_at(CODE) == PageViolation(Gva(DATA), Gpa(DATA), WRITE)
    bench.restrict(DATA, 7)
    assert bench.run_at(CODE) == Halted()


def test_rights_do_not_count_for_a_processor_that_enforces_none() -> None:
    bench = Bench(bytes.fromhex("488903"), rbx=DATA, rax=7)
    bench.restrict(DATA, NOTHING)
    bench.engine.enforcing = False
    assert bench.run() == Halted()
    assert bench.get(DATA) == (7).to_bytes(8, "little")


@pytest.mark.parametrize(("denied", "page"), [(DATA, DATA), (DATA + 0x1000, DATA + 0x1000)])
def test_a_store_over_a_page_end_writes_neither_half(denied: int, page: int) -> None:
    at = DATA + 0xFFC
    bench = Bench(bytes.fromhex("488903"), rbx=at, rax=0xFFFF_FFFF_FFFF_FFFF)
    bench.restrict(denied, RX)
    expected = max(at, page)
    assert bench.run() == PageViolation(Gva(expected), Gpa(expected), WRITE)
    assert bench.get(at) == bytes(8)


def test_a_store_into_two_denied_pages_is_caught_once_for_each() -> None:
    at = DATA + 0xFFC
    bench = Bench(bytes.fromhex("488903"), rbx=at, rax=0x1122_3344_5566_7788)
    bench.restrict(DATA, RX)
    bench.restrict(DATA + 0x1000, RX)
    assert bench.run() == PageViolation(Gva(at), Gpa(at), WRITE)
    lifted = {DATA >> 12: WRITE}
    assert bench.engine.step(lifted) == PageViolation(Gva(DATA + 0x1000), Gpa(DATA + 0x1000), WRITE)
    assert bench.get(at) == bytes(8)
    assert bench.engine.step(lifted | {(DATA >> 12) + 1: WRITE}) == BudgetSpent()
    assert bench.get(at) == bytes.fromhex("8877665544332211")


def test_a_step_lifts_rights_for_one_instruction() -> None:
    bench = Bench(bytes.fromhex("488903 488903"), rbx=DATA, rax=7)
    bench.restrict(DATA, RX)
    assert bench.run() == PageViolation(Gva(DATA), Gpa(DATA), WRITE)
    assert bench.engine.step({DATA >> 12: WRITE}) == BudgetSpent()
    assert bench.get(DATA) == (7).to_bytes(8, "little")
    assert bench.run() == PageViolation(Gva(DATA), Gpa(DATA), WRITE)
    assert bench.rip == 3


def test_a_string_store_stops_at_each_element() -> None:
    bench = Bench(bytes.fromhex("f348ab"), rdi=DATA + 0xFF0, rcx=4, rax=0x55)
    bench.restrict(DATA + 0x1000, RX)
    seen = []
    while isinstance(stop := bench.run(), PageViolation):
        seen.append((stop.gpa, bench.engine.get("rcx")))
        assert bench.engine.step({(DATA >> 12) + 1: WRITE}) == BudgetSpent()
    assert seen == [(DATA + 0x1000, 2), (DATA + 0x1008, 1)]
    assert bench.get(DATA + 0xFF0, 32) == (0x55).to_bytes(8, "little") * 4


def test_a_jump_into_a_page_without_execute_is_caught_at_its_target() -> None:
    bench = Bench(bytes.fromhex("ffe3"), rbx=DATA + 0x123)
    bench.put(DATA + 0x123, b"\xf4")
    bench.restrict(DATA, RW)
    assert bench.run() == PageViolation(Gva(DATA + 0x123), Gpa(DATA + 0x123), FETCH)
    assert bench.rip == DATA + 0x123 - CODE
    bench.restrict(DATA, X)
    assert bench.run() == Halted()


def test_execute_taken_away_from_code_that_ran_before() -> None:
    bench = Bench(bytes.fromhex("ffe3"), rbx=DATA)
    bench.put(DATA, b"\xf4")
    assert bench.run() == Halted()
    bench.restrict(DATA, RW)
    assert bench.run_at(CODE) == PageViolation(Gva(DATA), Gpa(DATA), FETCH)


class TestPageEnds:
    """Unicorn translates over a page's end, and asks for the next page before what precedes it has run."""

    def test_running_into_a_denied_page_is_caught_there(self) -> None:
        bench = Bench()
        bench.put(CODE + 0xFF0, bytes.fromhex("48ffc1") * 5 + b"\x90" + bytes.fromhex("48ffc1 f4"))
        bench.restrict(CODE + 0x1000, RW)
        assert bench.run_at(CODE + 0xFF0) == PageViolation(Gva(CODE + 0x1000), Gpa(CODE + 0x1000), FETCH)
        assert (bench.rip, bench.engine.get("rcx")) == (0x1000, 5)
        assert bench.engine.step({(CODE >> 12) + 1: FETCH}) == BudgetSpent()
        assert (bench.rip, bench.engine.get("rcx")) == (0x1003, 6)

    def test_what_comes_before_the_denied_page_is_caught_first(self) -> None:
        bench = Bench(rbx=DATA, rax=1)
        bench.put(CODE + 0xFFA, bytes.fromhex("488903 48ffc1"))
        bench.restrict(CODE + 0x1000, RW)
        bench.restrict(DATA, RX)
        assert bench.run_at(CODE + 0xFFA) == PageViolation(Gva(DATA), Gpa(DATA), WRITE)
        assert bench.engine.step({DATA >> 12: WRITE}) == BudgetSpent()
        assert bench.run() == PageViolation(Gva(CODE + 0x1000), Gpa(CODE + 0x1000), FETCH)
        assert (bench.rip, bench.engine.get("rcx")) == (0x1000, 1)

    def test_an_instruction_that_crosses_is_caught_where_the_denied_page_begins(self) -> None:
        bench = Bench()
        bench.put(CODE + 0xFF8, b"\x90" * 6 + bytes.fromhex("48ffc1 f4"))
        bench.restrict(CODE + 0x1000, RW)
        assert bench.run_at(CODE + 0xFF8) == PageViolation(Gva(CODE + 0x1000), Gpa(CODE + 0x1000), FETCH)
        assert bench.rip == 0xFFE
        assert bench.engine.step({(CODE >> 12) + 1: FETCH}) == BudgetSpent()
        assert bench.engine.get("rcx") == 1

    def test_a_step_before_the_page_end_is_one_step(self) -> None:
        bench = Bench()
        bench.put(CODE + 0xFF0, bytes.fromhex("48ffc1") * 5 + b"\x90")
        bench.restrict(CODE + 0x1000, RW)
        bench.set(rip=CODE + 0xFF0)
        for count in range(1, 6):
            assert bench.engine.step() == BudgetSpent()
            assert bench.engine.get("rcx") == count

    def test_a_page_that_is_hidden_once_shows_its_code_afterwards(self) -> None:
        bench = Bench()
        bench.put(CODE + 0xFFD, bytes.fromhex("48ffc1 48ffc2 f4"))
        bench.restrict(CODE + 0x1000, RW)
        assert bench.run_at(CODE + 0xFFD) == PageViolation(Gva(CODE + 0x1000), Gpa(CODE + 0x1000), FETCH)
        bench.restrict(CODE + 0x1000, 7)
        assert bench.run_at(CODE + 0xFFD) == Halted()
        assert (bench.engine.get("rcx"), bench.engine.get("rdx")) == (2, 1)
