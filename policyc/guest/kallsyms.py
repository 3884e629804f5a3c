"""Reads the text tables of Linux symbols: System.map, /proc/kallsyms and the output of `nm`.

Each line is an address, a letter, a name and, in /proc/kallsyms, the module in brackets (kernel/kallsyms.c, s_show).
"""

from __future__ import annotations

import re
from collections import defaultdict

from policyc.guest.errors import ProfileError, printable
from policyc.guest.linux_image import Row, kernel_image, module_image
from policyc.guest.profile import Image
from policyc.guest.store import MAX_IMAGES, MAX_NAME, MAX_SYMBOLS

__all__ = ["MAX_TABLE_BYTES", "looks_like_table", "read_table"]

MAX_TABLE_BYTES = 128 << 20
"""Size of the largest table that is read: a line takes some 45 bytes, so this is more than `MAX_SYMBOLS` need."""

LINE = re.compile(rb"^([0-9a-fA-F]{16}) ([A-Za-z?-]) ([!-~]+)(?:[ \t]+\[([!-Z^-~]+)\])?[ \t]*\r?\n", re.MULTILINE)
FIRST_LINE = re.compile(rb"[0-9a-fA-F]{8,16} [A-Za-z?-] [!-~]+")
LINE_OF_32_BITS = re.compile(rb"[0-9a-fA-F]{8} [A-Za-z?-] ")

# What kallsyms puts in the module's place for code that isn't a module's: BPF programs (kernel/bpf/core.c), and the
# trampolines of ftrace and kprobes (FTRACE_TRAMPOLINE_MOD, `__builtin__kprobes`). It comes and goes as the guest runs.
PSEUDO_MODULES = re.compile(r"bpf|__builtin__.*")


def looks_like_table(head: bytes) -> bool:
    """Whether a file that starts with `head` may be such a table."""
    return FIRST_LINE.match(head) is not None


def read_table(data: bytes) -> dict[str, Image]:
    """The kernel's image and those of the modules, by name, the kernel's first and the modules sorted.

    Raises:
        ProfileError: the table is malformed, hidden from its reader, or another architecture's.
    """
    rows_of = _rows(data)
    kernel = rows_of.pop("", [])
    if not any(value for rows in (kernel, *rows_of.values()) for value, _, _ in rows):
        raise ProfileError(
            "every address in this table is zero: the kernel hides them from whoever read it",
            "read /proc/kallsyms as root, or lower kernel.kptr_restrict",
        )
    image = kernel_image(kernel)
    modules = {name: module_image(name, rows_of[name]) for name in sorted(rows_of) if name != image.name}
    if len(modules) >= MAX_IMAGES:
        raise ProfileError(f"this table lists {len(modules)} modules, more than the limit of {MAX_IMAGES - 1}")
    return {image.name: image, **modules}


def _rows(data: bytes) -> dict[str, list[Row]]:
    """The rows of the kernel (under the empty name) and of each module."""
    if len(data) > MAX_TABLE_BYTES:
        raise ProfileError(f"this table is larger than the limit of {MAX_TABLE_BYTES >> 20} MiB")
    if not data.endswith(b"\n"):
        data += b"\n"
    lines = data.count(b"\n")
    if lines > MAX_SYMBOLS:
        raise ProfileError(f"this table has {lines} lines, more than the limit of {MAX_SYMBOLS} symbols")
    found = LINE.findall(data)
    if len(found) != lines:
        raise _malformed(data)
    rows_of: defaultdict[str, list[Row]] = defaultdict(list)
    for address, letter, name, module in found:
        if len(name) > MAX_NAME:
            raise ProfileError(f"this table has a name of {len(name)} bytes, more than the limit of {MAX_NAME}")
        rows_of[module.decode()].append((int(address, 16), name.decode(), letter.decode()))
    return {module: rows for module, rows in rows_of.items() if not PSEUDO_MODULES.fullmatch(module)}


def _malformed(data: bytes) -> ProfileError:
    """The error that names the first line which isn't of the table's form."""
    number, line = next(
        (number, line) for number, line in enumerate(data.split(b"\n"), start=1) if not LINE.fullmatch(line + b"\n")
    )
    if LINE_OF_32_BITS.match(line):
        return ProfileError(
            f"line {number} has an address of 32 bits: this table isn't an x86-64 kernel's",
            "policyc guards 64-bit x86 guests only",
        )
    return ProfileError(
        f"line {number} isn't an address, a letter and a name: `{printable(line)}`",
        "use System.map from the kernel build, or the whole of /proc/kallsyms",
    )
