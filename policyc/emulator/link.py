"""The connection to the tool, as a VMM keeps it: try, wait, try again; hand over what comes, send what is due.

Nothing here blocks. A socket that accepts nothing more holds what is to be sent until it does, up to a limit at which
a real kernel's writer would have been standing still for long.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from policyc.emulator.recorder import Recorder

__all__ = ["UNSENT_MAX", "Link"]

UNSENT_MAX: Final = 16 << 20
_READ: Final = 65536


class Link:
    """A stream socket to the tool, or none at the moment.

    Args:
        path: the tool's UNIX socket.
        retry: seconds between attempts.
        recorder: writes down what goes over it.
    """

    def __init__(self, path: Path, retry: float, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self._path = path
        self._retry = retry
        self._next_try = 0.0
        self._unsent = bytearray()
        self.socket: socket.socket | None = None
        self.attempts = 0
        self.problem: str | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self.socket is not None

    @property
    def sending(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._unsent)

    def next_try(self) -> float | None:
        """When to call `connect` again, as the clock given to it counts; None while connected."""
        return None if self.socket is not None else self._next_try

    def connect(self, now: float) -> bool:
        """Try, if it is time; whether there is a new connection. `problem` says why not."""
        if self.socket is not None or now < self._next_try:
            return False
        self.attempts += 1
        self._next_try = now + self._retry
        attempt = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            attempt.connect(str(self._path))
        except OSError as error:
            attempt.close()
            self.problem = f"{self._path}: {error.strerror or error}"
            return False
        attempt.setblocking(False)
        self.socket = attempt
        self.problem = None
        return True

    def receive(self) -> bytes | None:
        """What has come; empty if the tool has closed, None if there is nothing at the moment."""
        if self.socket is None:
            return None
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if self._recorder is not None:
            self._recorder.tool_said(data)
        return data

    def send(self, data: bytes) -> bool:
        """Send, or keep for later; False if the tool is gone or has stopped reading for good."""
        self._unsent += data
        if self._recorder is not None and data:
            self._recorder.kernel_said(data)
        if self.socket is None:
            return False
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            return len(self._unsent) <= UNSENT_MAX
        except OSError:
            return False
        return True

    def close(self, now: float) -> None:
        """Give up this connection; the next attempt comes after the retry time."""
        self._unsent.clear()
        if self._recorder is not None:
            self._recorder.end()
        self._next_try = now + self._retry
        if self.socket is not None:
            with suppress(OSError):
                self.socket.close()
            self.socket = None
