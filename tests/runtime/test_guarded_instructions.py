"""Real instructions on guarded memory: none of them changes a guarded byte, and each does all it does or nothing.

What an instruction does is learnt from a machine without a guard (`tests.support.unguarded_bench`). On the guarded one
it must then have done the same, if it touches nothing that is guarded; else it must have been stepped over as if it had
never stood there, if nothing but its store is lost, or have raised #GP with everything as it was before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from policyc.addresses import PAGE_SIZE
from policyc.kvmi import V7, V12, Dialect
from tests.support.guarded_bench import Guarded, StuckError
from tests.support.instruction_forms import FORMS, Form, form_named
from tests.support.instruction_rows import (
    DATA_REGISTERS,
    LOADS,
    SOURCE,
    STORES,
    UNCERTAIN,
    Row,
    assemble,
)
from tests.support.laboratory import (
    CODE_PAGES,
    DATA,
    EXCEPTION_FRAME,
    FIXUP,
    GUARDED_READS,
    GUARDED_WRITES,
    HEAD,
    LAB,
    OBJECT,
    PLAIN,
    SECRET,
    SECRET_HEAD,
    SOURCE_AT,
    TAIL,
    Outcome,
    Span,
    low,
)
from tests.support.unguarded_bench import Turn, Unguarded, UnknownInstructionError, spans_by_page

STEPPING = True
"""Whether the enforcer steps what CONTINUE doesn't perform: kvmi-v12 repeats the event for such an instruction."""

GENERATIONS = {"v7": V7, "v12": V12}
BENCHES = [(dialect, cpu) for dialect in GENERATIONS.values() for cpu in ("intel", "amd")]
BASE = form_named("base")
GENERAL_PROTECTION = 13
ON_AMD = frozenset({"on", "below", "above"})
GUARDS = (*GUARDED_WRITES, *GUARDED_READS)
UNTRUSTED = LAB + CODE_PAGES * PAGE_SIZE
"""Code that anyone may write: the size of its stores isn't believed."""


@dataclass(frozen=True)
class Placement:
    """Where an instruction's bytes come to lie.

    Attributes:
        target: the operand's address.
        denied: whether guarded bytes are touched; None where that depends on what is known of the code.
    """

    name: str
    target: int
    denied: bool | None


@cache
def unguarded(cpu: str) -> Unguarded:
    return Unguarded(cpu)


_benches: dict[tuple[str, str], Guarded] = {}


def guarded(dialect: Dialect, cpu: str) -> tuple[Guarded, int]:
    """An armed guest with nothing under way, and where the next instruction goes."""
    key = (dialect.name, cpu)
    bench = _benches.get(key)
    slot = bench.slot() if bench is not None and bench.intact else None
    if bench is None or slot is None:
        bench = _benches[key] = Guarded(dialect, cpu)
        slot = bench.slot()
    assert slot is not None
    return bench, slot


def prepared(row: Row, form: Form, at: int, target: int) -> tuple[bytes, dict[str, int], int | None]:
    """Code, registers, and what memory is filled with."""
    code, address = assemble(row, form, at, low(target) if form.low and row.has_operand else target)
    given_ = {name: SOURCE_AT if value == SOURCE else int(value) for name, value in row.registers.items()}
    fill = FIXUP if row.fill == "halt" else row.fill
    assert not isinstance(fill, str)
    return code, DATA_REGISTERS | given_ | address | {"rflags": row.flags}, fill


@cache
def extent(row: Row, cpu: str, *, written: bool) -> tuple[int, int]:
    """The first byte that is touched and the one after the last, from the operand's address."""
    turns, _ = unguarded(cpu).run(LAB, *prepared(row, BASE, LAB, PLAIN.start))
    spans = [
        span
        for turn in turns
        for pieces in spans_by_page(turn.accesses, written=written)
        for span in pieces
        if abs(span.start - PLAIN.start) < PAGE_SIZE
    ]
    return min(span.start for span in spans) - PLAIN.start, max(span.end for span in spans) - PLAIN.start


def placements(row: Row, cpu: str, *, written: bool) -> Iterator[Placement]:
    """On, across, beside and below guarded bytes, as near as the operand's alignment allows."""
    lo, hi = extent(row, cpu, written=written)
    guard = OBJECT if written else SECRET_HEAD if row.stack else SECRET

    def down(address: int) -> int:
        return address - address % row.align

    def up(address: int) -> int:
        return address + -address % row.align

    yield Placement("on", down(guard.start - lo), True)
    yield Placement("first byte", up(guard.start + 1 - hi), True)
    yield Placement("last byte", down(guard.end - 1 - lo), True)
    yield Placement("just below", down(guard.start - hi), None)
    yield Placement("below", down(guard.start - max(hi, lo + row.at_most)), None)
    yield Placement("far below", down(guard.start - UNCERTAIN - lo), False if hi - lo <= UNCERTAIN else None)
    yield Placement("above", up(guard.end - lo), False)
    if written and hi - lo > row.align:
        yield Placement("over a page's end into", up(HEAD.start + 1 - hi), True)
        yield Placement("over a page's end out of", down(TAIL.end - 1 - lo), True)


@dataclass(frozen=True)
class Denial:
    """Which turn of an instruction touches guarded bytes first, and how."""

    turn: int
    written: bool


def denial_of(row: Row, turns: Sequence[Turn], dialect: Dialect, *, trusted: bool) -> Denial | None:
    """What the tool has to deny, as far as it can know; a processor reads before it writes."""
    whole_page = row.unplaced and dialect is V12 and STEPPING
    for number, turn in enumerate(turns):
        for written, guards in ((False, GUARDED_READS), (True, GUARDED_WRITES)):
            for pieces in spans_by_page(turn.accesses, written=written):
                size = sum(piece.end - piece.start for piece in pieces)
                counted = max(size, row.at_most) if trusted else UNCERTAIN
                if whole_page:
                    # No page can be opened for writes alone, so what isn't known may be read as well.
                    whole = GUARDS if written else GUARDED_READS
                    denied = any(is_denied(page_of(piece), PAGE_SIZE, whole) for piece in pieces)
                else:
                    denied = any(is_denied(piece.start, counted, guards) for piece in pieces)
                if denied:
                    return Denial(number, written)
    return None


def page_of(piece: Span) -> int:
    """Where the page of an access begins."""
    return piece.start - piece.start % PAGE_SIZE


def is_denied(start: int, size: int, guards: Sequence[Span]) -> bool:
    """Whether an access counts as one to guarded bytes. What lies on the next page is an event of its own."""
    return any(guard.meets(start, min(start + size, (start // PAGE_SIZE + 1) * PAGE_SIZE)) for guard in guards)


def fault_cannot_be_delivered(row: Row, rsp: int, *, trusted: bool) -> bool:
    """Whether the frame of a fault would be pushed onto guarded bytes, or so near that it counts."""
    counted = (row.at_most or 8) if trusted else UNCERTAIN
    top = rsp & ~15
    return any(guard.meets(top - EXCEPTION_FRAME, top) for guard in GUARDS) or is_denied(top - 8, counted, GUARDS)


@dataclass(frozen=True)
class Case:
    """An instruction somewhere, and what it does there on a machine without a guard.

    Attributes:
        denied: what is to be denied of it.
    """

    row: Row
    form: Form
    at: int
    place: Placement
    trusted: bool
    turns: Sequence[Turn]
    plain: Outcome
    denied: Denial | None

    def __str__(self) -> str:
        code, _, _ = prepared(self.row, self.form, self.at, self.place.target)
        trust = "trusted" if self.trusted else "untrusted"
        return f"{self.row.name} ({code.hex()}, {self.form.name}, {trust} code) {self.place.name}"


def case_of(row: Row, form: Form, place: Placement, slot: int, dialect: Dialect, cpu: str, *, trusted: bool) -> Case:
    """Run an instruction without a guard."""
    at = (LAB if trusted else UNTRUSTED) + slot
    turns, plain = unguarded(cpu).run(at, *prepared(row, form, at, place.target))
    return Case(row, form, at, place, trusted, turns, plain, denial_of(row, turns, dialect, trusted=trusted))


def check(bench: Guarded, case: Case, *, either: bool = False) -> None:
    """Run it with one, and compare.

    Args:
        either: a fault will do where the store could be stepped over.
    """
    row, turns, plain, denied = case.row, case.turns, case.plain, case.denied
    what = str(case)
    if denied is not None and row.stack:
        rsp = turns[0].before.registers["rsp"]
        if fault_cannot_be_delivered(row, rsp, trusted=case.trusted):
            return
    try:
        found = bench.run(case.at, *prepared(row, case.form, case.at, case.place.target))
    except StuckError as error:
        raise StuckError(f"{what}: {error}") from None
    begun = turns[0].before
    for guard in GUARDED_WRITES:
        assert found.bytes_at(guard) == begun.bytes_at(guard), f"{what}: guarded bytes were changed"
    if denied is None:
        assert_same(found, halted(plain), what)
        assert bench.done == [], what
        return
    after = turns[denied.turn + 1].before if denied.turn + 1 < len(turns) else plain
    before = refused(turns[denied.turn], after)
    if row.skips and denied.written and not (either and found.fault is not None):
        skipped = halted(before, plain.registers["rip"])
        assert_same(halted(replace(plain, memory=before.memory)), skipped, f"{what}: more than the store would be lost")
        assert_same(found, skipped, what)
        assert bench.done == ["skipped the instruction"], what
    else:
        fault = replace(halted(before, FIXUP), fault=(GENERAL_PROTECTION, case.at))
        assert_same(without_frame(found, before), without_frame(fault, before), what)
        # What isn't stepped is told by another record than what a rule denies.
        assert bench.done == ["injected exception 13"] or (row.unplaced and STEPPING), what


def refused(turn: Turn, after: Outcome) -> Outcome:
    """The state when a turn's store has been refused.

    A processor has written nothing then. Unicorn makes the stores of SSE, x87 and their kin in pieces, and those before
    the page that is refused are done.
    """
    memory = bytearray(turn.before.memory)
    for access in turn.accesses:
        pages = range(access.start // PAGE_SIZE, (access.end - 1) // PAGE_SIZE + 1)
        if not access.written or any(guard.start // PAGE_SIZE in pages for guard in GUARDS):
            break
        memory[access.start - DATA : access.end - DATA] = after.memory[access.start - DATA : access.end - DATA]
    return replace(turn.before, memory=bytes(memory))


def halted(outcome: Outcome, rip: int | None = None) -> Outcome:
    """With RIP behind the HLT at `rip`, or where it was."""
    start = outcome.registers["rip"] if rip is None else rip
    return replace(outcome, registers=dict(outcome.registers) | {"rip": start + 1})


def without_frame(outcome: Outcome, before: Outcome) -> Outcome:
    """Without what the processor pushed for the fault's handler, and the handler below."""
    end = (before.registers["rsp"] & ~15) - DATA
    memory = outcome.memory[: end - EXCEPTION_FRAME] + bytes(EXCEPTION_FRAME) + outcome.memory[end:]
    return replace(outcome, memory=memory)


def assert_same(found: Outcome, expected: Outcome, what: str) -> None:
    """All of the processor's state and of memory."""
    registers = {
        name: (hex(value), hex(expected.registers[name]))
        for name, value in found.registers.items()
        if value != expected.registers[name]
    }
    assert (registers, found.fault) == ({}, expected.fault), what
    assert found.vectors == expected.vectors, what
    if found.memory != expected.memory:
        columns = zip(found.memory, expected.memory, strict=True)
        assert [hex(DATA + at) for at, (ours, theirs) in enumerate(columns) if ours != theirs] == [], what


def cases() -> Iterator[object]:
    for dialect, cpu in BENCHES:
        for row in (*STORES, *LOADS):
            for denied in (True, False):
                marks = []
                if row.needs_step and dialect is V12 and not denied and not STEPPING:
                    reason = "kvmi-v12 repeats the event for what KVM's emulator doesn't know, until it is stepped"
                    marks.append(pytest.mark.xfail(raises=StuckError, strict=True, reason=reason))
                if row.spoils and (denied or "rotation" in row.spoils):
                    marks.append(
                        pytest.mark.xfail(strict=True, reason=f"where Unicorn's store is refused, {row.spoils}")
                    )
                kind = "guarded" if denied else "unguarded"
                yield pytest.param(row, denied, dialect, cpu, id=f"{dialect.name}-{cpu}-{row}-{kind}", marks=marks)


@pytest.mark.parametrize(("row", "denied", "dialect", "cpu"), list(cases()))
def test_instruction__does_all_or_nothing(row: Row, denied: bool, dialect: Dialect, cpu: str) -> None:
    seen = 0
    for place in placements(row, cpu, written=row in STORES):
        # Trust and addresses have nothing to do with whose processor it is: one of each kind is enough.
        if cpu == "amd" and place.name not in ON_AMD:
            continue
        for trusted in (True, False) if cpu == "intel" else (True,):
            bench, slot = guarded(dialect, cpu)
            case = case_of(row, BASE, place, slot, dialect, cpu, trusted=trusted)
            if place.denied is not None and (trusted or place.denied) and not row.unplaced:
                assert (case.denied is not None) is place.denied, f"{case} is a bad case"
            if (case.denied is not None) is denied:
                seen += 1
                check(bench, case)
    assert seen or row.unplaced


OPERANDS = [row for row in (*STORES, *LOADS) if row.has_operand and row.align == 1 and not row.spoils]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_addressing__makes_no_difference(form: Form) -> None:
    for row in OPERANDS:
        if row.misplaced and form.name == "rip-relative":
            continue
        for place in placements(row, "intel", written=row in STORES):
            bench, slot = guarded(V7, "intel")
            check(bench, case_of(row, form, place, slot, V7, "intel", trusted=True))


@settings(max_examples=300, deadline=None, phases=[Phase.explicit, Phase.generate, Phase.shrink])
@given(
    row=st.sampled_from([row for row in (*STORES, *LOADS) if not row.spoils]),
    form=st.sampled_from(FORMS),
    generation=st.sampled_from(sorted(GENERATIONS)),
    cpu=st.sampled_from(["intel", "amd"]),
    guard=st.sampled_from([OBJECT, HEAD, TAIL, SECRET, SECRET_HEAD]),
    offset=st.integers(-0x240, 0x60),
    trusted=st.booleans(),
)
def test_any_instruction_anywhere__does_all_or_nothing(
    row: Row, form: Form, generation: str, cpu: str, guard: Span, offset: int, trusted: bool
) -> None:
    assume(not (row.misplaced and form.name == "rip-relative"))
    # The emulator places XSAVE's read of its header at the operand's start.
    assume(row.name != "xsave" or guard in GUARDED_WRITES)
    dialect = GENERATIONS[generation]
    target = guard.start + offset
    bench, slot = guarded(dialect, cpu)
    place = Placement(f"at {guard.start:#x}{offset:+#x}", target - target % row.align, None)
    case = case_of(row, form if row.has_operand else BASE, place, slot, dialect, cpu, trusted=trusted)
    if case.denied is not None or not row.needs_step or dialect is V7 or STEPPING:
        check(bench, case)


PREFIXED = [row for row in STORES if row.name in ("mov dword", "mov byte", "add dword", "xchg", "not qword", "stosd")]


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.generate, Phase.shrink])
@given(
    row=st.sampled_from(PREFIXED),
    prefixes=st.lists(st.sampled_from(["26", "2e", "36", "3e", "66", "f2", "f3", "40", "48", "4c"]), max_size=9),
    offset=st.integers(-0x10, 0x40),
    generation=st.sampled_from(sorted(GENERATIONS)),
)
def test_prefixes__mislead_nobody(row: Row, prefixes: list[str], offset: int, generation: str) -> None:
    """Redundant ones, ignored ones, in any order: a disassembler's length is the processor's."""
    code = " ".join([*prefixes, row.code.removeprefix("W ").removeprefix(". ")])
    given_ = replace(row, code=code, aim={"rdi": 0, "rbx": 0}, registers={"rcx": 2})
    if "/" in row.code:
        given_ = replace(given_, code=code.replace(f"/{row.code[-1]}", f"{int(row.code[-1]) << 3 | 3:02x}"))
    bench, slot = guarded(GENERATIONS[generation], "intel")
    place = Placement(f"at {offset:+#x}", OBJECT.start + offset, None)
    try:
        case = case_of(given_, BASE, place, slot, GENERATIONS[generation], "intel", trusted=True)
    except UnknownInstructionError:
        assume(False)
        raise
    check(bench, case, either=True)
