"""The guest's first file system: busybox, and a script that prepares the machine to be taken out of QEMU.

The archive is a cpio in the "newc" form (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), made from
a list of entries, so that the same busybox gives the same bytes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["HOSTNAME", "SYMBOLS_SENT", "Entry", "archive", "guest_files"]

SYMBOLS_SENT: Final = b"policyc: symbols sent"
"""The console says this when the second serial port has had the symbol table."""

HOSTNAME: Final = "policyc"
"""The guest names itself when the machine may be taken; lines on the console are obeyed from then on."""

_TRAILER: Final = "TRAILER!!!"
_CONSOLE: Final = (5, 1)
_DEVICES: Final[Mapping[str, tuple[int, int]]] = {
    "dev/console": _CONSOLE,
    "dev/null": (1, 3),
    "dev/ttyS0": (4, 64),
    "dev/ttyS1": (4, 65),
}

_INIT: Final = f"""#!/bin/sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o size=95% tmp /tmp
echo 0 > /proc/sys/kernel/kptr_restrict
stty -F /dev/ttyS1 raw
gzip -c /proc/kallsyms > /dev/ttyS1
stty -F /dev/ttyS0 -echo
cd /tmp
echo '{SYMBOLS_SENT.decode()}' > /dev/ttyS0
# Memory that nobody uses is filled with zeros, so that it takes no room in a snapshot.
echo 3 > /proc/sys/vm/drop_caches
free=$(awk '/MemFree/ {{ print int($2 / 1024) }}' /proc/meminfo)
dd if=/dev/zero of=zeros bs=1M count=$((free - 8)) 2> /dev/null
rm zeros
# The kernel's own work after boot (the clock's last calibration, freed pages) comes to rest meanwhile.
sleep 3
hostname {HOSTNAME}
# A timer that is due soon: at its interrupt the machine is taken.
sleep 1
while read -r line; do eval "$line"; done < /dev/ttyS0 > /dev/ttyS0 2>&1
"""

_WORKLOAD: Final = """#!/bin/sh
# System calls, page faults, fork and exec, pipes and files, for ever.
round=0
while :; do
    round=$((round + 1))
    cat /proc/uptime /proc/meminfo > /tmp/state
    grep -c Mem /tmp/state > /dev/null
    ls -l /proc/self | wc -l > /tmp/count
    dd if=/dev/zero of=/tmp/block bs=4096 count=4 2> /dev/null
    echo $round > /tmp/round
    sleep 1
done
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the archive.

    Attributes:
        mode: type and permissions, as in `struct stat`.
        device: major and minor number of a device file.
    """

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def guest_files(busybox: bytes) -> list[Entry]:
    """What the guest's file system begins with."""
    folders = ("bin", "dev", "proc", "sys", "tmp")
    return [
        *(Entry(name, stat.S_IFDIR | 0o755) for name in folders),
        *(Entry(name, stat.S_IFCHR | 0o600, device=number) for name, number in _DEVICES.items()),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox),
        Entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
        Entry("bin/workload", stat.S_IFREG | 0o755, _WORKLOAD.encode()),
        Entry("init", stat.S_IFREG | 0o755, _INIT.encode()),
    ]


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries as a cpio archive; owned by root, dated 1970."""
    parts = [_record(number, entry) for number, entry in enumerate(entries, 1)]
    return b"".join(parts) + _record(0, Entry(_TRAILER, 0))


def _record(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
