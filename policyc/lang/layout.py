"""Lays the parts of statements out in lines, with the comments that stood between them.

A statement is some lines of atoms. An atom is never broken; a line is broken between atoms where it gets too wide, and
where a comment asks for it. Each atom takes the comments along that stood above it or behind it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["INDENT", "Atom", "Comment", "Line", "attach", "comments_of", "fits_one_line", "lay_out", "one_line"]

WIDTH: Final = 100
"""Columns that a line fills before it is broken. A comment behind it doesn't count."""

INDENT: Final = "    "

_COMMENT: Final = re.compile(r'"[^"\n]*"|(?P<comment>#[^\n]*)')


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment with its sign, its offsets, and whether nothing but blanks stands before it on its line."""

    text: str
    start: int
    end: int
    own_line: bool


@dataclass(frozen=True, slots=True)
class Atom:
    """A text that isn't broken, the offset at which it begins in the source, and its comments."""

    text: str
    start: int
    above: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Line:
    """Atoms that stand on one line if there is room, and how far it and what is broken off it are indented."""

    atoms: list[Atom]
    depth: int
    hang: int = 2


def comments_of(text: str) -> list[Comment]:
    """The comments of a text that is a policy, in order."""
    return [
        Comment(
            match["comment"].rstrip(),
            match.start(),
            match.end(),
            not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].strip(),
        )
        for match in _COMMENT.finditer(text)
        if match["comment"]
    ]


def attach(lines: Sequence[Line], comments: Sequence[Comment]) -> None:
    """Give each comment to the atom it belongs to: to the next one if it has a line of its own, else to the last."""
    atoms = sorted((atom for line in lines for atom in line.atoms), key=lambda atom: atom.start)
    starts = [atom.start for atom in atoms]
    for comment in comments:
        following = bisect_right(starts, comment.start)
        if comment.own_line and following < len(atoms):
            atoms[following].above.append(comment.text)
        else:
            atoms[following - 1].behind.append(comment.text)


def one_line(lines: Sequence[Line]) -> str:
    """All atoms on one line, without comments."""
    return " ".join(atom.text for line in lines for atom in line.atoms)


def fits_one_line(lines: Sequence[Line]) -> bool:
    """Whether all atoms have room on one line, and no comment stands between them."""
    atoms = [atom for line in lines for atom in line.atoms]
    commented = any(atom.behind for atom in atoms[:-1]) or any(atom.above for atom in atoms[1:])
    return not commented and len(INDENT) * lines[0].depth + len(one_line(lines)) <= WIDTH


def lay_out(lines: Sequence[Line]) -> list[str]:
    """The lines of text."""
    return [text for line in lines for text in _broken(line)]


def _broken(line: Line) -> Iterator[str]:
    """One line, broken where it is too wide and where comments stand."""
    indent, hanging = INDENT * line.depth, INDENT * (line.depth + line.hang)
    current = ""
    for atom in line.atoms:
        if current and (atom.above or len(indent) + len(current) + 1 + len(atom.text) > WIDTH):
            yield indent + current
            current, indent = "", hanging
        yield from (indent + comment for comment in atom.above)
        current = f"{current} {atom.text}" if current else atom.text
        if atom.behind:
            yield f"{indent}{current}  {' '.join(atom.behind)}"
            current, indent = "", hanging
    if current:
        yield indent + current
