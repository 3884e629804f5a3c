"""Rows in aligned columns, for terminals and pipes alike: nothing is cut and nothing wrapped."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned"]

GAP = "  "


def aligned(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """One line a row; the columns whose numbers are in `right` end together, the others begin together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
