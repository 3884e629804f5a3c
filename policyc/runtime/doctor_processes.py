"""Processes of this host, as /proc shows them to whoever asks: who listens on a socket, and which VMMs run.

Another user's processes show their command line and not their descriptors; what can't be seen is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

__all__ = ["Process", "Vmm", "listener_of", "process", "running_vmms"]

PROC = Path("/proc")

MAX_PROCESSES = 1 << 16
MAX_DESCRIPTORS = 1 << 12
"""Descriptors of one process that are looked at."""

MAX_COMMAND_LINE = 1 << 17
"""Bytes of a command line that are read; QEMU's have some ten thousand at most."""

MAX_SOCKET_TABLE = 1 << 24
"""Bytes of /proc/net/unix that are read."""

ACCEPTS_CONNECTIONS = 1 << 16
"""The flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON of linux/net.h)."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its number and its name, which the process itself chooses."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} (`{self.name}`)" if self.name else f"process {self.pid}"


@dataclass(frozen=True, slots=True)
class Vmm:
    """A QEMU that runs.

    Attributes:
        is_introspected: whether it was given an introspection object.
        socket: the path that this object's chardev connects to, if it names one.
        reconnects: whether that chardev was given `reconnect`.
    """

    process: Process
    is_introspected: bool = False
    socket: str | None = None
    reconnects: bool = False


def process(pid: int, proc: Path = PROC) -> Process:
    """The process with this number."""
    return Process(pid, _read(proc / str(pid) / "comm", 64).decode(errors="backslashreplace").strip())


def listener_of(path: Path, proc: Path = PROC) -> Process | None:
    """Who listens on the socket at `path`, if it can be seen."""
    inode = _listening_inode(path, proc)
    if inode is None:
        return None
    wanted = f"socket:[{inode}]"
    for pid in _pids(proc):
        if any(_link(entry) == wanted for entry in _entries(proc / str(pid) / "fd", MAX_DESCRIPTORS)):
            return process(pid, proc)
    return None


def running_vmms(proc: Path = PROC) -> tuple[Vmm, ...]:
    """Every QEMU that runs, with what its command line says about introspection."""
    return tuple(vmm for pid in _pids(proc) if (vmm := _vmm(pid, proc)) is not None)


def _vmm(pid: int, proc: Path) -> Vmm | None:
    words = _read(proc / str(pid) / "cmdline", MAX_COMMAND_LINE).decode(errors="backslashreplace").split("\0")
    if not Path(words[0]).name.startswith(("qemu-system-", "qemu-kvm")):
        return None
    objects = [options for options in _options(words, "object") if options[""] == "introspection"]
    if not objects:
        return Vmm(process(pid, proc))
    chardevs = {options.get("id"): options for options in _options(words, "chardev")}
    chardev = chardevs.get(objects[0].get("chardev"), {})
    reconnects = any(chardev.get(name, "0") != "0" for name in ("reconnect", "reconnect-ms"))
    return Vmm(process(pid, proc), True, chardev.get("path"), reconnects)


def _options(words: Sequence[str], option: str) -> Iterator[Mapping[str, str]]:
    """Each value of a QEMU option, taken apart; the part without a name is under the empty one."""
    for word, value in pairwise(words):
        if word in (f"-{option}", f"--{option}"):
            # A comma in a value is written twice.
            parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
            pairs = [part.partition("=") for part in parts]
            named = {name: text for name, equals, text in pairs if equals}
            yield {"": parts[0], **named, **({"": named["qom-type"]} if "qom-type" in named else {})}


def _listening_inode(path: Path, proc: Path) -> str | None:
    table = _read(proc / "net" / "unix", MAX_SOCKET_TABLE).decode(errors="surrogateescape")
    for line in table.splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[7] == os.fspath(path) and int(fields[3], 16) & ACCEPTS_CONNECTIONS:
            return fields[6]
    return None


def _pids(proc: Path) -> list[int]:
    return sorted(int(entry.name) for entry in _entries(proc, MAX_PROCESSES) if entry.name.isdecimal())


def _entries(folder: Path, most: int) -> list[Path]:
    try:
        return list(islice(folder.iterdir(), most))
    except OSError:
        return []


def _link(entry: Path) -> str | None:
    try:
        return str(entry.readlink())
    except OSError:
        return None


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError:
        return b""
