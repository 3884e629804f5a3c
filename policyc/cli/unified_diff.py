"""Draws the difference of two texts as `diff -u` does, in time that grows with their length alone.

`difflib` compares each line with each other, and a text can be made on which that takes hours. So it is only ever given
a window of both texts; behind the last line that it finds in both, the next window begins. Where the texts are alike,
as a policy and its canonical form are, the result is the same.
"""

from __future__ import annotations

import io
from difflib import Match, SequenceMatcher
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["unified_diff"]

WINDOW: Final = 400
"""Lines of either text that are compared at once."""

CONTEXT: Final = 3
"""Lines around a change that are drawn."""

COLORS: Final = {"@": "cyan", "-": "red", "+": "green"}
"""The colour of a line, by the sign that it begins with."""

SIGNS: Final = {"equal": (" ", ""), "delete": ("-", ""), "insert": ("", "+"), "replace": ("-", "+")}
"""What stands before the lines of the old and of the new text; nothing where they aren't drawn."""


def unified_diff(old: str, new: str, name: str, *, color: bool = False) -> str:
    """What changes in the file called `name` if `old` becomes `new`; nothing if they are the same."""
    before, after = list(io.StringIO(old)), list(io.StringIO(new))
    lines = [line for hunk in _hunks(before, after) for line in hunk]
    if not lines:
        return ""
    head = [f"--- {name}\n", f"+++ {name}\n"]
    if color:
        head = [_styled(line, bold=True) for line in head]
        lines = [_styled(line, fg=COLORS[line[0]]) if line[0] in COLORS else line for line in lines]
    return "".join([*head, *lines])


def _hunks(before: list[str], after: list[str]) -> Iterator[list[str]]:
    for group in _Matcher(before, after).get_grouped_opcodes(CONTEXT):
        old_range = _range(group[0][1], group[-1][2])
        new_range = _range(group[0][3], group[-1][4])
        lines = [f"@@ -{old_range} +{new_range} @@\n"]
        for change, old_start, old_end, new_start, new_end in group:
            old_sign, new_sign = SIGNS[change]
            lines += [_drawn(old_sign, line) for line in before[old_start:old_end] if old_sign]
            lines += [_drawn(new_sign, line) for line in after[new_start:new_end] if new_sign]
        yield lines


class _Matcher(SequenceMatcher[str]):
    """Finds the lines that are in both texts window by window."""

    def __init__(self, old: list[str], new: list[str]) -> None:
        super().__init__(None, old, new)
        self._old, self._new = old, new

    def get_matching_blocks(self) -> list[Match]:
        """Runs of lines that are in both: the first line in either text, and how many; at the end a run of none."""
        old_start = new_start = 0
        blocks = [Match(0, 0, 0)]
        while old_start < len(self._old) or new_start < len(self._new):
            old, new = self._old[old_start : old_start + WINDOW], self._new[new_start : new_start + WINDOW]
            *found, end = SequenceMatcher(None, old, new).get_matching_blocks()
            if found and (old_start + len(old) < len(self._old) or new_start + len(new) < len(self._new)):
                last = found[-1]
                behind = Match(last.a + last.size, last.b + last.size, 0)
                # At least half a window, so that few lines are compared many times.
                end = behind if max(behind.a, behind.b) >= WINDOW // 2 else end
            for block in found:
                _add(blocks, Match(old_start + block.a, new_start + block.b, block.size))
            old_start, new_start = old_start + end.a, new_start + end.b
        return [*(block for block in blocks if block.size), Match(len(self._old), len(self._new), 0)]


def _add(blocks: list[Match], block: Match) -> None:
    """Add a run behind the others; one that goes on where the last ends lengthens it."""
    last = blocks[-1]
    if (last.a + last.size, last.b + last.size) == (block.a, block.b):
        blocks[-1] = Match(last.a, last.b, last.size + block.size)
    else:
        blocks.append(block)


def _range(start: int, end: int) -> str:
    """Lines as the head of a hunk counts them: from 1, and an empty range by the line before it (POSIX, `diff`)."""
    count = end - start
    return f"{start + 1}" if count == 1 else f"{start + 1 if count else start},{count}"


def _drawn(sign: str, line: str) -> str:
    return f"{sign}{line}" if line.endswith("\n") else f"{sign}{line}\n\\ No newline at end of file\n"


def _styled(line: str, *, fg: str | None = None, bold: bool | None = None) -> str:
    return click.style(line.removesuffix("\n"), fg=fg, bold=bold) + "\n"
