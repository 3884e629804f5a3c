"""The symbols of a linked kernel as Linux carries them in its own memory, in assembler.

    nm -n kernel.elf | kallsyms.py >kallsyms.S

The tables, their order and their encoding are those of scripts/kallsyms.c in Linux 6.1, with 64-bit alignment,
CONFIG_KALLSYMS_BASE_RELATIVE and CONFIG_KALLSYMS_ABSOLUTE_PERCPU. A name is its type letter and its text, cut into
tokens; a token stands for one character or for up to all of a name that occurs often. As there, what the tables
themselves are called isn't in them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_letters, digits

KERNEL = range(0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_C000_0000)
TABLES = "kallsyms_"
TOKENS = 256
MARKER_EVERY = 256
LENGTH_MAX = 127
"""Longest encoded name; one more would need the two-byte length."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A line of nm: its letter tells the section, and whether it's global."""

    address: int
    letter: str
    name: str


def read_symbols(lines: Iterable[str]) -> list[Symbol]:
    """The kernel's own symbols by address: neither the module's nor the user task's, no absolute ones."""
    found = []
    for line in lines:
        address, letter, name = line.split()
        if int(address, 16) in KERNEL and letter not in "aAN" and not name.startswith(TABLES):
            found.append(Symbol(int(address, 16), letter, name))
    return found


def compress(names: Sequence[bytes]) -> tuple[list[list[int]], list[bytes]]:
    """Names as token numbers, and the text of each token; an unused one is empty.

    The pair of tokens that stands most often becomes a token of its own, until all numbers are taken. Letters and
    digits keep their own: a full kernel uses them all, and readers look for the digits.
    """
    coded = [list(name) for name in names]
    texts = [b""] * TOKENS
    for character in {*b"".join(names), *(ascii_letters + digits).encode()}:
        texts[character] = bytes([character])
    for number in range(TOKENS - 1, -1, -1):
        if texts[number]:
            continue
        pairs = Counter(pair for name in coded for pair in pairwise(name))
        pair, count = min(pairs.items(), key=lambda item: (-item[1], item[0]), default=((0, 0), 0))
        if count < 2:
            break
        texts[number] = texts[pair[0]] + texts[pair[1]]
        coded = [_replace(name, pair, number) for name in coded]
    return coded, texts


def _replace(name: list[int], pair: tuple[int, int], number: int) -> list[int]:
    made: list[int] = []
    for token in name:
        # A pair that was just made can't be the first half of another one: its number is new.
        if made and (made[-1], token) == pair:
            made[-1] = number
        else:
            made.append(token)
    return made


def assembler(symbols: Sequence[Symbol]) -> str:
    """The tables as a source of the kernel."""
    coded, texts = compress([(symbol.letter + symbol.name).encode("ascii") for symbol in symbols])
    base = min((symbol.address for symbol in symbols), default=KERNEL.start)
    lengths = [0]
    for name in coded:
        if len(name) > LENGTH_MAX:
            raise ValueError(f"a name of {len(name)} tokens")
        lengths.append(lengths[-1] + 1 + len(name))
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text) + 1)
    return "\n".join(
        (
            '\t.section .rodata, "a"',
            *_table("offsets", (f".long {base - 1 - symbol.address}" for symbol in symbols)),
            *_table("relative_base", [f".quad _text + {base - KERNEL.start:#x}"]),
            *_table("num_syms", [f".long {len(symbols)}"]),
            *_table("names", (_bytes([len(name), *name]) for name in coded)),
            *_table("markers", (f".long {start}" for start in lengths[:-1:MARKER_EVERY])),
            *_table("token_table", (_bytes([*text, 0]) for text in texts)),
            *_table("token_index", (f".short {start}" for start in starts[:-1])),
            "",
        )
    )


def _table(name: str, lines: Iterable[str]) -> list[str]:
    label = TABLES + name
    return [f"\t.globl {label}", "\t.balign 8", f"{label}:", *(f"\t{line}" for line in lines)]


def _bytes(values: Iterable[int]) -> str:
    return ".byte " + ", ".join(f"{value:#04x}" for value in values)


if __name__ == "__main__":
    sys.stdout.write(assembler(read_symbols(sys.stdin)))
