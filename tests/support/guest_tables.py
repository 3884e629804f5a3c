"""Symbol tables of kernels that never were: small ones with every landmark, and ones as large as a distribution's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from policyc.guest.linux_anchors import VECTORS

BASE = 0xFFFF_FFFF_8100_0000

BANNER = "Linux version 6.1.0-99-amd64 (build@example.org) (gcc 12.2.0) #1 SMP Example 6.1.99-1 (2026-01-02)"

SECTION_ROWS: Mapping[str, tuple[int, str]] = {
    "_text": (0x0, "T"),
    "_stext": (0x0, "T"),
    "_etext": (0x20_0000, "T"),
    "__start_rodata": (0x40_0000, "R"),
    "linux_banner": (0x40_0100, "R"),
    "sys_call_table": (0x40_0200, "R"),
    "sys_call_table_end": (0x40_1300, "r"),
    "__end_rodata": (0x60_0000, "R"),
    "_sdata": (0x60_0000, "D"),
    "init_task": (0x60_0000, "D"),
    "init_top_pgt": (0x61_0000, "D"),
    "system_state": (0x61_2000, "D"),
    "after_system_state": (0x61_2004, "d"),
    "_edata": (0x70_0000, "D"),
    "__init_begin": (0x70_0000, "D"),
    "__init_end": (0x80_0000, "R"),
    "__bss_start": (0x80_0000, "B"),
    "__bss_stop": (0x90_0000, "B"),
    "_end": (0xA0_0000, "B"),
}

ENTRY_OFFSET = 0x80
HANDLER_OFFSET = 0xA00
HANDLER_SIZE = 0x20


def handler_rows() -> dict[str, tuple[int, str]]:
    """The entry points of a kernel since 5.8: where SYSCALL leads, and every gate's handler."""
    names = [name for _, name, _ in VECTORS]
    handlers = {name: (HANDLER_OFFSET + HANDLER_SIZE * index, "T") for index, name in enumerate(names)}
    return {"entry_SYSCALL_64": (ENTRY_OFFSET, "T"), **handlers, "schedule": (0x1000, "T"), "vfs_read": (0x1100, "T")}


def kernel_rows(without: Iterable[str] = ()) -> dict[str, tuple[int, str]]:
    """Offset from the base and letter of each symbol of the small kernel."""
    rows = {**SECTION_ROWS, **handler_rows()}
    for name in without:
        del rows[name]
    return rows


def table(rows: Mapping[str, tuple[int, str]], base: int = BASE, extra: str = "") -> bytes:
    """The text of a table with `rows`, which are offsets from `base`, and `extra` lines as they stand."""
    lines = [f"{base + offset:016x} {letter} {name}\n" for name, (offset, letter) in rows.items()]
    return ("".join(lines) + extra).encode()


def large_table(symbols: int, modules: int, seed: int = 1) -> bytes:
    """A table of about `symbols` functions, among them static ones that share a name, and `modules` modules."""
    chance = random.Random(seed)
    lines = [table(kernel_rows()).decode()]
    at = BASE + 0x2000
    for index in range(symbols):
        at += 16 * chance.randrange(1, 3)
        shared = index % 97 == 0
        lines.append(f"{at:016x} {'t' if shared else 'T'} {'init_once' if shared else f'function_number_{index}'}\n")
    at = 0xFFFF_FFFF_C000_0000
    for module in range(modules):
        at += 0x1_0000
        lines += [f"{at + 16 * index:016x} t work_{index}\t[module{module}]\n" for index in range(20)]
    chance.shuffle(lines)
    return "".join(lines).encode()
