"""Reads the byte vectors of `tests/kvmi/vectors`: whole KVMI messages as text, one a line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VECTORS = Path(__file__).parent.parent / "kvmi" / "vectors"

_ZEROS = re.compile(r"\(00\*(\d+)\)")


@dataclass(frozen=True, slots=True)
class Line:
    """One message of a recorded conversation; `out` is from tool to kernel; no data means end of stream."""

    outgoing: bool
    name: str
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A recorded conversation, or the part of one that matters."""

    name: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Computed:
    """A message that was put together from the headers by hand."""

    generation: str
    label: str
    data: bytes


def expand(text: str) -> bytes:
    """Hex in which `(00*N)` stands for N zero bytes."""
    return bytes.fromhex(_ZEROS.sub(lambda match: "00" * int(match[1]), text))


@cache
def computed() -> tuple[Computed, ...]:
    """All messages of `computed.txt`."""
    rows = (VECTORS / "computed.txt").read_text().splitlines()
    return tuple(Computed(row[0], row[1], expand(row[2])) for row in (line.split(" | ") for line in rows))


@cache
def messages(dialect: str) -> dict[str, bytes]:
    """The single messages that were recorded, by name."""
    rows = (VECTORS / dialect / "messages.txt").read_text().splitlines()
    return {name: expand(text) for name, text in (row.split(" ") for row in rows)}


@cache
def conversations(dialect: str) -> tuple[Conversation, ...]:
    """All conversations that were recorded with that dialect."""
    files = sorted(path for path in (VECTORS / dialect).glob("*.txt") if path.name != "messages.txt")
    return tuple(conversation for path in files for conversation in _conversations(path))


def _conversations(path: Path) -> list[Conversation]:
    _, *parts = re.split(r"^== ", path.read_text(), flags=re.MULTILINE)
    return [Conversation(name, tuple(map(_line, lines))) for name, *lines in (part.splitlines() for part in parts)]


def _line(text: str) -> Line:
    direction, *rest = text.split(" ")
    if rest == ["EOF"]:
        return Line(direction == "out", "EOF", None)
    name, data = rest
    return Line(direction == "out", name, expand(data))
