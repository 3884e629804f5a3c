"""The kernel's end of a connection: greets as QEMU does, judges commands as a generation's kernel does, sends events.

It knows the protocol and no machine. What a command does is for the caller, who answers each `CommandReceived` once;
everything that a kernel decides without looking at the guest is decided here, by the rows of `policyc.kvmi.rules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

from policyc.kvmi.codec import CommandCodec, codec_of
from policyc.kvmi.connection import CLOSED, NEED_DATA, Connection, Status
from policyc.kvmi.dialects import Dialect, RunsOn
from policyc.kvmi.errors import LocalProtocolError, RemoteProtocolError
from policyc.kvmi.event_data import CmdErrorData, EventData
from policyc.kvmi.framing import EVENT_REPLY_HEAD, HEADER_SIZE, REPLY_HEAD, VCPU_HEAD, frame
from policyc.kvmi.handshake import LENGTH_SIZE, MAX_ANSWER, Hello, announced, decode_answer, encode_hello, length_of
from policyc.kvmi.messages import (
    DONE,
    CheckCommand,
    CheckEvent,
    Command,
    ControlCmdResponse,
    GetVersion,
    PauseVcpu,
    ReplyData,
)
from policyc.kvmi.received import (
    BadCommandReceived,
    CommandReceived,
    EventReplyReceived,
    HelloAnswer,
    Received,
)
from policyc.kvmi.rules import CLOSE, RULES, Request
from policyc.kvmi.state import Side, State, Trigger
from policyc.kvmi.vocabulary import Action, ErrorCode, EventKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from policyc.kvmi.registers import VcpuState

__all__ = ["KernelConnection", "KernelEvent"]

MAX_UNANSWERED = 65536
"""Commands that may wait for the caller's answer at once."""

_ALWAYS_ALLOWED = frozenset({GetVersion, CheckCommand, CheckEvent})
_SEQ_MASK = 0xFFFF_FFFF
_SHOWN = 64
"""Bytes of an offending message that an error quotes."""


R = TypeVar("R", bound=Received)

KernelEvent: TypeAlias = HelloAnswer | CommandReceived | BadCommandReceived | EventReplyReceived


class KernelConnection(Connection):
    """A connection as QEMU and KVM have it together.

    Args:
        dialect: the generation to speak.
        vcpu_count: online vCPUs. May be changed later.
        commands: what the VMM allows; None for all. GetVersion, CheckCommand and CheckEvent always are.
        events: what the VMM allows; None for all.

    Attributes:
        stopped: vCPUs that haven't been started yet (application processors before their first SIPI).
    """

    side: ClassVar[Side] = Side.KERNEL

    def __init__(
        self,
        dialect: Dialect,
        vcpu_count: int,
        *,
        commands: Iterable[type[Command]] | None = None,
        events: Iterable[EventKind] | None = None,
    ) -> None:
        super().__init__(dialect)
        self.vcpu_count = vcpu_count
        self.stopped: set[int] = set()
        self._rules = RULES[dialect]
        self._codec = codec_of(dialect)
        self._commands = frozenset(dialect.commands if commands is None else commands) | _ALWAYS_ALLOWED
        self._commands -= self._rules.never_allowed
        self._events = frozenset(dialect.events if events is None else events)
        self._replies_on = True
        self._report_errors = False
        self._open: set[Received] = set()
        self._waiting: dict[int, tuple[int, EventKind]] = {}
        self._event_seq = 0
        self._greeted = False
        self._reader: Callable[[], KernelEvent | Status | None] = self._read_answer

    @property
    def waiting(self) -> dict[int, EventKind]:
        """The vCPUs that wait for an event reply, and what for."""
        return {vcpu: kind for vcpu, (_, kind) in self._waiting.items()}

    def send_hello(self, hello: Hello) -> None:
        """Introduce the VM; the first thing that is sent."""
        if self._greeted or self.state is not State.HANDSHAKE:
            raise LocalProtocolError("one hello", "another")
        self._greeted = True
        self._out.append(encode_hello(hello))

    def next_event(self) -> KernelEvent | Status:
        """The next thing that the tool wants, or `NEED_DATA`, or `CLOSED`.

        Raises:
            RemoteProtocolError: the tool did something at which this kernel closes the connection.
        """
        try:
            while True:
                event = self._reader()
                if event is not None:
                    return event
        except RemoteProtocolError as error:
            raise self._fault(error) from None

    def answer(self, received: Received, result: ReplyData = DONE) -> None:
        """Answer a command that succeeded.

        Raises:
            LocalProtocolError: answered before, or not the data of this command.
            RemoteProtocolError: the answer has data and the tool has switched replies off; the kernel closes.
        """
        self._must_be_unanswered(received)
        message = received._codec.encode_reply(result, received.seq)
        self._open.remove(received)
        if not received.silent:
            self._out.append(message)
        elif len(message) > HEADER_SIZE + REPLY_HEAD.size:
            raise self._fault(_data_in_silence(received))

    def refuse(self, received: Received, errno: int) -> None:
        """Answer a command that failed with a negative error number.

        Raises:
            LocalProtocolError: answered before, or not an error number.
            RemoteProtocolError: replies are off and this kernel counts the answer as one with data; it closes.
        """
        if errno >= 0:
            raise LocalProtocolError("a negative error number", str(errno))
        self._must_be_unanswered(received)
        self._open.remove(received)
        if not received.silent:
            self._out.append(received._codec.encode_reply(errno, received.seq))
        elif received._codec.row.message in self._rules.data_on_error:
            raise self._fault(_data_in_silence(received))
        elif self._report_errors:
            self.send_vm_event(EventKind.CMD_ERROR, CmdErrorData(errno, received.seq, received._codec.id))

    def send_event(self, kind: EventKind, vcpu: int, state: VcpuState, data: EventData | None = None) -> int:
        """Send an event of a vCPU, which stands still until its `EventReplyReceived`; the number it got.

        Raises:
            LocalProtocolError: the vCPU waits already, or the event isn't one of the dialect's.
        """
        self._must_be_open()
        if vcpu in self._waiting:
            raise LocalProtocolError(f"vCPU {vcpu} to wait for its reply", f"a {kind.value} event")
        seq = self._event_seq + 1 & _SEQ_MASK
        self._out.append(self._codec.events.encode(kind, seq, vcpu, state, data))
        self._event_seq = seq
        self._waiting[vcpu] = (seq, kind)
        return seq

    def send_vm_event(self, kind: EventKind, data: EventData | None = None) -> int:
        """Send UNHOOK or CMD_ERROR, which have no reply; the number it got."""
        self._must_be_open()
        seq = self._event_seq + 1 & _SEQ_MASK
        self._out.append(self._codec.events.encode_vm(kind, seq, data))
        self._event_seq = seq
        if kind is EventKind.UNHOOK:
            self._move(Trigger.UNHOOK)
        return seq

    # --- reading ---

    def _read_answer(self) -> HelloAnswer | Status:
        if status := self._wait(LENGTH_SIZE):
            return status
        if announced(self._buffer, self._offset) < LENGTH_SIZE and self.unread <= MAX_ANSWER:
            return self._wait(MAX_ANSWER + 1) or NEED_DATA  # QEMU waits for its timeout: the struct never ends
        size = length_of(self._buffer, self._offset, MAX_ANSWER)
        if status := self._wait(size):
            return status
        answer = HelloAnswer(decode_answer(self._take(size)))
        self._move(Trigger.HELLO_ANSWERED)
        self._reader = self._read_message
        return answer

    def _read_message(self) -> KernelEvent | Status | None:
        head = self._header(self._codec.dialect.max_message_size)
        if isinstance(head, Status):
            return head
        message_id, size, seq = head
        payload = self._take(HEADER_SIZE + size)[HEADER_SIZE:]
        if message_id == self._codec.dialect.framing.event_reply:
            return self._event_reply(seq, payload)
        codec = self._codec.by_id.get(message_id)
        if codec is None:
            self._deny(message_id, seq, self._codec.dialect.unknown_command)
            return None
        if codec.row.message not in self._commands:
            self._deny(message_id, seq, ErrorCode.EPERM)
            return None
        return self._command(codec, seq, payload)

    def _deny(self, message_id: int, seq: int, errno: int) -> None:
        """Unknown and forbidden commands, for which some kernels break the silence and others the connection."""
        if not self._replies_on and not self._rules.answers_when_silent:
            raise RemoteProtocolError("no such command while replies are off", f"id {message_id}")
        self._out.append(frame(message_id, seq, REPLY_HEAD.pack(errno, 0)))

    def _command(self, codec: CommandCodec, seq: int, payload: bytes) -> CommandReceived | BadCommandReceived | None:
        """Judge a command; None if it has been answered and is no concern of the caller's."""
        request = Request.of(codec, payload, self._events, self._codec.dialect)
        vcpu = request.vcpu if codec.row.runs_on is RunsOn.VCPU else None
        if vcpu is not None and (errno := self._check_vcpu(vcpu, request.vcpu_padding)):
            self._finish(codec, seq, errno)
            return None
        verdict = self._rules.verdict(request)
        if verdict == CLOSE:
            raise RemoteProtocolError(f"a sound {codec.row.message.__name__}", payload[:_SHOWN].hex())
        if verdict is not None:
            # A queued command is refused by its vCPU, after what came before it; the receiver refuses at once.
            if vcpu is not None:
                return self._surface(BadCommandReceived(seq, vcpu, not self._replies_on, codec, verdict))
            self._finish(codec, seq, verdict)
            return None
        command = codec.decode(payload)
        if isinstance(command, ControlCmdResponse):
            self._switch_replies(command, codec, seq)
        elif (errno := self._errno_of(command)) or isinstance(command, CheckCommand | CheckEvent):
            self._finish(codec, seq, errno)
        else:
            return self._surface(CommandReceived(seq, vcpu, not self._replies_on, codec, command))
        return None

    def _check_vcpu(self, vcpu: int, padding: int) -> int:
        """The checks before a message is put into a vCPU's queue: 0, or the error number."""
        if padding:
            if self._rules.vcpu_padding == CLOSE:
                raise RemoteProtocolError("zero padding in the vCPU header", f"{padding:#x}")
            return self._rules.vcpu_padding
        if vcpu >= self.vcpu_count:
            return ErrorCode.EINVAL
        if vcpu in self.stopped and vcpu not in self._waiting:
            return ErrorCode.EAGAIN
        return 0

    def _errno_of(self, command: Command) -> int:
        """0, or the error number for a sound command of the receiver that this VM refuses all the same."""
        if isinstance(command, PauseVcpu) and command.vcpu >= self.vcpu_count:
            return ErrorCode.EINVAL
        if isinstance(command, CheckCommand):
            return self._rules.check(command.command, self._commands, self._rules.command_numbers)
        if isinstance(command, CheckEvent):
            return self._rules.check(command.event, self._events, self._rules.event_numbers)
        return 0

    def _switch_replies(self, command: ControlCmdResponse, codec: CommandCodec, seq: int) -> None:
        """With `now` the switch comes before this command's own answer, else after it."""
        if command.now:
            self._replies_on = command.enable
        self._finish(codec, seq, 0)
        self._replies_on = command.enable
        self._report_errors = command.report_errors

    def _surface(self, received: R) -> R:
        if len(self._open) >= MAX_UNANSWERED:
            raise RemoteProtocolError(f"at most {MAX_UNANSWERED} commands at once", "one more")
        self._open.add(received)
        return received

    def _finish(self, codec: CommandCodec, seq: int, errno: int) -> None:
        """Answer a command, which has no data in its answer, without asking the caller."""
        received = self._surface(Received(seq, None, not self._replies_on, codec))
        if errno:
            self.refuse(received, errno)
        else:
            self.answer(received)

    def _event_reply(self, seq: int, payload: bytes) -> EventReplyReceived | None:
        vcpu, *padding = VCPU_HEAD.unpack_from(payload.ljust(VCPU_HEAD.size, b"\0"))
        if errno := self._check_vcpu(vcpu, int(any(padding))):
            if self._replies_on:
                self._out.append(frame(self._codec.dialect.framing.event_reply, seq, REPLY_HEAD.pack(errno, 0)))
            return None
        if vcpu not in self._waiting:
            if self._rules.stray_reply_closes:
                raise RemoteProtocolError("a reply to an event that waits for one", f"one for vCPU {vcpu}")
            return None
        wanted, kind = self._waiting[vcpu]
        self._check_event_reply(wanted == seq, kind, payload)
        number, data = self._codec.events.decode_reply(kind, payload)
        supported = number in self._codec.dialect.events[kind].actions
        if not supported and self._rules.odd_action_closes:
            raise RemoteProtocolError(f"an action for {kind.value} events", str(number))
        del self._waiting[vcpu]
        return EventReplyReceived(seq, vcpu, kind, Action(number) if supported else None, data)

    def _check_event_reply(self, in_sequence: bool, kind: EventKind, payload: bytes) -> None:
        """What closes the connection in every generation when a reply to a waiting vCPU is wrong."""
        least = EVENT_REPLY_HEAD.size
        most = least + self._codec.events.reply_data_size(kind)
        _, _, _, _, _, *padding = EVENT_REPLY_HEAD.unpack_from(payload.ljust(least, b"\0"))
        clean = not any(padding)
        if self._rules.reply_data_padding:
            clean = clean and self._codec.events.reply_padding_is_zero(kind, payload)
        if not (in_sequence and least <= len(payload) <= most and clean):
            raise RemoteProtocolError(f"a sound reply to the {kind.value} event", payload[:_SHOWN].hex())

    def _must_be_open(self) -> None:
        if self.state is not State.OPEN and self.state is not State.UNHOOKING:
            raise LocalProtocolError("an event while the connection is open", f"one in {self.state.value}")

    def _must_be_unanswered(self, received: Received) -> None:
        if received not in self._open:
            raise LocalProtocolError("one answer to each command", f"another to {received!r}")

    def _shut(self) -> None:
        self._open.clear()
        self._waiting.clear()
        self._reader = self._read_nothing

    def _read_nothing(self) -> Status:
        return CLOSED


def _data_in_silence(received: Received) -> RemoteProtocolError:
    return RemoteProtocolError("no command with data while replies are off", received._codec.row.message.__name__)
