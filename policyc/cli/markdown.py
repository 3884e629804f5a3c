"""The pieces that Markdown documents are put together from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

__all__ = ["code", "section", "table"]


def section(title: str, *parts: str) -> str:
    """A heading and paragraphs, lists or tables below it."""
    return "\n\n".join([f"## {title}", *(part.rstrip("\n") for part in parts)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; empty cells stay empty."""
    return "\n".join(_lines(head, rows))


def code(text: str) -> str:
    """Text that stands as it would be typed."""
    return f"`{text}`"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield _line(head)
    yield _line(["---"] * len(head))
    yield from map(_line, rows)


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(map(_cell, cells))}|"


def _cell(text: str) -> str:
    """A cell with a blank on both sides; a `|` in it would end it."""
    return f" {text} ".replace("|", r"\|") if text else " "
