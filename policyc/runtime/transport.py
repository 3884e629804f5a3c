"""The socket that QEMU connects to: made, guarded and taken away again."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

__all__ = ["SOCKET_MODE", "Listener", "Occupant", "Peer", "TransportError", "occupant", "set_timeout"]

SOCKET_MODE = 0o660
"""Owner and group: QEMU's user belongs into the group of the directory that the socket is in."""

_UCRED = struct.Struct("=iII")
_TIMEVAL = struct.Struct("=qq")


class TransportError(Exception):
    """The socket can't be made; `help` says what to do."""

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help


class Occupant(Enum):
    """What is at the path of a socket."""

    NOTHING = "nothing"
    LEFT_BEHIND = "a socket that nobody uses"
    IN_USE = "a socket that somebody uses"
    OTHER = "something that is no socket"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel knows it (SO_PEERCRED of unix(7))."""

    pid: int
    uid: int
    gid: int


class Listener:
    """A listening unix socket at `path`.

    Raises:
        TransportError: the path is taken, too long or out of reach.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _clear(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # Bound under a mask that lets nobody in, then opened to owner and group: there is no moment in between.
        before = os.umask(0o177)
        try:
            self._socket.bind(os.fspath(path))
            path.chmod(SOCKET_MODE)
            self._socket.listen(1)
        except OSError as error:
            self._socket.close()
            raise _cannot_listen(path, error) from error
        finally:
            os.umask(before)
        self._inode = path.stat().st_ino

    def accept(self, timeout: float) -> tuple[socket.socket, Peer] | None:
        """The next connection, or None if none came within so many seconds."""
        set_timeout(self._socket, timeout)
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return connection, Peer(*_UCRED.unpack(credentials))

    def close(self) -> None:
        """Stop listening and take the socket's name away, unless somebody else has taken it over."""
        self._socket.close()
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass


def occupant(path: Path) -> Occupant:
    """What is there, found out without disturbing whoever listens.

    A datagram socket can't connect to a stream socket, and the kernel says so (EPROTOTYPE of unix(7)) only of one that
    is in use: nobody has to accept anything.

    Raises:
        OSError: it can't be found out.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return Occupant.NOTHING
    if not stat.S_ISSOCK(mode):
        return Occupant.OTHER
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return Occupant.LEFT_BEHIND
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    return Occupant.IN_USE


def set_timeout(sock: socket.socket, seconds: float, *, option: int = socket.SO_RCVTIMEO) -> None:
    """Let blocking calls on `sock` fail with BlockingIOError after so long.

    SO_RCVTIMEO and SO_SNDTIMEO cost nothing per call, whereas a Python socket with a timeout polls before each. Zero
    would mean for ever, so it is taken for the shortest time there is.
    """
    microseconds = max(1, int(seconds * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(*divmod(microseconds, 1_000_000)))


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any more; refuse to touch anything else."""
    try:
        found = occupant(path)
        if found is Occupant.LEFT_BEHIND:
            path.unlink()
    except OSError as error:
        raise _cannot_listen(path, error) from error
    if found is Occupant.OTHER:
        raise TransportError(f"`{path}` exists and is no socket", "choose another path, or move that file away")
    if found is Occupant.IN_USE:
        raise TransportError(f"somebody listens on `{path}` already", "stop that process, or choose another path")


def _cannot_listen(path: Path, error: OSError) -> TransportError:
    help = None
    if error.errno == errno.ENOENT:
        help = f"make the directory `{path.parent}` first"
    elif "too long" in str(error):
        help = "a socket's path has at most 107 bytes: choose a shorter one"
    return TransportError(f"can't listen on `{path}`: {error.strerror or error}", help)
