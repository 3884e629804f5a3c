"""What is at the path of a socket, and which accounts may connect to it.

All of it is read from the file system; whoever listens there already isn't disturbed.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from policyc.runtime.doctor_processes import Process, listener_of
from policyc.runtime.transport import SOCKET_MODE, Occupant, occupant

__all__ = ["QEMU_ACCOUNTS", "Account", "Place", "Rights", "Site", "find_place", "survey_site"]

QEMU_ACCOUNTS = ("libvirt-qemu", "qemu")
"""The accounts that distributions run QEMU under: Debian's and Ubuntu's, and Fedora's and SUSE's."""

KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """What was at the path before anything was done about it.

    Attributes:
        occupant: None where it can't be found out; then `problem` says why.
        kind: what it is, where it is no socket.
        holder: who listens there, where that can be seen.
    """

    path: Path
    occupant: Occupant | None
    kind: str | None = None
    problem: str | None = None
    holder: Process | None = None


@dataclass(frozen=True, slots=True)
class Rights:
    """A file's rights as `ls` shows them, its owner and its group."""

    mode: str
    owner: str
    group: str

    def __str__(self) -> str:
        return f"{self.mode} {self.owner} {self.group}"


@dataclass(frozen=True, slots=True)
class Account:
    """An account that may connect, or what keeps it from that."""

    name: str
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class Site:
    """Rights around the socket; a socket that isn't there yet counts as this program would make it.

    Attributes:
        socket: of the socket itself, None while it isn't there.
        directory: of the directory that holds it, None where there is none.
        accounts: this process's own and, where they exist, QEMU's.
    """

    socket: Rights | None
    directory: Rights | None
    accounts: tuple[Account, ...]


def find_place(path: Path) -> Place:
    """Look what is at `path`."""
    try:
        found = occupant(path)
    except OSError as error:
        return Place(path, None, problem=error.strerror or str(error))
    if found is Occupant.OTHER:
        mode = path.lstat().st_mode
        return Place(path, found, kind=next((word for is_kind, word in KINDS if is_kind(mode)), "no socket"))
    return Place(path, found, holder=listener_of(path) if found is Occupant.IN_USE else None)


def survey_site(path: Path) -> Site:
    """Who may connect to `path`, by the rights of the file and of every directory above it; ACLs aren't looked at."""
    status = _status(path)
    is_socket = status is not None and stat.S_ISSOCK(status.st_mode)
    directory = _status(path.parent)
    return Site(
        socket=_rights(status) if status is not None and is_socket else None,
        directory=_rights(directory) if directory is not None else None,
        accounts=tuple(_accounts(path, status if is_socket else None)) if directory is not None else (),
    )


def _accounts(path: Path, socket: os.stat_result | None) -> Iterator[Account]:
    uid = os.geteuid()
    yield Account(_user(uid), _obstacle(uid, [os.getegid(), *os.getgroups()], path, socket))
    for name in QEMU_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != uid:
            groups = os.getgrouplist(name, entry.pw_gid)
            yield Account(name, _obstacle(entry.pw_uid, groups, path, socket))


def _obstacle(uid: int, groups: Sequence[int], path: Path, socket: os.stat_result | None) -> str | None:
    """What keeps this user from connecting, which takes search on directories and write on the socket (unix(7))."""
    if uid == 0:
        return None
    for directory in reversed(path.parents):
        status = _status(directory)
        if status is None or not _grants(status.st_mode, status.st_uid, status.st_gid, uid, groups, stat.S_IXOTH):
            return f"may not search `{directory}`"
    if socket is not None:
        mode, owner, group = socket.st_mode, socket.st_uid, socket.st_gid
    else:
        above = _status(path.parent)
        inherits = above is not None and above.st_mode & stat.S_ISGID
        mode, owner = SOCKET_MODE, os.geteuid()
        group = above.st_gid if above is not None and inherits else os.getegid()
    if not _grants(mode, owner, group, uid, groups, stat.S_IWOTH):
        return f"may not write to the socket, and isn't in the group `{_group(group)}`"
    return None


def _grants(mode: int, owner: int, group: int, uid: int, groups: Sequence[int], right: int) -> bool:
    """Whether the class that the user falls into has the right, given as its bit for others."""
    shift = 6 if uid == owner else 3 if group in groups else 0
    return bool(mode & right << shift)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _rights(status: os.stat_result) -> Rights:
    return Rights(stat.filemode(status.st_mode), _user(status.st_uid), _group(status.st_gid))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
