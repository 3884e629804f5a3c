"""The symbol table of one image, held as columns: a name costs no object until it is asked for.

A kernel lists 120,000 to 250,000 symbols and a policy names ten of them, so the table keeps one sorted array of
addresses beside the names and builds a `Symbol` when it is looked up. Names are not unique: static functions of
different files share theirs, and several names may share an address.
"""

from __future__ import annotations

import difflib
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from policyc.addresses import Gva

__all__ = ["MAX_INFERRED_SIZE", "Symbol", "SymbolKind", "SymbolTable"]

MAX_INFERRED_SIZE = 16 << 20
"""A gap to the next symbol larger than this is a hole in the address space, not the size of a function or a table."""

MAX_LENGTH_DIFFERENCE = 3
"""How much longer or shorter than what was written a suggested name may be."""


class SymbolKind(Enum):
    """What a symbol names, as far as its source tells."""

    CODE = "code"
    DATA = "data"
    READ_ONLY = "read-only data"
    BSS = "zeroed data"
    ABSOLUTE = "absolute"
    WEAK = "weak"
    OTHER = "other"


# The letters of `nm` (GNU binutils manual, nm), small: a capital letter says that the symbol is global.
KIND_OF_LETTER: Mapping[str, SymbolKind] = {
    "t": SymbolKind.CODE,
    "i": SymbolKind.CODE,
    "d": SymbolKind.DATA,
    "g": SymbolKind.DATA,
    "s": SymbolKind.DATA,
    "r": SymbolKind.READ_ONLY,
    "b": SymbolKind.BSS,
    "c": SymbolKind.BSS,
    "a": SymbolKind.ABSOLUTE,
    "v": SymbolKind.WEAK,
    "w": SymbolKind.WEAK,
}


@dataclass(frozen=True, slots=True)
class Symbol:
    """One name of an image.

    Attributes:
        name: as in the source, without the image.
        gva: as in the source: an offset from the image's base is what holds in a running guest.
        size: bytes; 0 where nothing tells it.
        size_inferred: the size is the distance to the next address that has a name, so it may include padding and
            neighbours that the table doesn't list.
        kind: what it names.
    """

    name: str
    gva: Gva
    size: int
    size_inferred: bool
    kind: SymbolKind


@dataclass(frozen=True)
class SymbolTable:
    """The symbols of one image, in order of address, then name, then letter.

    The class isn't slotted: the name index and the like are made on first use and kept.

    Attributes:
        addresses: ascending (array code "Q").
        text: the names, in the order of `addresses`, a space between two.
        letters: one `nm` letter a symbol.
        sizes: bytes a symbol, 0 where the source doesn't say; None where the source has no sizes at all.
        end: where the image ends: no inferred size reaches beyond it. None where that isn't known.
        sparse: symbols between these were left out, so a distance to the next one says nothing about a size.
    """

    addresses: array[int] = field(repr=False)
    text: str = field(repr=False)
    letters: str = field(repr=False)
    sizes: array[int] | None = field(default=None, repr=False)
    end: Gva | None = None
    sparse: bool = False

    def __len__(self) -> int:
        return len(self.addresses)

    def __iter__(self) -> Iterator[Symbol]:
        return map(self._at, range(len(self.addresses)))

    def __contains__(self, name: str) -> bool:
        return name in self._last

    def named(self, name: str) -> tuple[Symbol, ...]:
        """Every symbol of exactly this name, in order of address; empty if there is none."""
        if name not in self._last:
            return ()
        return tuple(map(self._at, self._repeated.get(name) or (self._last[name],)))

    def glob(self, pattern: str) -> tuple[Symbol, ...]:
        """Every symbol whose whole name fits `pattern`, in order of address.

        `*` stands for any text, all else for itself: `?` and `[` are letters of mangled names.
        """
        first, *rest = map(re.escape, pattern.split("*"))
        # Atomic groups: each middle part matches where it first can, so no pattern makes the search backtrack.
        middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
        fits = re.compile(first + middle + "".join(f".*{part}" for part in rest[-1:])).fullmatch
        return tuple(self._at(index) for index, name in enumerate(self.names) if fits(name))

    def covering(self, gva: Gva) -> tuple[Symbol, int] | None:
        """The symbol whose bytes hold `gva`, and the offset into it; None where no symbol's do.

        Of several symbols at one address the answer is a global one before a static one, then the first by name.
        """
        after = bisect_right(self.addresses, gva)
        if not after:
            return None
        start = self.addresses[after - 1]
        aliases = range(bisect_left(self.addresses, start), after)
        symbol = self._at(min(aliases, key=lambda index: (self.letters[index].islower(), self.names[index])))
        offset = gva - start
        return (symbol, offset) if offset < max(symbol.size, 1) else None

    def suggest(self, name: str) -> str | None:
        """The name of this table that `name` most likely meant, or None if nothing is close.

        The same word in other case or with other underscores around it wins over a word that merely looks alike.
        """
        bare = _bare(name)
        near = {
            known: _bare(known)
            for known in self._last
            if known != name and abs(len(known) - len(name)) <= MAX_LENGTH_DIFFERENCE
        }
        close = {bare} & set(near.values()) or set(difflib.get_close_matches(bare, set(near.values()), n=1, cutoff=0.8))
        meant = [known for known, word in near.items() if word in close]
        return min(meant, key=lambda known: (abs(len(known) - len(name)), known), default=None)

    @cached_property
    def names(self) -> list[str]:
        """The names, in the order of `addresses`."""
        return self.text.split()

    @cached_property
    def _last(self) -> dict[str, int]:
        return dict(zip(self.names, range(len(self.names)), strict=True))

    @cached_property
    def _repeated(self) -> dict[str, list[int]]:
        if len(self._last) == len(self.names):
            return {}
        several = {name for index, name in enumerate(self.names) if self._last[name] != index}
        found: dict[str, list[int]] = {name: [] for name in several}
        for index, name in enumerate(self.names):
            if name in several:
                found[name].append(index)
        return found

    def _at(self, index: int) -> Symbol:
        size = self.sizes[index] if self.sizes is not None else 0
        return Symbol(
            name=self.names[index],
            gva=Gva(self.addresses[index]),
            size=size or self._distance_to_next(index),
            size_inferred=not size,
            kind=KIND_OF_LETTER.get(self.letters[index].lower(), SymbolKind.OTHER),
        )

    def _distance_to_next(self, index: int) -> int:
        if self.sparse:
            return 0
        start = self.addresses[index]
        after = bisect_right(self.addresses, start)
        following = [self.addresses[after]] if after < len(self.addresses) else []
        if self.end is not None and self.end >= start:
            following.append(self.end)
        distance = min(following, default=start) - start
        return distance if distance <= MAX_INFERRED_SIZE else 0


def _bare(name: str) -> str:
    return name.strip("_").casefold()
