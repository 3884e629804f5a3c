"""Both ends joined in memory: whatever is said in whatever order, everything is answered once and nothing is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from policyc.kvmi import (
    DONE,
    V6,
    V7,
    V12,
    Command,
    CommandReceived,
    ControlCmdResponse,
    Dialect,
    Event,
    EventData,
    EventKind,
    EventReplyReceived,
    LocalProtocolError,
    NewValue,
    PauseVcpu,
    PfData,
    Refused,
    Reply,
    ReplyData,
    State,
    VcpuState,
)
from policyc.kvmi.received import BadCommandReceived, Received
from tests.support import kvmi_strategies as any_
from tests.support.kvmi_pair import Pair

if TYPE_CHECKING:
    from policyc.kvmi import Action, EventReplyData

VCPUS = 3


class Conversation(RuleBasedStateMachine):
    """A tool and a kernel that talk at random; bytes travel in pieces of any size.

    What is expected of each side is kept apart from both: `asked` and `decided` by command, `raised` and `replied` by
    event.
    """

    dialect: Dialect

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(self.dialect, VCPUS).open()
        self.asked: dict[int, Command] = {}
        self.received: list[Received] = []
        self.decided: dict[int, ReplyData | int] = {}
        self.raised: dict[int, tuple[EventKind, int, VcpuState, EventData | None]] = {}
        self.seen: dict[int, Event] = {}
        self.replied: dict[int, tuple[Action, EventReplyData | None]] = {}

    # --- what either side does ---

    @rule(data=st.data())
    def tool_asks(self, data: st.DataObject) -> None:
        command = data.draw(any_.commands(self.dialect))
        if isinstance(command, ControlCmdResponse) or (isinstance(command, PauseVcpu) and command.vcpu > 255):
            # The one changes what is answered, the other makes a v7 kernel close: both have tests of their own.
            return
        try:
            seq = self.pair.tool.send(command)
        except LocalProtocolError:
            return
        self.asked[seq] = command

    @precondition(lambda self: self.received)
    @rule(data=st.data())
    def kernel_answers(self, data: st.DataObject) -> None:
        received = self.received.pop(data.draw(st.integers(0, len(self.received) - 1)))
        if isinstance(received, BadCommandReceived):
            self.pair.kernel.refuse(received, received.errno)
            self.decided[received.seq] = received.errno
            return
        assert isinstance(received, CommandReceived)
        result = data.draw(any_.errno | any_.replies(received.command, self.dialect))
        if isinstance(result, int):
            self.pair.kernel.refuse(received, result)
        else:
            self.pair.kernel.answer(received, result)
        self.decided[received.seq] = result

    @rule(data=st.data(), vcpu=st.integers(0, VCPUS - 1))
    def guest_does_something(self, data: st.DataObject, vcpu: int) -> None:
        kinds = sorted((k for k, row in self.dialect.events.items() if not row.vm_level), key=lambda kind: kind.value)
        kind = data.draw(st.sampled_from(kinds))
        content = data.draw(any_.event_data(kind, self.dialect))
        if vcpu in self.pair.kernel.waiting or (isinstance(content, PfData) and not content.access):
            return
        state = data.draw(any_.states(self.dialect))
        seq = self.pair.kernel.send_event(kind, vcpu, state, content)
        self.raised[seq] = (kind, vcpu, state, content)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def tool_answers(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.seen)))
        event = self.seen.pop(seq)
        action = data.draw(any_.actions(event.kind, self.dialect))
        content = data.draw(any_.event_reply_data(event.kind, self.dialect))
        self.pair.tool.reply(event, action, content)
        self.replied[seq] = (action, content)

    # --- what arrives at the other side ---

    @rule(chunk=st.integers(1, 2000))
    def to_kernel(self, chunk: int) -> None:
        self.pair.chunk = chunk
        for event in self.pair.tool_says():
            if isinstance(event, EventReplyReceived):
                action, content = self.replied.pop(event.seq)
                kind, vcpu, _, _ = self.raised.pop(event.seq)
                assert (event.kind, event.vcpu, event.action) == (kind, vcpu, action)
                assert content is None or event.data == content
            else:
                assert isinstance(event, Received)
                if isinstance(event, CommandReceived):
                    assert event.command == self.asked[event.seq]
                self.received.append(event)

    @rule(chunk=st.integers(1, 2000))
    def to_tool(self, chunk: int) -> None:
        self.pair.chunk = chunk
        for event in self.pair.kernel_says():
            if isinstance(event, Event):
                assert (event.kind, event.vcpu, event.state, event.data) == self.raised[event.seq]
                self.seen[event.seq] = event
            else:
                assert isinstance(event, Reply)
                assert event.command is self.asked.pop(event.seq)
                self.check(event)

    def check(self, reply: Reply) -> None:
        # What the kernel's end refuses by itself never reaches its caller.
        decided = self.decided.pop(reply.seq, None)
        result = reply.result.errno if isinstance(reply.result, Refused) else reply.result
        assert decided == result if decided is not None else result == DONE or isinstance(result, int)

    @invariant()
    def both_are_open(self) -> None:
        assert self.pair.tool.state is self.pair.kernel.state is State.OPEN
        assert self.pair.tool.outstanding == len(self.asked)
        assert set(self.pair.tool.unanswered.values()) == set(self.seen)

    def teardown(self) -> None:
        """Let everything that is under way come to its end; then nothing may be left anywhere."""
        self.to_kernel(1000)
        for received in self.received:
            errno = received.errno if isinstance(received, BadCommandReceived) else -22
            self.pair.kernel.refuse(received, errno)
            self.decided[received.seq] = errno
        self.to_tool(1000)
        for seq, event in self.seen.items():
            value = NewValue(0) if event.kind in (EventKind.CR, EventKind.MSR) else None
            self.pair.tool.reply(event, event.actions[0], value)
            self.replied[seq] = (event.actions[0], value)
        self.received.clear()
        self.seen.clear()
        self.to_kernel(1000)
        assert (self.asked, self.received, self.decided, self.raised, self.replied) == ({}, [], {}, {}, {})
        assert (self.pair.kernel.waiting, self.pair.tool.unanswered, self.pair.tool.outstanding) == ({}, {}, 0)
        assert self.pair.tool.data_to_send() == self.pair.kernel.data_to_send() == []


@pytest.mark.parametrize("dialect", [V6, V7, V12], ids=repr)
def test_conversation(dialect: Dialect) -> None:
    class InDialect(Conversation):
        pass

    InDialect.dialect = dialect
    run_state_machine_as_test(
        InDialect,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
