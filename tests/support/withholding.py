"""A wire between a guest and its tool on which the events of one vCPU can be withheld: nobody answers them."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Wire", "withheld"]

HEADER = struct.Struct("<HHI")
HELLO_SIZE = struct.Struct("<I")
EVENT_ID = 1
VCPU_AT = {544: 2, 552: 10}
"""Where an event's vCPU stands, by where its own data begins: in v7, and in v12."""


class Wire:
    """One connection, carried over message by message from the guest's side and as it comes from the tool's."""

    def __init__(self, listener: socket.socket, target: Path) -> None:
        self._listener = listener
        self._target = target
        self._lock = threading.Lock()
        self._withheld: int | None = None
        self._kept: list[bytes] = []
        self._tool: socket.socket | None = None
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def withhold(self, vcpu: int) -> None:
        """From now on, keep events of that vCPU."""
        with self._lock:
            self._withheld = vcpu

    def release(self) -> None:
        """Send what was kept, and keep nothing more."""
        with self._lock:
            self._withheld = None
            kept, self._kept = self._kept, []
            assert self._tool is not None
            self._tool.sendall(b"".join(kept))

    def close(self) -> None:
        """End it."""
        self._wake.close()
        self._thread.join()
        self._woken.close()

    def _carry(self) -> None:
        guest = self._accept()
        if guest is None:
            return
        with guest, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tool, selectors.DefaultSelector() as selector:
            tool.connect(str(self._target))
            self._tool = tool
            for one in (guest, tool, self._woken):
                selector.register(one, selectors.EVENT_READ)
            buffer, greeted = b"", False
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        return
                    source = guest if key.fileobj is guest else tool
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is tool:
                        guest.sendall(data)
                        continue
                    buffer += data
                    if not greeted and len(buffer) >= HELLO_SIZE.size:
                        (size,) = HELLO_SIZE.unpack_from(buffer)
                        tool.sendall(buffer[:size])
                        buffer, greeted = buffer[size:], True
                    buffer = self._messages(buffer, tool)

    def _accept(self) -> socket.socket | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            if any(key.fileobj is self._woken for key, _ in selector.select()):
                return None
            return self._listener.accept()[0]

    def _messages(self, buffer: bytes, tool: socket.socket) -> bytes:
        while len(buffer) >= HEADER.size:
            number, size, _ = HEADER.unpack_from(buffer)
            if len(buffer) < HEADER.size + size:
                break
            message, buffer = buffer[: HEADER.size + size], buffer[HEADER.size + size :]
            with self._lock:
                if number == EVENT_ID and self._withheld is not None and _vcpu_of(message) == self._withheld:
                    self._kept.append(message)
                else:
                    tool.sendall(message)
        return buffer


def _vcpu_of(message: bytes) -> int:
    """The vCPU of an event: v12 begins with the event's number, v7 with the size of its common part."""
    at = VCPU_AT[544] if int.from_bytes(message[8:10], "little") == 544 else VCPU_AT[552]
    return int.from_bytes(message[HEADER.size + at : HEADER.size + at + 2], "little")


@contextmanager
def withheld(path: Path, target: Path) -> Iterator[Wire]:
    """A wire that a guest can connect to at `path`, and that leads to the tool at `target`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        wire = Wire(listener, target)
        try:
            yield wire
        finally:
            wire.close()
