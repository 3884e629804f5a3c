"""What hostile code in the guest tries while the tool looks: real machine code on the emulator, in both dialects.

Whatever another vCPU does between an event and its answer is done here by the host, at the moment when a command is on
its way. Guarded bytes stay as they are, the strict side is taken, and the guest comes to an end.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policyc.addresses import PAGE_SIZE, Gpa
from policyc.kvmi import V7, V12, Command, Dialect, ReadPhysical, SetRegisters, TranslateGva
from policyc.runtime.steps import Leave
from tests.support.guarded_bench import Guarded, StuckError
from tests.support.laboratory import (
    CODE_PAGES,
    DATA,
    FIXUP,
    HEAD,
    LAB,
    LAB_GPA,
    OBJECT,
    PLAIN,
    POLICY,
    SECRET,
    STACK_TOP,
    Outcome,
)

STORE_PAGE = CODE_PAGES
UNTRUSTED = LAB + STORE_PAGE * PAGE_SIZE
SPARE_PAGE = CODE_PAGES + 8
MOV = bytes.fromhex("488903")  # mov [rbx], rax
MOVDQU = bytes.fromhex("f30f7f0b")  # movdqu [rbx], xmm1
FAULTED = ["injected exception 13"]
SKIPPED = ["skipped the instruction"]
HERE = 0x40
FILL = 0x1122334455667788
PARTED = f"""
text: deny write to kernel .text
before: deny write to virtual {HEAD.start - PAGE_SIZE:#x} size 16
head: deny write to virtual {HEAD.start:#x} size {HEAD.end - HEAD.start:#x}"""


@pytest.fixture(params=[V7, V12], ids=lambda dialect: dialect.name)
def bench(request: pytest.FixtureRequest) -> Guarded:
    dialect: Dialect = request.param
    return Guarded(dialect, "intel")


def at_first(kind: type[Command], do: Callable[[], None]) -> Callable[[Command], None]:
    """Do something once, when the first command of a kind is on its way."""
    left = [do]

    def meanwhile(command: Command) -> None:
        if isinstance(command, kind) and left:
            left.pop()()

    return meanwhile


def rewriting(bench: Guarded, at: int, code: bytes) -> Callable[[], None]:
    """Another vCPU stores other code."""
    return lambda: bench.lab.machine.memory.write(Gpa(LAB_GPA + at - LAB), code)


def bytes_before(bench: Guarded) -> bytes:
    """What the guarded object holds before anything runs."""
    bench.lab.prepare(LAB + HERE, b"", {}, None)
    bench.lab.vcpu.halted = True
    return bench.lab.outcome().bytes_at(OBJECT)


def run(bench: Guarded, at: int, code: bytes, target: int, **registers: int) -> Outcome:
    """Run an instruction on memory at RBX; the guarded object is what it was afterwards."""
    before = bytes_before(bench)
    outcome = bench.run(at, code, {"rbx": target, "rax": 0x4141414141414141} | registers)
    assert outcome.bytes_at(OBJECT) == before
    return outcome


def is_fault(outcome: Outcome, at: int) -> bool:
    """Whether the instruction has raised #GP, and the guest's fixup ended it."""
    return (outcome.fault, outcome.registers["rip"]) == ((13, at), FIXUP + 1)


# --- what a rule asks of the whole ---


@pytest.mark.parametrize("condition", ["when size >= 512", "when size > 300", "when gpa < 0x1000 or size > 300"])
def test_a_rule_on_large_stores__holds_for_each_page_of_one(condition: str) -> None:
    # The step is judged by what lies on each page: the size there isn't that of the store, which the rule asks for.
    bench = Guarded(V12, "intel", PARTED + f" {condition}")
    outcome = bench.run(LAB + HERE, bytes.fromhex("480fae07"), {"rdi": HEAD.start - 256}, fill=FILL)
    assert outcome.bytes_at(HEAD) == FILL.to_bytes(8, "little") * 4
    assert is_fault(outcome, LAB + HERE)


# --- code that changes ---


def test_code_rewritten_to_a_smaller_store__is_not_believed(bench: Guarded) -> None:
    at = UNTRUSTED + HERE
    bench.meanwhile = at_first(TranslateGva, rewriting(bench, at, b"\x88\x03\x90\x90"))  # mov [rbx], al
    outcome = run(bench, at, MOVDQU, OBJECT.start - 8)
    assert bench.done == SKIPPED
    assert outcome.registers["rip"] == at + 5  # past the two bytes that were seen, two NOPs, and the HLT


@pytest.mark.parametrize("code", ["06", "ff", "0f0b", "f4", "488703", "e800000000"])
def test_code_rewritten_to_no_store__raises_a_fault(bench: Guarded, code: str) -> None:
    at = UNTRUSTED + HERE
    bench.meanwhile = at_first(ReadPhysical, rewriting(bench, at, bytes.fromhex(code).ljust(15, b"\xf4")))
    outcome = run(bench, at, MOV, OBJECT.start)
    assert bench.done == FAULTED
    assert is_fault(outcome, at)


def test_code_rewritten_after_it_was_read__has_its_old_length_stepped_over(bench: Guarded) -> None:
    at = UNTRUSTED + HERE
    bench.meanwhile = at_first(SetRegisters, rewriting(bench, at, b"\x90" * 3))
    outcome = run(bench, at, MOV, OBJECT.start)
    assert bench.done == SKIPPED
    assert outcome.registers["rip"] == at + 4


def test_code_rewritten_while_a_store_beside_the_object_is_let_through__stores_where_it_was_seen_to(
    bench: Guarded,
) -> None:
    """KVM's emulator performs what it has decoded, not what stands there when the answer comes."""
    at, beside = UNTRUSTED + HERE, OBJECT.start - 0x700
    aside, onto = (b"\x48\x89\x83" + (place - beside).to_bytes(4, "little") for place in (beside, OBJECT.start))
    answered = bench.session.receive

    def receive(data: bytes) -> None:
        if bench.lab.vcpu.waiting is not None:
            rewriting(bench, at, onto)()
        answered(data)

    bench.session.receive = receive  # type: ignore[method-assign]  # the moment before the kernel has the answer
    outcome = run(bench, at, aside, beside)
    assert outcome.memory[beside - DATA :][:8] == b"\x41" * 8
    assert bench.done == []


# --- page tables that change ---


EXCEPTED = POLICY.replace(
    "size 0x40\nhead", f'size 0x40 except from virtual {LAB:#x} size 0x1000 because "it may"\nhead'
)


@pytest.fixture(params=[V7, V12], ids=lambda dialect: dialect.name)
def excepting(request: pytest.FixtureRequest) -> Guarded:
    """Guarded, but code of the laboratory's first page may write to the object."""
    assert EXCEPTED != POLICY
    dialect: Dialect = request.param
    bench = Guarded(dialect, "intel", EXCEPTED)
    memory = bench.lab.machine.memory
    memory.write(Gpa(LAB_GPA + SPARE_PAGE * PAGE_SIZE), memory.read(Gpa(LAB_GPA), PAGE_SIZE))
    return bench


def test_excepted_code__may_write(excepting: Guarded) -> None:
    outcome = excepting.run(LAB + HERE, MOV, {"rbx": OBJECT.start, "rax": 0x41})
    assert outcome.bytes_at(OBJECT)[:8] == b"\x41" + bytes(7)
    assert excepting.done == []


def test_excepted_code_on_another_frame__is_not_excepted(excepting: Guarded) -> None:
    memory = excepting.lab.machine.memory
    memory.write(Gpa(LAB_GPA + SPARE_PAGE * PAGE_SIZE + HERE), MOV + b"\xf4")
    excepting.lab.map(0, SPARE_PAGE)
    run(excepting, LAB + HERE, MOV, OBJECT.start)
    assert excepting.done == SKIPPED


def test_excepted_code_moved_to_another_frame_meanwhile__is_not_excepted(excepting: Guarded) -> None:
    excepting.meanwhile = at_first(TranslateGva, lambda: excepting.lab.map(0, SPARE_PAGE))
    outcome = run(excepting, LAB + HERE, MOV, OBJECT.start)
    assert excepting.done in (SKIPPED, FAULTED)
    assert outcome.fault is None or is_fault(outcome, LAB + HERE)


def test_code_that_is_unmapped_meanwhile__raises_a_fault(bench: Guarded) -> None:
    bench.meanwhile = at_first(TranslateGva, lambda: bench.lab.map(STORE_PAGE, None))
    assert is_fault(run(bench, UNTRUSTED + HERE, MOV, OBJECT.start), UNTRUSTED + HERE)
    assert bench.done == FAULTED


@pytest.mark.parametrize("inside", [1, 2, 3])
def test_code_whose_second_page_is_unmapped_meanwhile__raises_a_fault(bench: Guarded, inside: int) -> None:
    at = UNTRUSTED + PAGE_SIZE - inside
    bench.meanwhile = at_first(TranslateGva, lambda: bench.lab.map(STORE_PAGE + 1, None))
    assert is_fault(run(bench, at, MOVDQU, OBJECT.start), at)
    assert bench.done == FAULTED


@pytest.mark.parametrize("inside", [1, 2, 3])
def test_code_over_a_page_s_end__is_decoded_whole(bench: Guarded, inside: int) -> None:
    at = UNTRUSTED + PAGE_SIZE - inside
    assert run(bench, at, MOVDQU, OBJECT.start).registers["rip"] == at + 5
    assert bench.done == SKIPPED


def test_code_unmapped_after_it_was_decoded__takes_the_guest_s_own_page_fault(bench: Guarded) -> None:
    bench.meanwhile = at_first(SetRegisters, lambda: bench.lab.map(STORE_PAGE, None))
    outcome = run(bench, UNTRUSTED + HERE, MOV, OBJECT.start)
    assert outcome.fault == (14, UNTRUSTED + HERE + 3)


# --- many events ---


@pytest.mark.parametrize(("below", "done"), [(0, 0), (100, 100)])
def test_rep_with_a_million_turns__ends_at_the_first_guarded_byte(bench: Guarded, below: int, done: int) -> None:
    outcome = run(bench, LAB + HERE, b"\xf3\xaa", 0, rdi=OBJECT.start - below, rcx=1_000_000, rax=0x41, rsp=PLAIN.start)
    assert is_fault(outcome, LAB + HERE)
    assert outcome.registers["rcx"] == 1_000_000 - done
    assert outcome.memory[OBJECT.start - below - DATA :][:below] == b"\x41" * below
    assert bench.done == FAULTED


def test_read_and_write_in_turn__are_each_judged() -> None:
    """A logged read, then the denied write of the same instruction, which begins anew each time."""
    text = f"r: log read, execute of virtual {OBJECT.start:#x} size 64\n" + POLICY
    for dialect in (V7, V12):
        bench = Guarded(dialect, "intel", text)
        outcome = run(bench, LAB + HERE, bytes.fromhex("480103"), OBJECT.start)
        assert bench.done == ["let through", *FAULTED]
        assert is_fault(outcome, LAB + HERE)
        assert outcome.registers["rflags"] == 2


def test_copy_from_a_secret_to_a_guarded_object__is_stopped_at_the_read(bench: Guarded) -> None:
    outcome = run(bench, LAB + HERE, b"\x48\xa5", 0, rsi=SECRET.start, rdi=OBJECT.start)
    assert is_fault(outcome, LAB + HERE)
    assert (outcome.registers["rsi"], outcome.registers["rdi"]) == (SECRET.start, OBJECT.start)
    assert bench.done == FAULTED


def test_many_denied_stores_in_a_row__are_each_stepped_over(bench: Guarded) -> None:
    outcome = run(bench, UNTRUSTED, MOV * 8, OBJECT.start)
    assert bench.done == SKIPPED * 8
    assert outcome.registers["rip"] == UNTRUSTED + 3 * 8 + 1


# --- code that may not be executed ---


@pytest.mark.parametrize(("code", "pushed"), [("ffe0", 0), ("ffd0", 8)], ids=["jmp", "call"])
@pytest.mark.parametrize("offset", [0, 0x3F])
def test_jump_to_guarded_code__raises_a_fault_at_its_target(
    bench: Guarded, code: str, pushed: int, offset: int
) -> None:
    target = SECRET.start + offset
    at = UNTRUSTED + HERE
    outcome = bench.run(at, bytes.fromhex(code), {"rax": target}, handled=target, content={target: b"\xb0\x41\xf4"})
    assert outcome.fault == (13, target)
    assert outcome.registers["rax"] == target
    assert outcome.registers["rsp"] == STACK_TOP - 0x800 - pushed
    assert bench.done == FAULTED


def test_code_that_runs_up_to_guarded_code__isn_t_executed_since_its_length_is_not_believed(bench: Guarded) -> None:
    target = SECRET.start - 3
    outcome = bench.run(
        UNTRUSTED + HERE, b"\xff\xe0", {"rax": target}, handled=target, content={target: b"\x90" * 3 + b"\xf4"}
    )
    assert outcome.fault == (13, target)


def test_code_behind_guarded_code__is_executed(bench: Guarded) -> None:
    outcome = bench.run(
        UNTRUSTED + HERE, b"\xff\xe0", {"rax": SECRET.end}, content={SECRET.end: b"\xb0\x41\xb4\x42\xf4"}
    )
    assert outcome.fault is None
    assert outcome.registers["rip"] == SECRET.end + 5
    assert outcome.registers["rax"] & 0xFFFF == 0x4241
    assert bench.done == []


# --- a stack on guarded memory ---


def test_fault_whose_frame_would_lie_on_guarded_bytes__keeps_its_vcpu_where_it_is(bench: Guarded) -> None:
    """No answer lets this code go on without a guarded byte changed, so it doesn't; nobody else is kept."""
    before = bytes_before(bench)
    with pytest.raises(StuckError):
        run(bench, LAB + HERE, b"\x50", 0, rsp=OBJECT.end)
    assert bench.lab.outcome().bytes_at(OBJECT) == before
    assert set(bench.done) == set(FAULTED)
    bench.feed(Leave("asked to leave"))
    bench.pump(limit=200)
    assert bench.state.left


@pytest.mark.parametrize("code", ["0f0b", "cc"])
def test_frame_pushed_down_over_guarded_bytes__is_denied_from_its_first_word(bench: Guarded, code: str) -> None:
    at, top = LAB + HERE, OBJECT.end + 0x10
    before = bytes_before(bench)
    try:
        outcome = bench.run(at, bytes.fromhex(code), {"rsp": top})
    except StuckError:
        outcome = bench.lab.outcome()
    assert outcome.bytes_at(OBJECT) == before
