"""Writes conversations down while they are held; see `recording` for the form."""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from os import SEEK_END
from typing import TYPE_CHECKING, Final

from policyc.emulator.recording import MAX_LINE, announced_size, conversations
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER, REPLY_HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from policyc.kvmi import Dialect

__all__ = ["Recorder", "open_recording"]

_HANDSHAKE: Final = "handshake"
_HANDSHAKE_MAX: Final = 4096
_BUFFERED_MAX: Final = 1 << 16
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


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
            return announced_size(self._pending)
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
        next(conversations(file), None)
        end = file.seek(0, SEEK_END)
        start = file.seek(max(end - MAX_LINE, 0))
        tail = file.read(MAX_LINE)
        file.truncate(start + tail.rfind(b"\n") + 1)
        file.seek(0, SEEK_END)
    except BaseException:
        file.close()
        raise
    return file


@cache
def _command_name(dialect: Dialect, message_id: int) -> str:
    row = dialect.command_by_id.get(message_id)
    return _upper(_CAMEL.sub("_", row.message.__name__)) if row else str(message_id)


@cache
def _event_name(dialect: Dialect, number: int) -> str:
    row = dialect.event_by_id.get(number)
    return f"event {_upper(row.kind.value)}" if row else "event"


def _name(dialect: Dialect, outgoing: bool, message: bytes) -> str:
    """What people call a message."""
    message_id, size, _ = HEADER.unpack_from(message)
    framing = dialect.framing
    if outgoing and message_id == framing.event_reply:
        return "event reply"
    if not outgoing and message_id in (framing.vm_event, framing.vcpu_event) and size > REPLY_HEAD.size:
        head = codec_of(dialect).events.head
        return _event_name(dialect, head.read.unpack_from(message)[head.event] if len(message) >= head.least else -1)
    if not outgoing and message_id == framing.vm_event != framing.vcpu_event:
        return _event_name(dialect, 0)
    name = _command_name(dialect, message_id)
    return name if outgoing else f"reply {name}"


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()
