"""Stops at sensitive instructions: which places of the code that is run may hold one, and hooks where one does.

A page is searched for bytes that could begin a sensitive instruction before anything in it is translated. Most of what
is found is the inside of other instructions, and each hook makes every instruction of the guest slower: Unicorn goes
through all of them. So a hook is set where the engine really translates such an instruction: it tells of every block
before that is run the first time, and a block with a place that isn't hooked yet is given up, hooked, and translated
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unicorn import UC_HOOK_CODE, UC_HOOK_EDGE_GENERATED, Uc

from policyc.addresses import PAGE_SIZE
from policyc.emulator.decode import boundaries
from policyc.emulator.scan import candidates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from unicorn.unicorn import uc_tb

__all__ = ["CodeWatch"]

HOOKS_MAX: Final = 200
"""Hooks kept before all are dropped and set again where code still runs."""

PAGES_MAX: Final = 20_000
"""Searched pages kept before all are forgotten and searched again where code still runs."""

_PAGE: Final = ~(PAGE_SIZE - 1)
_NOWHERE: Final[frozenset[int]] = frozenset()


class CodeWatch:
    """What one engine knows of the code it runs.

    Args:
        read: gives bytes at a guest virtual address, as many as are mapped.

    Attributes:
        frames: numbers of frames that this engine has translated code from.
        caught: address of the hooked instruction that stopped the engine, if one did.
        pass_at: address whose hook is let through once.
    """

    __slots__ = ("_block", "_hooks", "_places", "_read", "_searched", "_uc", "caught", "frames", "pass_at")

    def __init__(self, uc: Uc, read: Callable[[int, int], bytes]) -> None:
        self._uc = uc
        self._read = read
        self._hooks: dict[int, int] = {}
        self._searched: set[tuple[int, int]] = set()
        self._places: dict[int, frozenset[int]] = {}
        self._block: tuple[int, int, set[int]] | None = None
        self.frames: set[int] = set()
        self.caught: int | None = None
        self.pass_at: int | None = None
        uc.hook_add(UC_HOOK_EDGE_GENERATED, self._translated)

    def knows(self, page: int, gfn: int) -> bool:
        """Whether this frame has been searched as the content of this page."""
        return (page, gfn) in self._searched

    def cover(self, page: int, gfn: int, content: bytes, following: bytes | None) -> None:
        """Note every place in a page at which a sensitive instruction may begin."""
        self._searched.add((page, gfn))
        self.frames.add(gfn)
        found = {page + offset for offset in candidates(content, following)}
        self._places[page] = self._places.get(page, _NOWHERE) | found

    def forget(self, frames: Iterable[int]) -> None:
        """The content of these frames is no longer what was searched. Hooks stay: one too many costs a stop."""
        gone = self.frames.intersection(frames)
        self.frames -= gone
        self._searched = {place for place in self._searched if place[1] not in gone}

    def crowded(self) -> bool:
        """Whether it is time for `reset`."""
        return len(self._hooks) > HOOKS_MAX or len(self._searched) > PAGES_MAX

    def reset(self) -> None:
        """Forget everything; the caller flushes translations and the TLB."""
        for handle in self._hooks.values():
            self._uc.hook_del(handle)
        self._hooks.clear()
        self._searched.clear()
        self._places.clear()
        self.frames.clear()

    def hook_block(self) -> bool:
        """Hook what was found in the block that was just translated; whether there was such a block.

        The engine was stopped before it ran, and has to be started again.
        """
        if self._block is None:
            return False
        begin, size, found = self._block
        self._block = None
        for address in found:
            self._hooks[address] = self._uc.hook_add(UC_HOOK_CODE, self._reached, None, address, address)
        self._uc.ctl_remove_cache(begin, begin + size)
        return True

    def _translated(self, uc: Uc, block: uc_tb, _previous: uc_tb, _: object) -> None:
        begin, size = block.pc, block.size
        pages = {begin & _PAGE, (begin + size - 1) & _PAGE}
        places = {
            place
            for page in pages
            for place in self._places.get(page, _NOWHERE)
            if begin <= place < begin + size and place not in self._hooks
        }
        if places and (found := places & boundaries(self._read(begin, size), begin)):
            self._block = (begin, size, found)
            uc.emu_stop()

    def _reached(self, uc: Uc, address: int, _size: int, _: object) -> None:
        if self.pass_at == address:
            self.pass_at = None
            return
        self.caught = address
        uc.emu_stop()
