"""How a Linux kernel's symbols bound its sections, and the image that a list of symbols makes.

Section bounds: include/asm-generic/sections.h and arch/x86/kernel/vmlinux.lds.S. `.rodata` is everything that
mark_rodata_ro() makes read-only after boot, with the exception table and the data written during initialisation only.
`.init` is code and data that free_initmem() gives back once the kernel runs: its frames then hold anything.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policyc.addresses import Gva, GvaRange, Range
from policyc.guest.errors import ProfileError
from policyc.guest.profile import KERNEL, Image
from policyc.guest.symbols import SymbolTable

__all__ = ["BASE_SYMBOLS", "KERNEL_HALF", "SECTIONS", "Row", "kernel_image", "module_image"]

KERNEL_HALF = 0xFFFF_8000_0000_0000
"""Where x86-64 Linux's own half of the address space starts with four levels (Documentation/arch/x86/x86_64/mm.rst)."""

BASE_SYMBOLS = ("_text", "_stext")
"""Symbols that offsets may count from, the first that exists."""

ENTRY_SYMBOLS = ("entry_SYSCALL_64", "system_call")
"""Where the SYSCALL instruction leads: every x86-64 kernel has one of them (`system_call` before Linux 4.3)."""

Row = tuple[int, str, str]
"""One line of a symbol table: address, name, `nm` letter. Rows sort as the columns of a `SymbolTable` must."""


@dataclass(frozen=True, slots=True)
class SectionBounds:
    """The symbols between which a section lies: the first of `starts` that exists, and `end`."""

    name: str
    starts: tuple[str, ...]
    end: str


SECTIONS = (
    SectionBounds(".text", ("_stext", "_text"), "_etext"),
    SectionBounds(".rodata", ("__start_rodata",), "__end_rodata"),
    SectionBounds(".data", ("_sdata",), "_edata"),
    SectionBounds(".bss", ("__bss_start",), "__bss_stop"),
    SectionBounds(".init", ("__init_begin",), "__init_end"),
)


def kernel_image(rows: Sequence[Row], *, sparse: bool = False) -> Image:
    """The kernel's image from its rows, in any order; values below `KERNEL_HALF` are taken for offsets.

    Args:
        rows: all that the kernel has, or with `sparse` some of them: sizes are then unknown.

    Raises:
        ProfileError: the rows aren't an x86-64 kernel's.
    """
    value_of = _bounds_in(rows)
    base = next((value_of[name] for name in BASE_SYMBOLS if name in value_of), None)
    if base is None:
        raise ProfileError(
            "this table has neither `_text` nor `_stext`: it isn't a Linux kernel's, or it has lost its start",
            "use System.map from the kernel build, or the whole of /proc/kallsyms",
        )
    if base < KERNEL_HALF or not any(name in value_of for name in ENTRY_SYMBOLS):
        raise ProfileError(
            f"this table isn't an x86-64 kernel's: its base is {base:#x} and it "
            + ("has" if any(name in value_of for name in ENTRY_SYMBOLS) else "has no")
            + " `entry_SYSCALL_64`",
            "policyc guards 64-bit x86 guests only",
        )
    per_cpu = range(value_of.get("__per_cpu_start", 0), value_of.get("__per_cpu_end", 0))
    placed = sorted(row for row in rows if row[0] >= KERNEL_HALF and row[0] not in per_cpu)
    sections, absent = _sections(value_of)
    end = value_of.get("_end")
    return Image(
        name=KERNEL,
        base=Gva(base),
        sections=sections,
        absent_sections=absent,
        symbols=_table(placed, None if end is None else Gva(end), sparse=sparse),
        offset_names=frozenset(name for value, name, _ in rows if value < KERNEL_HALF or value in per_cpu),
    )


def module_image(name: str, rows: Sequence[Row]) -> Image:
    """A module's image: it has no base, since each load puts it elsewhere."""
    placed = sorted(row for row in rows if row[0] >= KERNEL_HALF)
    offsets = frozenset(name for value, name, _ in rows if value < KERNEL_HALF)
    return Image(name, None, {}, {}, _table(placed, None), offsets)


def _bounds_in(rows: Sequence[Row]) -> dict[str, int]:
    wanted = {*BASE_SYMBOLS, *ENTRY_SYMBOLS, "_end", "__per_cpu_start", "__per_cpu_end"}
    wanted.update(symbol for section in SECTIONS for symbol in (*section.starts, section.end))
    return {name: value for value, name, _ in rows if name in wanted}


def _sections(value_of: Mapping[str, int]) -> tuple[dict[str, GvaRange], dict[str, str]]:
    sections: dict[str, GvaRange] = {}
    absent: dict[str, str] = {}
    for section in SECTIONS:
        start = next((name for name in section.starts if name in value_of), None)
        lacking = ([] if start else [section.starts[0]]) + ([] if section.end in value_of else [section.end])
        if lacking or start is None:
            absent[section.name] = "the table lacks " + " and ".join(f"`{name}`" for name in lacking)
        elif not KERNEL_HALF <= value_of[start] < value_of[section.end]:
            absent[section.name] = f"`{section.end}` doesn't lie above `{start}`"
        else:
            sections[section.name] = Range(Gva(value_of[start]), Gva(value_of[section.end]))
    return sections, absent


def _table(rows: Sequence[Row], end: Gva | None, *, sparse: bool = False) -> SymbolTable:
    return SymbolTable(
        addresses=array("Q", (value for value, _, _ in rows)),
        text=" ".join(name for _, name, _ in rows),
        letters="".join(letter for _, _, letter in rows),
        end=end,
        sparse=sparse,
    )
