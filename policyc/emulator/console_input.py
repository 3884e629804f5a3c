"""Lines from a terminal, a pipe or a file, without ever waiting for one."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ConsoleInput"]

_READ: Final = 4096
_UNFINISHED_MAX: Final = 4096


class ConsoleInput:
    """Console lines as they come.

    Attributes:
        descriptor: what to wait for; None if nothing more can come later than now, as from a file.
        terminal: somebody may be typing.
        ended: the end was reached.
    """

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream.isatty()
        self.ended = False
        self.descriptor = _waitable(stream)
        self._unfinished = b""
        self._lines: list[str] = []
        if self.descriptor is None:
            self._lines = stream.read().splitlines()
            self.ended = True

    def read(self) -> None:
        """Take what `descriptor` has; to be called when it is readable."""
        if self.descriptor is None or self.ended:
            return
        data = os.read(self.descriptor, _READ)
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if not data or len(self._unfinished) > _UNFINISHED_MAX:
            lines.append(self._unfinished)
            self._unfinished = b""
        self.ended = not data
        self._lines += [line.decode(errors="replace") for line in lines]

    def lines(self) -> Iterator[str]:
        """Take the lines that are there."""
        lines, self._lines = self._lines, []
        yield from lines


def _waitable(stream: TextIO) -> int | None:
    """The descriptor of a terminal, pipe or socket; regular files and streams in memory can't be waited for."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return None
    mode = os.fstat(descriptor).st_mode
    return descriptor if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stream.isatty() else None
