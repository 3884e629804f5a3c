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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.kvmi import V7, V12, Dialect
from policyc.kvmi.framing import HEADER, HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = [
    "MAX_LINE",
    "RecordedMessage",
    "RecordingError",
    "announced_size",
    "conversations",
    "dialect_of",
    "is_handshake",
    "split",
]

MAX_LINE: Final = 2 * (HEADER_SIZE + 0xFFFF) + 256
"""Characters of a line: the longest message that a header can announce, and what stands before it."""

_LINE: Final = re.compile(rb"(\d{1,9}) (in|out) +([\x20-\x7e]{0,200}?) *\b([0-9a-f]*)")
_EOF: Final = re.compile(rb"(\d{1,9}) (in|out) +EOF\b[\x20-\x7e]{0,200}")
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


def announced_size(data: bytes, at: int = 0) -> int | None:
    """The length that the message beginning at `at` announces, its header included; None before that is whole."""
    return HEADER_SIZE + HEADER.unpack_from(data, at)[1] if len(data) - at >= HEADER_SIZE else None


def split(message: RecordedMessage) -> Iterator[bytes]:
    """The messages that a line holds: one, or several that were sent in one piece."""
    data = message.data or b""
    at = 0
    while at < len(data):
        size = announced_size(data, at) or len(data)
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
