"""The kernel's side of a recorded conversation: says what the kernel said once the tool has said what it said then.

What the tool sends is matched by kind: which command or which event's reply, to which vCPU. Replies get the numbers
that this tool chose. What differs is noted, and the conversation goes on as it was recorded. There is no socket and no
clock here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from policyc.emulator.recorded_text import Describer
from policyc.emulator.recording import announced_size, is_handshake, split
from policyc.kvmi import V12, CmdErrorData, Hello, HelloForm, RemoteProtocolError
from policyc.kvmi.codec import codec_of
from policyc.kvmi.connection import MAX_UNREAD
from policyc.kvmi.framing import HEADER, HEADER_SIZE, VCPU_HEAD
from policyc.kvmi.handshake import MAX_ANSWER, encode_hello

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyc.emulator.recording import RecordedMessage
    from policyc.kvmi import Dialect

__all__ = ["DIFFERENCES_MAX", "Replay"]

DIFFERENCES_MAX: Final = 100
"""Differences that are told one by one; a tool that says something else altogether isn't listened to for ever."""

_REMEMBERED: Final = 4096
_UNMATCHED_MAX: Final = 4096

K = TypeVar("K")
V = TypeVar("V")

_Kind = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Said:
    """A message of the tool's: its kind, and its bytes but for the number that it chose."""

    kind: _Kind
    seq: int
    payload: bytes
    whole: bytes

    @property
    def id(self) -> int:
        """Which command, or that it is an event's reply."""
        return self.kind[0]


class Replay:
    """A conversation that is being held again.

    Args:
        messages: the recorded conversation, read as it is needed.

    Attributes:
        played: messages of the recording, of either side, that have had their turn.
        repeated: commands that were sent more often than recorded, and answered as they were before.
        differences: what was otherwise, in words.
        over: nothing is left to be said; the kernel's side closes.
    """

    def __init__(self, messages: Iterator[RecordedMessage], dialect: Dialect) -> None:
        self._messages = messages
        self._dialect = dialect
        self._codec = codec_of(dialect)
        self._theirs = Describer(dialect)
        self._ours = Describer(dialect)
        self._buffer = b""
        self._greeted = False
        self._unmatched: deque[_Said] = deque()
        self._seqs: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._asked: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._answers: OrderedDict[tuple[int, bytes], bytes] = OrderedDict()
        self._out: list[bytes] = []
        self._parts: deque[bytes] = deque()
        self._answer: bytes | None = None
        self._tool_closed = False
        self.played = 0
        self.repeated = 0
        self.differences: list[str] = []
        self.over = False
        self._now = next(messages, None)
        if self._now is None or self._now.outgoing or not is_handshake(self._now):
            # A recording that begins behind the handshake gets one that says nothing.
            form = HelloForm.V12 if dialect is V12 else HelloForm.V7
            self._out.append(encode_hello(Hello(bytes(16), "recording", form=form)))
            self._answer = b""
        self._load()
        self._advance()

    @property
    def expected(self) -> str:
        """What the tool would have to do now."""
        now = self._now
        if not self._greeted:
            return "its answer to the handshake"
        if now is None or now.data is None:
            return "the end of the connection"
        return f"{Describer(self._dialect).text(True, self._parts[0])} (line {now.line})"

    def receive(self, data: bytes) -> None:
        """Take what the tool sent; nothing means that it has closed."""
        if not data:
            self._tool_closed = True
        self._buffer += data
        if len(self._buffer) > MAX_UNREAD:
            self._differ("the tool sends a message without end")
            self.over = True
            return
        while not self.over and (message := self._next()) is not None:
            if not self._greeted:
                self._greet(message)
                continue
            self._unmatched.append(self._read(message))
            if len(self._unmatched) > _UNMATCHED_MAX:
                self._differ(f"the tool sent {_UNMATCHED_MAX} messages more than the recording has")
                self.over = True
        self._advance()
        if self._tool_closed and not self.over:
            self._differ(f"the tool closed the connection and never sent what is recorded next: {self.expected}")
            self._left_over("the tool sent, and the recording doesn't answer by then:")
            self.over = True

    def outgoing(self) -> bytes:
        """Take what is to be sent."""
        said = b"".join(self._out)
        self._out.clear()
        return said

    def repeat(self) -> bool:
        """Answer what the tool asks once more than recorded, now that it waits for it; whether there was something."""
        said = next((said for said in self._unmatched if (said.id, said.payload) in self._answers), None)
        if said is None:
            return False
        self._unmatched.remove(said)
        answer = self._answers[said.id, said.payload]
        self._out.append(_numbered(answer, said.seq))
        self.repeated += 1
        return True

    def give_up(self, reason: str) -> None:
        """The tool doesn't do what comes next."""
        self._differ(f"{reason}: expected {self.expected}")
        self._left_over("the tool sent, and the recording doesn't answer by then:")
        self.over = True

    # --- the recording ---

    def _load(self) -> None:
        """Take the messages of the current line apart."""
        now = self._now
        if now is not None and now.data is not None:
            self._parts = deque([now.data] if is_handshake(now) else split(now))

    def _step(self) -> None:
        self.played += 1
        self._now = next(self._messages, None)
        self._load()

    def _advance(self) -> None:
        while not self.over:
            now = self._now
            if now is None:
                self._finish()
            elif is_handshake(now):
                if not self._shake(now):
                    return
                self._step()
            elif not self._greeted:
                return
            elif now.data is None:
                if now.outgoing and not self._tool_closed:
                    return
                self.played += 1
                self._finish()
            elif now.outgoing:
                if not self._match(now):
                    return
                self._step()
            else:
                for data in self._parts:
                    self._say(data)
                self._step()

    def _finish(self) -> None:
        self.over = True
        self._left_over("the recording doesn't have")

    def _left_over(self, why: str) -> None:
        """Tell what the tool sent that nothing recorded was matched with."""
        for said in self._unmatched:
            if (said.id, said.payload) in self._answers:
                self.repeated += 1
            else:
                self._differ(f"{why} {self._theirs.text(True, said.whole)}")

    def _shake(self, now: RecordedMessage) -> bool:
        assert now.data is not None
        if not now.outgoing:
            self._out.append(now.data)
            return True
        if self._answer is None:
            self._answer = now.data
        return self._greeted

    def _match(self, now: RecordedMessage) -> bool:
        """Whether the tool has sent all messages of this line."""
        while self._parts:
            wanted = self._read(self._parts[0])
            found = next((said for said in self._unmatched if _alike(said, wanted)), None)
            found = found or next((said for said in self._unmatched if said.kind == wanted.kind), None)
            if found is None:
                return False
            self._unmatched.remove(found)
            self._parts.popleft()
            if not _alike(found, wanted):
                ours, theirs = self._ours.text(True, wanted.whole), self._theirs.text(True, found.whole)
                self._differ(f"line {now.line}: recorded {ours}, sent {theirs}")
            _remember(self._seqs, (wanted.id, wanted.seq), found.seq)
            _remember(self._asked, (wanted.id, wanted.seq), found.payload)
        return True

    def _say(self, data: bytes) -> None:
        """Send what the kernel sent, with the tool's own number where it is an answer."""
        if len(data) < HEADER_SIZE:
            self._out.append(data)
            return
        message_id, _, seq = HEADER.unpack_from(data)
        key = message_id, seq
        framing = self._dialect.framing
        if message_id in (framing.vm_event, framing.vcpu_event) and key not in self._seqs:
            self._out.append(self._event(data))
            return
        asked = self._asked.pop(key, None)
        if asked is not None:
            _remember(self._answers, (message_id, asked), data)
        if message_id != framing.event_reply and key not in self._seqs:
            return  # an answer to what this tool hasn't asked
        self._out.append(_numbered(data, self._seqs.pop(key, seq)))

    def _event(self, data: bytes) -> bytes:
        """An event as it was; one that tells of a failed command names it by this tool's number."""
        try:
            event = self._codec.events.decode(data)
        except RemoteProtocolError:
            return data
        detail = event.data if not event.needs_reply else None
        if not isinstance(detail, CmdErrorData):
            return data
        seq = self._seqs.pop((detail.msg_id, detail.msg_seq), detail.msg_seq)
        return self._codec.events.encode_vm(event.kind, event.seq, replace(detail, msg_seq=seq))

    # --- the tool ---

    def _next(self) -> bytes | None:
        """The tool's next whole message."""
        if self._greeted:
            size = announced_size(self._buffer)
        else:
            size = int.from_bytes(self._buffer[:4], "little") if len(self._buffer) >= 4 else None
        if size is not None and not self._greeted and not 24 <= size <= MAX_ANSWER:
            self._differ(f"the tool answers the handshake with {size} bytes")
            self.over = True
            return None
        if size is None or len(self._buffer) < size:
            return None
        message, self._buffer = self._buffer[:size], self._buffer[size:]
        return message

    def _greet(self, message: bytes) -> None:
        self._greeted = True
        if self._answer and self._answer != message:
            self._differ("the tool proves to know another secret, or none")

    def _read(self, message: bytes) -> _Said:
        message_id, _, seq = HEADER.unpack_from(message.ljust(HEADER_SIZE, b"\0"))
        payload = message[HEADER_SIZE:]
        vcpu: int = VCPU_HEAD.unpack_from(payload.ljust(VCPU_HEAD.size, b"\0"))[0]
        if message_id == self._dialect.framing.event_reply:
            return _Said((message_id, vcpu, seq), seq, payload, message)
        row = self._dialect.command_by_id.get(message_id)
        return _Said((message_id, vcpu if row and row.vcpu_header else 0, 0), seq, payload, message)

    def _differ(self, difference: str) -> None:
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)
        else:
            self.over = True


def _alike(one: _Said, other: _Said) -> bool:
    return one.kind == other.kind and one.payload == other.payload


def _numbered(message: bytes, seq: int) -> bytes:
    return message[:4] + seq.to_bytes(4, "little") + message[HEADER_SIZE:]


def _remember(table: OrderedDict[K, V], key: K, value: V) -> None:
    """Keep a pair; the oldest goes when there are too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > _REMEMBERED:
        table.popitem(last=False)
