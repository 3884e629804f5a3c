"""From the hello to the end of the connection: whoever comes, whatever they say, the guest goes on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gpa
from policyc.emulator.introspection import Introspection
from policyc.emulator.small_machine import SmallMachine
from policyc.kvmi import (
    DONE,
    V7,
    V12,
    Action,
    ControlCmdResponse,
    ControlEvents,
    ControlVmEvents,
    Dialect,
    Event,
    EventKind,
    GetInfo,
    GetInfoReply,
    Hello,
    PageAccess,
    PauseVcpu,
    Registers,
    Reply,
    SetRegisters,
    ToolConnection,
    WritePhysical,
    set_page,
)
from tests.support.emulator_tool import UUID, ScriptedTool

SECRET = b"the cookie"


def ticks(machine: SmallMachine) -> bool:
    before = machine.read_int("jiffies")
    machine.tick()
    machine.run_until_idle()
    return machine.read_int("jiffies") == before + 1


def test_a_tool_that_knows_the_secret_is_let_in(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect, secret=SECRET, answer=SECRET)
    assert tool.ask(GetInfo()) == GetInfoReply(1)


@pytest.mark.parametrize("answer", [None, b"another"])
def test_a_tool_that_does_not_is_left_without_an_answer(dialect: Dialect, answer: bytes | None) -> None:
    tool = ScriptedTool(dialect, secret=SECRET, answer=answer)
    assert len(tool.greeting) == 1
    assert tool.session.ended == "the tool doesn't know the secret"
    assert not tool.session.hooked


def test_messages_may_come_byte_by_byte(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.connection.send(GetInfo())
    tool.connection.send(PauseVcpu(0))
    for data in tool.connection.data_to_send():
        for at in range(len(data)):
            tool.session.receive(data[at : at + 1])
    reply, done, event = tool.pump()
    assert isinstance(reply, Reply)
    assert (reply.result, type(done), type(event)) == (GetInfoReply(1), Reply, Event)


def test_many_commands_in_one_read(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    for _ in range(200):
        tool.connection.send(GetInfo())
    tool.session.receive(b"".join(tool.connection.data_to_send()))
    assert [reply.result for reply in tool.pump() if isinstance(reply, Reply)] == [GetInfoReply(1)] * 200


def test_events_are_numbered_from_one_on_each_connection(dialect: Dialect) -> None:
    machine = SmallMachine.boot()
    for _ in range(2):
        tool = ScriptedTool(dialect, machine)
        for number in (1, 2, 3):
            event = tool.pause()
            assert event.seq == number
            assert tool.reply(event) == []
        tool.leave()


def test_nothing_of_one_connection_is_left_for_the_next(dialect: Dialect) -> None:
    machine = SmallMachine.boot()
    tool = ScriptedTool(dialect, machine)
    tool.restrict("guarded_object", PageAccess.R)
    tool.enable(EventKind.HYPERCALL)
    tool.leave()
    assert tool.session.ended == "the tool closed the connection"
    second = ScriptedTool(dialect, machine)
    run = second.start("hypercall")
    assert second.pump() == []
    assert second.finish(run).value == -1000
    run = second.start("straddle")
    assert second.pump() == []
    assert second.finish(run).changed
    assert ticks(machine)


def test_a_tool_that_leaves_while_the_guest_stands_still_lets_it_go_on(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.pause()
    tool.machine.tick()
    assert tool.pump() == []
    assert tool.machine.read_int("jiffies") == 0
    tool.leave()
    tool.machine.run_until_idle()
    assert tool.machine.read_int("jiffies") == 1


def test_the_vmm_asks_the_tool_to_leave(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.ask(ControlVmEvents(EventKind.UNHOOK, True))
    tool.session.unhook()
    event = tool.event()
    assert (event.kind, event.needs_reply) == (EventKind.UNHOOK, False)
    assert tool.session.ended is None
    assert tool.ask(set_page(tool.machine.gpa(tool.machine.symbol("_text")), PageAccess.RWX)) == DONE
    tool.leave()
    assert ticks(tool.machine)


def test_events_still_come_while_the_tool_is_about_to_leave(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.restrict("guarded_object", PageAccess.R)
    tool.ask(ControlVmEvents(EventKind.UNHOOK, True))
    tool.session.unhook()
    assert tool.event().kind is EventKind.UNHOOK
    run, event = tool.caught("straddle")
    assert tool.reply(event) == []
    assert tool.finish(run).changed
    tool.leave()
    assert ticks(tool.machine)


def test_a_tool_that_does_not_listen_is_cut_off(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.session.unhook()
    assert tool.session.ended == "unhooked by the VMM"
    tool.session.receive(b"anything")
    assert tool.session.outgoing() == b""


def test_an_answer_to_nothing_ends_the_connection_in_v12_alone() -> None:
    for dialect in (V7, V12):
        tool = ScriptedTool(dialect)
        event = tool.pause()
        tool.reply(event)
        stray = dialect.framing.event_reply.to_bytes(2, "little") + (16).to_bytes(2, "little") + bytes(4) + bytes(16)
        tool.session.receive(stray)
        assert (tool.session.ended is not None) == (dialect is V12)
        assert ticks(tool.machine)


def test_a_batch_without_replies() -> None:
    tool = ScriptedTool(V7)
    tool.connection.send(ControlCmdResponse(False, now=True))
    tool.connection.send(ControlEvents(0, EventKind.PF, True))
    tool.connection.send(set_page(tool.machine.gpa(tool.machine.symbol("guarded_object")), PageAccess.R))
    tool.connection.send(ControlCmdResponse(True, now=True))
    assert [type(reply) for reply in tool.pump()] == [Reply]
    _, event = tool.caught("straddle")
    assert event.kind is EventKind.PF


def test_failures_of_a_batch_come_as_events() -> None:
    tool = ScriptedTool(V7)
    tool.ask(ControlVmEvents(EventKind.CMD_ERROR, True))
    tool.connection.send(ControlCmdResponse(False, now=True, report_errors=True))
    tool.connection.send(ControlEvents(0, EventKind.BREAKPOINT, False))
    tool.connection.send(ControlCmdResponse(True, now=True))
    kinds = [event.kind for event in tool.pump() if isinstance(event, Event)]
    assert kinds == [EventKind.CMD_ERROR]


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.sampled_from([V7, V12]), st.booleans())
def test_garbage_ends_the_connection_or_is_answered_and_never_stops_the_guest(
    garbage: bytes, dialect: Dialect, during_event: bool
) -> None:
    machine = _machine()
    tool = ScriptedTool(dialect, machine)
    if during_event:
        tool.pause()
    tool.session.receive(garbage)
    tool.session.outgoing()
    tool.session.receive(b"")
    tool.session.end("over")
    machine.run_until_idle()
    assert ticks(machine)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from(Registers._fields), st.integers(0, (1 << 64) - 1), min_size=1, max_size=4),
    st.integers(0, 0x1E000),
    st.binary(min_size=1, max_size=64),
)
def test_whatever_the_tool_does_to_the_guest_is_the_guests_trouble_alone(
    registers: dict[str, int], offset: int, data: bytes
) -> None:
    """Any registers, any bytes in the kernel's image: the guest may die of it, the process may not."""
    machine = SmallMachine.boot()
    tool = ScriptedTool(V7, machine)
    event = tool.pause()
    tool.ask(WritePhysical(Gpa(0x100_0000 + offset & ~0x3F), data))
    tool.ask(SetRegisters(0, event.regs._replace(**registers)))
    tool.connection.reply(event, Action.CONTINUE)
    tool.session.receive(b"".join(tool.connection.data_to_send()))
    for _ in range(5):
        machine.tick()
        machine.run(2000)
    assert tool.session.ended is None
    tool.leave()
    machine.run(2000)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_for_an_answer_to_the_hello(garbage: bytes) -> None:
    machine = _machine()
    session = Introspection(machine, V12, Hello(UUID))
    session.receive(garbage) if garbage else None
    session.receive(b"")
    session.end("over")
    assert ticks(machine)


def test_an_impatient_tool_gets_its_answers_in_order(dialect: Dialect) -> None:
    """A whole conversation in one write: greeting, negotiation, commands, before anything was answered."""
    machine = SmallMachine.boot()
    session = Introspection(machine, dialect, Hello(UUID))
    tool = ToolConnection(dialect)
    tool.receive_data(session.outgoing())
    tool.next_event()
    tool.answer_hello()
    written = b"".join(tool.data_to_send())
    info = dialect.commands[GetInfo].id
    session.receive(
        written + b"".join(info.to_bytes(2, "little") + bytes(2) + bytes([n, 0, 0, 0]) for n in range(5, 9))
    )
    answers = session.outgoing()
    assert [answers[at] for at in range(len(answers) - 4 * 32 + 4, len(answers), 32)] == [5, 6, 7, 8]


_MACHINES: list[SmallMachine] = []


def _machine() -> SmallMachine:
    """One machine for all examples of a property: it must survive them all."""
    if not _MACHINES:
        _MACHINES.append(SmallMachine.boot())
    return _MACHINES[0]


def test_crash_answers_are_refused_by_nobody(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    event = tool.pause()
    assert tool.reply(event, Action.CRASH) == []
    assert tool.machine.crashed is not None
