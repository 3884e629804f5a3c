"""What both ends of a KVMI connection have in common: bytes in, bytes out, a state, and no I/O of its own.

The loop around a connection is the same on either side: give it what the socket delivered, take events until
`NEED_DATA`, send what it wants sent.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from policyc.kvmi.errors import LocalProtocolError, RemoteProtocolError
from policyc.kvmi.framing import HEADER, HEADER_SIZE
from policyc.kvmi.state import TRANSITIONS, Side, State, Trigger

if TYPE_CHECKING:
    from policyc.kvmi.dialects import Dialect

__all__ = ["CLOSED", "MAX_UNREAD", "NEED_DATA", "Connection", "Status"]

MAX_UNREAD = 1 << 20
"""Bytes that a connection holds unread, at most; whoever feeds it more hasn't taken the events out."""


class Status(Enum):
    """Why `next_event` has no event."""

    NEED_DATA = "need data"
    CLOSED = "closed"


NEED_DATA: Final = Status.NEED_DATA
CLOSED: Final = Status.CLOSED


class Connection:
    """State, buffer and outgoing messages of one side; see `ToolConnection` and `KernelConnection`.

    Attributes:
        side: which end this is.
        state: how far the conversation has come.
        dialect: the generation spoken, or None as long as it isn't known.
    """

    side: ClassVar[Side]

    def __init__(self, dialect: Dialect | None) -> None:
        self.dialect = dialect
        self.state = State.HANDSHAKE
        self._buffer = b""
        self._offset = 0
        self._parts: list[bytes] = []
        self._parts_size = 0
        self._out: list[bytes] = []
        self._ended = False
        self._over = False

    def receive_data(self, data: bytes) -> None:
        """Take in what the socket delivered, at best up to 64 KiB at once; nothing counts after an error or close.

        Raises:
            LocalProtocolError: more than `MAX_UNREAD` bytes wait to be read by `next_event`, or after the end.
        """
        if self._over:
            return
        if self._ended:
            raise LocalProtocolError("nothing after the end of the stream", f"{len(data)} bytes")
        rest = len(self._buffer) - self._offset
        if not rest:
            self._buffer = data
            self._offset = 0
            return
        if rest + self._parts_size + len(data) > MAX_UNREAD:
            raise LocalProtocolError("next_event() until it needs data", f"{rest + self._parts_size} bytes unread")
        self._parts.append(data)
        self._parts_size += len(data)

    @property
    def unread(self) -> int:
        """Bytes that wait: once `next_event` needs data, the beginning of a message whose rest hasn't come."""
        return len(self._buffer) - self._offset + self._parts_size

    def receive_eof(self) -> None:
        """Take note that the peer has closed; `next_event` still gives the events that were received before."""
        self._ended = True

    def data_to_send(self) -> list[bytes]:
        """Take the messages that are to be sent, in order; they may be joined into one write."""
        out = self._out
        self._out = []
        return out

    def close(self) -> None:
        """Take note that we close; nothing more is read or sent."""
        self._move(Trigger.END)

    def _move(self, trigger: Trigger) -> None:
        self.state = TRANSITIONS[self.side][self.state][trigger]
        if self.state in (State.CLOSED, State.ERROR):
            self._over = True
            self._forget()
            self._shut()

    def _shut(self) -> None:
        """Let go of what the conversation has left open; `next_event` gives `CLOSED` from now on."""

    def _forget(self) -> None:
        self._buffer = b""
        self._offset = 0
        self._parts.clear()
        self._parts_size = 0

    def _fault(self, error: RemoteProtocolError) -> RemoteProtocolError:
        """Note that the peer broke the protocol."""
        self._move(Trigger.FAULT)
        return error

    def _join(self) -> bool:
        """Append what has come since the buffer was set; False if nothing has."""
        if not self._parts:
            return False
        self._buffer = b"".join((self._buffer[self._offset :], *self._parts))
        self._offset = 0
        self._parts.clear()
        self._parts_size = 0
        return True

    def _wait(self, needed: int) -> Literal[Status.NEED_DATA, Status.CLOSED] | None:
        """None if `needed` bytes are there; else what `next_event` returns.

        Raises:
            RemoteProtocolError: the stream has ended in the middle of a message.
        """
        there = len(self._buffer) - self._offset
        if there + self._parts_size >= needed and (there >= needed or self._join()):
            return None
        there += self._parts_size
        if not self._ended:
            return NEED_DATA
        if there:
            raise RemoteProtocolError(f"{needed} bytes", f"the end of the stream after {there}")
        self._move(Trigger.END)
        return CLOSED

    def _header(self, most: int) -> tuple[int, int, int] | Literal[Status.NEED_DATA, Status.CLOSED]:
        """Id, size and seq of the message at hand, once all of it is there.

        Raises:
            RemoteProtocolError: it's longer than `most` bytes, known as soon as the header is there.
        """
        if status := self._wait(HEADER_SIZE):
            return status
        message_id, size, seq = HEADER.unpack_from(self._buffer, self._offset)
        if size > most:
            raise RemoteProtocolError(f"a message of at most {most} bytes", f"{size} bytes with id {message_id}")
        return self._wait(HEADER_SIZE + size) or (message_id, size, seq)

    def _take(self, size: int) -> bytes:
        """The next `size` bytes, which are known to be there."""
        start = self._offset
        self._offset = start + size
        return self._buffer[start : start + size]
