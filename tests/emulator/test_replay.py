"""The kernel's side of a recording, with tools that do what was recorded, and tools that don't."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.addresses import Gpa
from policyc.emulator.recorder import Recorder
from policyc.emulator.recording import conversations
from policyc.emulator.replay import DIFFERENCES_MAX, Replay
from policyc.emulator.replay_process import replay_to
from policyc.kvmi import (
    DONE,
    V7,
    V12,
    Action,
    CmdErrorData,
    Command,
    CommandReceived,
    ControlEvents,
    Dialect,
    Event,
    EventKind,
    GetInfo,
    GetInfoReply,
    GetVersion,
    GetVersionReply,
    Hello,
    KernelConnection,
    PauseVcpu,
    ReadPhysical,
    ReadPhysicalReply,
    Reply,
    ReplyData,
    Status,
    ToolConnection,
    ToolEvent,
    VcpuState,
)
from policyc.kvmi.framing import HEADER, frame
from policyc.kvmi.handshake import encode_answer

ANSWERS: dict[type[Command], ReplyData] = {
    GetInfo: GetInfoReply(1),
    ReadPhysical: ReadPhysicalReply(b"abcd"),
}


def session(dialect: Dialect) -> bytes:
    """What a small conversation leaves: a tool asks three things, and answers one event."""
    file = io.BytesIO()
    recorder = Recorder(file, dialect)
    kernel, tool = KernelConnection(dialect, 1), ToolConnection()
    answers = ANSWERS | {GetVersion: GetVersionReply(max_message_size=8184 if dialect is V12 else 0)}
    kernel.send_hello(Hello(bytes(16), "small"))

    def talk() -> list[ToolEvent]:
        heard: list[ToolEvent] = []
        while True:
            kernel_said, tool_said = b"".join(kernel.data_to_send()), b"".join(tool.data_to_send())
            if not kernel_said and not tool_said:
                return heard
            if kernel_said:
                recorder.kernel_said(kernel_said)
                tool.receive_data(kernel_said)
                while not isinstance(event := tool.next_event(), Status):
                    heard.append(event)
            if tool_said:
                recorder.tool_said(tool_said)
                kernel.receive_data(tool_said)
                while not isinstance(received := kernel.next_event(), Status):
                    if isinstance(received, CommandReceived):
                        kernel.answer(received, answers.get(type(received.command), DONE))

    talk()
    tool.answer_hello(None)
    talk()
    for command in (GetInfo(), ReadPhysical(Gpa(0x1000), 4), PauseVcpu(0)):
        tool.send(command)
        talk()
    kernel.send_event(EventKind.PAUSE, 0, VcpuState())
    (event,) = talk()
    assert isinstance(event, Event)
    tool.reply(event, Action.CONTINUE)
    talk()
    recorder.tool_said(b"")
    return file.getvalue()


def replay_of(content: bytes, dialect: Dialect) -> Replay:
    return Replay(next(conversations(io.BytesIO(content))), dialect)


FIRST = {V7: 2, V12: 3}
"""The first number that is left for a tool's own commands once the version is known."""


class Tool:
    """A tool joined to a replay in memory."""

    def __init__(self, dialect: Dialect, secret: bytes | None = None) -> None:
        self.dialect = dialect
        self.replay = replay_of(session(dialect), dialect)
        self.connection = ToolConnection()
        self.talk()
        self.connection.answer_hello(secret)
        self.talk()

    def talk(self) -> list[ToolEvent]:
        heard: list[ToolEvent] = []
        while True:
            said = b"".join(self.connection.data_to_send())
            if said:
                self.replay.receive(said)
            answer = self.replay.outgoing()
            if answer:
                self.connection.receive_data(answer)
                while not isinstance(event := self.connection.next_event(), Status):
                    heard.append(event)
            if not said and not answer:
                return heard


@pytest.fixture(params=[V7, V12], ids=["v7", "v12"])
def tool(request: pytest.FixtureRequest) -> Tool:
    return Tool(request.param)


def finish(tool: Tool) -> None:
    (event,) = [event for event in tool.talk() if isinstance(event, Event)]
    tool.connection.reply(event, Action.CONTINUE)
    tool.talk()
    tool.replay.receive(b"")


def test_the_same_again__is_answered_by_the_tools_own_numbers(tool: Tool) -> None:
    # What this tool asks first moves all of its numbers.
    tool.connection.send(ControlEvents(0, EventKind.PF, True))
    tool.connection.send(GetInfo())
    tool.connection.send(ReadPhysical(Gpa(0x1000), 4))
    results = [event.result for event in tool.talk() if isinstance(event, Reply)]
    assert results == [GetInfoReply(1), ReadPhysicalReply(b"abcd")]
    tool.connection.send(PauseVcpu(0))
    finish(tool)
    assert tool.replay.over
    assert tool.replay.differences == [
        f"the recording doesn't have #{FIRST[tool.dialect]} ControlEvents vcpu=0 event=PF enable=True"
    ]


def test_another_order__is_none_of_its_concern(tool: Tool) -> None:
    for command in (PauseVcpu(0), ReadPhysical(Gpa(0x1000), 4), GetInfo()):
        tool.connection.send(command)
    finish(tool)
    assert (tool.replay.over, tool.replay.differences, tool.replay.repeated) == (True, [], 0)


def test_another_argument__is_told_and_the_conversation_goes_on(tool: Tool) -> None:
    tool.connection.send(GetInfo())
    tool.connection.send(ReadPhysical(Gpa(0x2000), 4))
    tool.connection.send(PauseVcpu(0))
    (event,) = [event for event in tool.talk() if isinstance(event, Event)]
    tool.connection.reply(event, Action.CRASH)
    tool.talk()
    tool.replay.receive(b"")
    numbers = [difference.split(": ", 1)[1] for difference in tool.replay.differences]
    assert [number.replace("#4 ", "#3 ").replace("#5 ", "#4 ") for number in numbers] == [
        "recorded #3 ReadPhysical gpa=0x1000 size=4, sent #3 ReadPhysical gpa=0x2000 size=4",
        "recorded answers event 1 of vCPU 0: CONTINUE, sent answers event 1 of vCPU 0: CRASH",
    ]


def test_once_more__is_answered_as_before(tool: Tool) -> None:
    for command in (GetInfo(), GetInfo(), ReadPhysical(Gpa(0x1000), 4)):
        tool.connection.send(command)
    assert len(tool.talk()) == 2
    assert tool.replay.repeat()
    (again,) = tool.talk()
    assert isinstance(again, Reply)
    assert again.result == GetInfoReply(1)
    assert not tool.replay.repeat()
    tool.connection.send(PauseVcpu(0))
    finish(tool)
    assert (tool.replay.differences, tool.replay.repeated) == ([], 1)


def test_a_tool_that_leaves_early__is_told_what_was_next(tool: Tool) -> None:
    tool.connection.send(GetInfo())
    tool.talk()
    tool.replay.receive(b"")
    assert tool.replay.over
    (difference,) = tool.replay.differences
    assert difference.startswith("the tool closed the connection and never sent what is recorded next: #")
    assert " ReadPhysical gpa=0x1000 size=4 (line " in difference


def test_another_secret__is_a_difference() -> None:
    tool = Tool(V7, secret=b"x")
    assert tool.replay.differences == ["the tool proves to know another secret, or none"]


def test_a_recording_that_breaks_off__ends_there() -> None:
    replay = replay_of(b"\n".join(session(V7).split(b"\n")[:4]) + b"\n", V7)
    assert replay.outgoing()
    replay.receive(encode_answer(None))
    assert not replay.over
    replay.receive(frame(2, 77, b""))
    assert HEADER.unpack_from(replay.outgoing()) == (2, 24, 77)
    assert (replay.over, replay.differences, replay.played) == (True, [], 4)


def test_a_recording_without_handshake__gets_one() -> None:
    replay = replay_of(b"0001 out GET_INFO 0500000001000000\n0002 in  r 050008000100000000000000ffffffff\n", V7)
    assert len(replay.outgoing()) == 96
    replay.receive(encode_answer(b"whatever") + frame(5, 3, b""))
    assert replay.outgoing().hex() == "050008000300000000000000ffffffff"
    assert (replay.over, replay.differences) == (True, [])


def test_a_failed_command_in_silence__is_told_by_the_tools_number() -> None:
    file = io.BytesIO()
    recorder, kernel = Recorder(file, V7), KernelConnection(V7, 1)
    kernel.send_hello(Hello(bytes(16)))
    recorder.kernel_said(b"".join(kernel.data_to_send()))
    recorder.tool_said(encode_answer(None) + frame(9, 41, bytes(16)))
    kernel.receive_data(encode_answer(None))
    kernel.next_event()
    kernel.send_vm_event(EventKind.CMD_ERROR, CmdErrorData(-22, 41, 9))
    recorder.kernel_said(b"".join(kernel.data_to_send()))
    recorder.end()
    replay = replay_of(file.getvalue(), V7)
    replay.outgoing()
    replay.receive(encode_answer(None) + frame(9, 5, bytes(16)))
    said = replay.outgoing()
    assert said[-16:].hex() == "eaffffff050000000900000000000000"


def test_a_tool_that_says_something_else_altogether__is_stopped_listening_to() -> None:
    content = session(V7)
    head, _, rest = content.partition(b"0005 ")
    more = b"".join(b"%04d out x %s\n" % (n, frame(17, n, bytes([n % 256, 1])).hex().encode()) for n in range(5, 300))
    del rest
    replay = replay_of(head + more, V7)
    replay.receive(encode_answer(None) + frame(2, 1, b""))
    for number in range(5, 300):
        replay.receive(frame(17, number, b"\0\2"))
    assert (replay.over, len(replay.differences)) == (True, DIFFERENCES_MAX)


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=6), st.sampled_from([V7, V12]), st.booleans())
def test_any_tool__comes_to_an_end(said: list[bytes], dialect: Dialect, greets: bool) -> None:
    replay = replay_of(session(dialect), dialect)
    if greets:
        replay.receive(encode_answer(None))
    for data in said:
        replay.receive(data)
        replay.outgoing()
        replay.repeat()
    replay.receive(b"")
    assert replay.over
    assert replay.differences


# ---- over a socket


def listening(path: Path, behave: Callable[[socket.socket], None]) -> threading.Thread:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        with server:
            peer, _ = server.accept()
            with peer:
                behave(peer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def silent(peer: socket.socket) -> None:
    while peer.recv(4096):
        pass


def deaf(peer: socket.socket) -> None:
    peer.sendall(encode_answer(None))
    silent(peer)


@pytest.mark.parametrize(
    ("behave", "expected"),
    [(silent, "its answer to the handshake"), (deaf, "#1 GetVersion (line 3)")],
    ids=["no handshake", "nothing else"],
)
def test_a_tool_that_does_nothing__is_waited_for_until_the_deadline(
    tmp_path: Path, behave: Callable[[socket.socket], None], expected: str
) -> None:
    thread = listening(tmp_path / "s", behave)
    replay = replay_of(session(V7), V7)
    replay_to(tmp_path / "s", replay, 0.2)
    thread.join()
    assert replay.differences == [f"the tool did nothing that was recorded for 0.2 seconds: expected {expected}"]


def test_a_tool_that_hangs_up__is_told(tmp_path: Path) -> None:
    thread = listening(tmp_path / "s", lambda peer: None)
    replay = replay_of(session(V7), V7)
    replay_to(tmp_path / "s", replay, 10)
    thread.join()
    assert replay.differences == [
        "the tool closed the connection and never sent what is recorded next: its answer to the handshake"
    ]


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "waits"])
def test_a_tool_that_stops_at_what_isnt_recorded__is_told_what_went_unanswered(tool: Tool, closes: bool) -> None:
    """It never came to what is recorded next, because it waited for an answer to something else."""
    tool.connection.send(ControlEvents(0, EventKind.PF, enable=True))
    tool.talk()
    if closes:
        tool.replay.receive(b"")
    else:
        tool.replay.give_up("it is late")
    first, second = tool.replay.differences
    assert "GetInfo" in first
    assert second == (
        "the tool sent, and the recording doesn't answer by then: "
        f"#{FIRST[tool.dialect]} ControlEvents vcpu=0 event=PF enable=True"
    )


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError) as caught:
        replay_to(tmp_path / "s", replay_of(session(V7), V7), 0.2)
    assert (caught.value.strerror, caught.value.filename) == ("nobody listened for 0.2 seconds", str(tmp_path / "s"))
