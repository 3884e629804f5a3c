"""A conversation kept in a file: one message a line, in hexadecimal, as it was on the socket.

```
0001 in  handshake                    60000000...
0002 out handshake                    18000000...
0003 out GET_VERSION                  0200000001000000
0004 in  reply GET_VERSION            0200180001000000...
0005 out EOF
```

A number, the direction (`out` is from the tool to the kernel), a name for people, the bytes; EOF has none and says who
closed. What a message is, its bytes alone decide. A file may hold several conversations; each begins with number 1. A
last line without end was being written when the recorder was stopped, and doesn't count.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from os import SEEK_END
from typing import TYPE_CHECKING, Final

from policyc.kvmi import V7, V12, Dialect, RemoteProtocolError
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER, HEADER_SIZE, REPLY_HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = [
    "MAX_LINE",
    "RecordedMessage",
    "Recorder",
    "RecordingError",
    "conversations",
    "dialect_of",
    "is_handshake",
    "open_recording",
    "split",
]

MAX_LINE: Final = 2 * (HEADER_SIZE + 0xFFFF) + 256
"""Characters of a line: the longest message that a header can announce, and what stands before it."""

_LINE: Final = re.compile(rb"(\d{1,9}) (in|out) +([\x20-\x7e]{0,200}?) *\b([0-9a-f]*)")
_EOF: Final = re.compile(rb"(\d{1,9}) (in|out) +EOF\b[\x20-\x7e]{0,200}")
_HANDSHAKE: Final = "handshake"
_HANDSHAKE_MAX: Final = 4096
_BUFFERED_MAX: Final = 1 << 16
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_GET_VERSION: Final = 2
_VERSION_REPLY: Final = 24
_HELLO_V12: Final = 104


class RecordingError(Exception):
    """The file is no recording: `message` says where and why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """One line.

    Attributes:
        line: its number in the file, from 1.
        outgoing: from the tool to the kernel.
        data: the bytes; None where that side closed.
    """

    line: int
    outgoing: bool
    data: bytes | None


class _Splitter:
    """Whole messages out of one direction's bytes: the handshake first, then what KVMI's headers announce."""

    def __init__(self) -> None:
        self._pending = b""
        self._greeted = False

    def feed(self, data: bytes) -> Iterator[tuple[bool, bytes]]:
        """Messages that are complete now, and whether each is the handshake."""
        self._pending += data
        while (size := self._size()) is not None and len(self._pending) >= size:
            message, self._pending = self._pending[:size], self._pending[size:]
            yield not self._greeted, message
            self._greeted = True

    def rest(self) -> bytes:
        """What came of a message that was never completed."""
        return self._pending

    def _size(self) -> int | None:
        if self._greeted:
            return HEADER_SIZE + HEADER.unpack_from(self._pending)[1] if len(self._pending) >= HEADER_SIZE else None
        if len(self._pending) < 4:
            return None
        # Whatever a handshake announces beyond reason is kept in pieces of that size.
        return max(4, min(int.from_bytes(self._pending[:4], "little"), _HANDSHAKE_MAX))


class Recorder:
    """Writes conversations down as they are held; a file that can't be written is given up, and nothing else.

    Args:
        file: opened for appending, unbuffered; this object doesn't close it.

    Attributes:
        problem: why nothing is written any more, or None.
    """

    def __init__(self, file: BinaryIO, dialect: Dialect) -> None:
        self._file = file
        self._dialect = dialect
        self.problem: str | None = None
        self._buffer = bytearray()
        self._number = 0
        self._sides = {False: _Splitter(), True: _Splitter()}

    def begin(self) -> None:
        """A connection has been made."""
        self._number = 0
        self._sides = {False: _Splitter(), True: _Splitter()}

    def kernel_said(self, data: bytes) -> None:
        """Note what is sent to the tool."""
        self._note(False, data)

    def tool_said(self, data: bytes) -> None:
        """Note what the tool sent; nothing means that it has closed."""
        if data:
            self._note(True, data)
        else:
            self.end(outgoing=True)

    def end(self, *, outgoing: bool = False) -> None:
        """A side has closed: the tool (`outgoing`) or the kernel. Called again, it says nothing more."""
        if not self._number:
            return
        for side, splitter in self._sides.items():
            if rest := splitter.rest():
                self._write(side, "rest", rest)
        self._write(outgoing, "EOF", b"")
        self.flush()
        self.begin()

    def flush(self) -> None:
        """Hand what is buffered to the file system."""
        try:
            while self._buffer and self.problem is None:
                del self._buffer[: self._file.write(self._buffer)]
        except OSError as error:
            self.problem = error.strerror or str(error)

    def _note(self, outgoing: bool, data: bytes) -> None:
        for greeting, message in self._sides[outgoing].feed(data):
            self._write(outgoing, _HANDSHAKE if greeting else _name(self._dialect, outgoing, message), message)

    def _write(self, outgoing: bool, name: str, data: bytes) -> None:
        self._number += 1
        way = "out" if outgoing else "in "
        if self.problem is None:
            self._buffer += f"{self._number:04} {way} {name:<28} {data.hex()}".rstrip().encode() + b"\n"
            if len(self._buffer) > _BUFFERED_MAX:
                self.flush()


def open_recording(path: Path) -> BinaryIO:
    """A file to record into: a new one, or a recording that is gone on with. A line that was broken off is cut off.

    Raises:
        OSError: it can't be opened.
        RecordingError: there is something else in it.
    """
    with suppress(FileExistsError):
        return path.open("xb", buffering=0)
    file = path.open("r+b", buffering=0)
    try:
        next(_lines(file), None)
        end = file.seek(0, SEEK_END)
        start = file.seek(max(end - MAX_LINE, 0))
        tail = file.read(MAX_LINE)
        file.truncate(start + tail.rfind(b"\n") + 1)
        file.seek(0, SEEK_END)
    except BaseException:
        file.close()
        raise
    return file


def conversations(file: BinaryIO) -> Iterator[Iterator[RecordedMessage]]:
    """Each conversation of a recording, read as it is asked for; one has to be read to its end before the next.

    Raises:
        RecordingError: a line isn't one of a recording.
    """
    lines = _lines(file)
    held = next(lines, None)

    def one(first: RecordedMessage) -> Iterator[RecordedMessage]:
        nonlocal held
        yield first
        while (following := next(lines, None)) is not None:
            number, message = following
            if number == 1:
                held = following
                return
            yield message

    while held is not None:
        _, message = held
        held = None
        conversation = one(message)
        yield conversation
        for _ in conversation:
            pass


def split(message: RecordedMessage) -> Iterator[bytes]:
    """The messages that a line holds: one, or several that were sent in one piece."""
    data = message.data or b""
    at = 0
    while at < len(data):
        size = HEADER_SIZE + HEADER.unpack_from(data, at)[1] if len(data) - at >= HEADER_SIZE else len(data)
        yield data[at : at + size]
        at += size


def is_handshake(message: RecordedMessage) -> bool:
    """Whether this is a hello or its answer, by the length that it begins with."""
    data = message.data or b""
    return len(data) >= 24 and int.from_bytes(data[:4], "little") == len(data)


def dialect_of(message: RecordedMessage) -> Dialect | None:
    """The generation that a message gives away: the answer to GET_VERSION, or the hello of a VMM of v12."""
    data = message.data
    if message.outgoing or data is None:
        return None
    if is_handshake(message):
        return V12 if len(data) == _HELLO_V12 else None
    if len(data) < HEADER_SIZE + _VERSION_REPLY or HEADER.unpack_from(data)[:2] != (_GET_VERSION, _VERSION_REPLY):
        return None
    return V12 if any(data[HEADER_SIZE + 12 : HEADER_SIZE + 16]) else V7


def _lines(file: BinaryIO) -> Iterator[tuple[int, RecordedMessage]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise RecordingError(f"line {number} has more than {MAX_LINE} characters")
        if not line.endswith(b"\n"):
            return  # being written when the recorder was stopped
        text = line.rstrip()
        if not text:
            continue
        if match := _EOF.fullmatch(text):
            yield int(match[1]), RecordedMessage(number, match[2] == b"out", None)
            continue
        match = _LINE.fullmatch(text)
        if match is None or not match[4] or len(match[4]) % 2:
            raise RecordingError(f"line {number} is none of a recording: a number, in or out, a name, bytes")
        yield int(match[1]), RecordedMessage(number, match[2] == b"out", bytes.fromhex(match[4].decode()))


def _name(dialect: Dialect, outgoing: bool, message: bytes) -> str:
    """What people call a message."""
    message_id, size, _ = HEADER.unpack_from(message)
    framing = dialect.framing
    if outgoing and message_id == framing.event_reply:
        return "event reply"
    if not outgoing and message_id in (framing.vm_event, framing.vcpu_event) and size > REPLY_HEAD.size:
        try:
            return f"event {_upper(codec_of(dialect).events.decode(message).kind.value)}"
        except RemoteProtocolError:
            return "event"
    row = dialect.command_by_id.get(message_id)
    name = _upper(_CAMEL.sub("_", row.message.__name__)) if row else str(message_id)
    return name if outgoing else f"reply {name}"


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()
