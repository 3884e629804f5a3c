"""What became of each attack, noted by the tests that saw it and shown as one table at the end of a session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

__all__ = ["note_outcome", "outcome_lines"]

UNPROTECTED, GUARDED = "unprotected", "guarded"

_Place = tuple[str, str]
_seen: defaultdict[_Place, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
"""By attack and guest, by dialect: what happened unprotected, and guarded."""


def note_outcome(attack: str, guest: str, dialect: str, how: str, outcome: str) -> None:
    """Remember an outcome that a test has asserted; `how` is "unprotected" or "guarded"."""
    assert how in (UNPROTECTED, GUARDED)
    _seen[attack, guest][dialect][how] = outcome


def outcome_lines() -> Iterator[str]:
    """The table, dialects with the same outcomes in one row; nothing where no test noted any."""
    rows = [("attack", "guest", "dialect", UNPROTECTED, GUARDED)]
    for (attack, guest), dialects in _seen.items():
        groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for dialect, outcome in dialects.items():
            groups[outcome.get(UNPROTECTED, "not tried"), outcome.get(GUARDED, "not tried")].append(dialect)
        rows += [(attack, guest, " ".join(group), *outcome) for outcome, group in groups.items()]
    if len(rows) > 1:
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
