"""How the lines of an audit log hang together, and whether those of a file do.

Each line is one record, a JSON document; it has its number and the SHA-256 of the record's line before. What a crash
tore is closed by `TORN_MARK`, and the very next line is a record of kind "restarted" that says how many bytes are no
record and goes on with the chain. Nothing else that isn't a record has a place in a log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FIRST", "MAX_LINE", "MAX_RECORD", "TORN_MARK", "End", "Verification", "digest", "find_end", "verify"]

MAX_LINE = 1 << 20
"""Bytes of a line, its end included; a longer one is none of ours."""

MAX_RECORD = MAX_LINE - 4096
"""Bytes of a record's line. What is closed as torn stays below `MAX_LINE` so."""

TORN_MARK = b" (torn)\n"
"""Closes a line that isn't whole. No JSON document ends like this, so such a line is never taken for a record."""

FIRST = "0" * 64
"""What stands for the digest of the line before the first."""

BEGINNING = f'{{"seq":1,"previous":"{FIRST}",'.encode()
"""How every log begins."""


@dataclass(frozen=True, slots=True)
class End:
    """Where a log ends: the last record's number and digest, and how many bytes after it are no record."""

    seq: int = 0
    previous: str = FIRST
    torn: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """What a log turned out to be: how many records are sound, where it breaks, whether the end is torn."""

    records: int
    broken_line: int | None = None
    reason: str | None = None
    torn: bool = False


def digest(line: bytes) -> str:
    """What the next record says of this one's line, which is given without its end."""
    return hashlib.sha256(line).hexdigest()


def verify(path: Path) -> Verification:
    """Read a log and follow its chain.

    Raises:
        OSError: the file can't be read.
    """
    end = End()
    torn_line = 0
    for number, line in _lines(path):
        if len(line) == MAX_LINE and not line.endswith(b"\n"):
            return Verification(end.seq, number, "a line is longer than any record")
        if not line.endswith(b"\n"):
            return Verification(end.seq, torn=True)
        found = _parse(line)
        if found is None and line.endswith(TORN_MARK):
            torn_line = torn_line or number
            end = End(end.seq, end.previous, end.torn + len(line))
            continue
        if found is None:
            return Verification(end.seq, number, "a line is no record")
        if _torn_before(found) != end.torn:
            return Verification(end.seq, torn_line or number, "what was torn isn't what the restart after it found")
        if found.get("previous") != end.previous or found.get("seq") != end.seq + 1:
            return Verification(end.seq, number, "a record was changed, removed or put in before this line")
        end, torn_line = End(end.seq + 1, digest(line[:-1])), 0
    return Verification(end.seq, torn=end.torn > 0)


def find_end(tail: bytes, *, whole: bool) -> End | None:
    """Where a log ends, from the last bytes of its file; None if they aren't a log's.

    Args:
        tail: at least two times `MAX_LINE`, where the file has as much.
        whole: whether this is all of the file.
    """
    *lines, torn_line = tail.split(b"\n")
    torn = len(torn_line)
    for at in range(len(lines) - 1, -1, -1):
        found = _parse(lines[at])
        if found is not None:
            seq, previous = found.get("seq"), found.get("previous")
            return End(seq, digest(lines[at]), torn) if isinstance(seq, int) and isinstance(previous, str) else None
        if not (lines[at] + b"\n").endswith(TORN_MARK):
            return None
        torn += len(lines[at]) + 1
    # Not even the first record is whole; a mark may have been put behind what there is of it, whole or torn too.
    first = tail.partition(TORN_MARK[:2])[0].rstrip(b" ")
    begins = first.startswith(BEGINNING) or BEGINNING.startswith(first)
    return End(torn=torn) if whole and begins else None


def _torn_before(record: dict[str, object]) -> int:
    """How many bytes that are no record stand before this one, as it says."""
    torn = record.get("torn")
    if record.get("kind") != "restarted" or not isinstance(torn, int):
        return 0
    return torn + len(TORN_MARK)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            yield number, line


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
