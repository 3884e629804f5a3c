"""The kernel's own symbol table: /proc/kallsyms as it was when the snapshot was taken."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from policyc.addresses import Gva
from policyc.emulator.linux.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_symbols"]

_FIELDS = 3


@lru_cache(maxsize=2)
def read_symbols(table: bytes) -> Mapping[str, Gva]:
    """Address by name; of two symbols with one name the first counts, and those of modules don't.

    Raises:
        SnapshotError: a line isn't one of kallsyms.
    """
    found: dict[str, Gva] = {}
    for line in table.decode("ascii", "replace").splitlines():
        fields = line.split()
        if len(fields) != _FIELDS:
            continue
        try:
            found.setdefault(fields[2], Gva(int(fields[0], 16)))
        except ValueError:
            raise SnapshotError(f"kallsyms: no line of a symbol table: {line[:80]!a}") from None
    return found
