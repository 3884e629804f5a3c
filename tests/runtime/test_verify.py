"""Guarded bytes read again: what changes without an event is told, what may change is left alone."""

from __future__ import annotations

import pytest

from policyc.kvmi import V7, V12, Command, Dialect, ErrorCode, ReadPhysical
from policyc.runtime.locate import ArmingOptions
from policyc.runtime.records import StateRecord
from policyc.runtime.state import Phase
from policyc.runtime.steps import Leave
from tests.support.scripted_kernel import IMAGE_BASE, Conversation, ScriptedKernel, compile_plan, gpa_of

TABLE = IMAGE_BASE + 0x4240
GUARDED = IMAGE_BASE + 0x6104
EVERY = 30.0


def armed(text: str, dialect: Dialect = V7, *, monitor: bool = False, every: float = EVERY) -> Conversation:
    talk = Conversation(compile_plan(text), ScriptedKernel(dialect), ArmingOptions(verify=every))
    talk.state.monitor = monitor
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    talk.pass_time(1)
    return talk


def dma(talk: Conversation, link_address: int, data: bytes) -> None:
    """Write to guest memory as a device does."""
    talk.peer.memory.write(gpa_of(link_address), data)


def told(talk: Conversation) -> list[tuple[str, object, object]]:
    return [
        (record.fact, record.details["gpa"], record.details["rules"])
        for record in talk.records
        if isinstance(record, StateRecord) and record.severity == "critical"
    ]


@pytest.mark.parametrize("dialect", [V7, V12], ids=lambda dialect: dialect.name)
def test_verify__a_write_without_an_event_is_told_and_degrades(dialect: Dialect) -> None:
    talk = armed("table: deny write to kernel:sys_call_table", dialect)
    dma(talk, TABLE + 0x44, b"\xff" * 0x10)
    talk.pass_time(EVERY - 2)
    assert (told(talk), talk.state.phase) == ([], Phase.ARMED)
    talk.pass_time(3)
    start = gpa_of(TABLE + 0x40)
    fact = f"guarded bytes in [{start:#x}, {start + 0x40:#x}) changed without an event"
    assert told(talk) == [(fact, hex(start), ["table"])]
    assert talk.state.phase is Phase.DEGRADED
    talk.pass_time(2 * EVERY)
    assert len(told(talk)) == 1


def test_verify__a_second_change_is_told_again() -> None:
    talk = armed("deny write to kernel:sys_call_table")
    for content in (b"\x01", b"\x02"):
        dma(talk, TABLE, content)
        talk.pass_time(EVERY + 1)
    assert len(told(talk)) == 2


def test_verify__neighbours_on_the_page_may_change() -> None:
    talk = armed("deny write to kernel:guarded_object")
    dma(talk, GUARDED - 1, b"\xff")
    dma(talk, GUARDED + 0x10, b"\xff")
    talk.pass_time(EVERY + 1)
    assert told(talk) == []
    dma(talk, GUARDED + 0xF, b"\xff")
    talk.pass_time(EVERY + 1)
    assert len(told(talk)) == 1


@pytest.mark.parametrize(
    "text",
    [
        'deny write to kernel:sys_call_table except from kernel:schedule because "it may"',
        "deny write to kernel:sys_call_table when cpl == 3",
        "deny write to kernel:sys_call_table from kernel:schedule",
        "deny write to kernel:sys_call_table mode monitor",
        "log write to kernel:sys_call_table",
        "deny execute of kernel:guarded_object",
        "deny write to kernel:sys_call_table\nallow write to kernel:sys_call_table from kernel:schedule",
    ],
)
def test_verify__says_nothing_of_bytes_that_somebody_may_write(text: str) -> None:
    talk = armed(text)
    dma(talk, TABLE, b"\xff")
    dma(talk, GUARDED, b"\xff")
    talk.pass_time(2 * EVERY)
    assert told(talk) == []


def test_verify__a_second_rule_without_exception_keeps_everybody_out() -> None:
    text = 'a: deny write to kernel:sys_call_table except from kernel:schedule because "it may"\n'
    talk = armed(text + "b: deny write to kernel .rodata")
    dma(talk, TABLE, b"\xff")
    talk.pass_time(EVERY + 1)
    assert [rules for _, _, rules in told(talk)] == [["b"]]


@pytest.mark.parametrize(("monitor", "every"), [(True, EVERY), (False, 0.0)])
def test_verify__not_under_the_ceiling_and_not_when_it_is_off(monitor: bool, every: float) -> None:
    talk = armed("deny write to kernel:sys_call_table", monitor=monitor, every=every)
    talk.peer.commands.clear()
    talk.pass_time(100)
    assert not any(isinstance(command, ReadPhysical) for command in talk.peer.commands)


def test_verify__reads_in_batches_with_pauses() -> None:
    talk = Conversation(compile_plan("deny write to physical 0x100000..0x200000"), ScriptedKernel(V7), ArmingOptions())
    talk.connect()
    talk.peer.commands.clear()
    for _ in range(3):
        talk.pass_time(0.021)
        assert sum(isinstance(command, ReadPhysical) for command in talk.peer.commands) == 32
        talk.peer.commands.clear()


@pytest.mark.parametrize("refused", [1, 2])
def test_verify__memory_that_cannot_be_read_for_once_has_not_changed(refused: int) -> None:
    reads = 0

    def override(command: Command) -> ErrorCode | None:
        nonlocal reads
        reads += talk.state.phase is not Phase.BINDING and isinstance(command, ReadPhysical)
        return ErrorCode.ENOMEM if reads == refused and isinstance(command, ReadPhysical) else None

    talk = Conversation(
        compile_plan("deny write to kernel:sys_call_table"),
        ScriptedKernel(V7, override=override),
        ArmingOptions(verify=EVERY, self_test=False),
    )
    talk.connect()
    talk.pass_time(1)
    talk.pass_time(3 * EVERY)
    # What can't be read any more is told, what never could isn't: there is nothing that it could have been.
    assert [fact.rsplit(") ")[1] for fact, *_ in told(talk)] == ["can't be read any more"] * (refused - 1)
    dma(talk, TABLE, b"\xff")
    talk.pass_time(EVERY + 1)
    assert told(talk)[-1][0].endswith("changed without an event")


def test_verify__memory_that_can_no_longer_be_read_is_told_once() -> None:
    gone = False

    def override(command: Command) -> ErrorCode | None:
        return ErrorCode.ENOENT if gone and isinstance(command, ReadPhysical) else None

    talk = Conversation(
        compile_plan("deny write to kernel:sys_call_table"), ScriptedKernel(V7, override=override), ArmingOptions()
    )
    talk.connect()
    talk.pass_time(1)
    gone = True
    talk.pass_time(3 * EVERY)
    assert [fact.rsplit(") ")[1] for fact, *_ in told(talk)] == ["can't be read any more"]


def test_leaving__ends_it() -> None:
    talk = armed("deny write to kernel:sys_call_table")
    talk.feed(Leave("enough"))
    talk.pass_time(1)
    assert talk.disconnected == "the guest has been let go"
    assert talk.peer.rights == {}
