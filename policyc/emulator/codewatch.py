"""Hooks on the sensitive instructions of all pages that were run, and which frames hold translated code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unicorn import UC_HOOK_CODE, Uc

from policyc.emulator.scan import candidates

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CodeWatch"]

HOOKS_MAX: Final = 20_000
"""Hooks kept before all are dropped and set again where code still runs: each makes translation a little slower."""


class CodeWatch:
    """What one engine knows of the code it runs.

    Attributes:
        frames: numbers of frames that this engine has translated code from.
        caught: address of the hooked instruction that stopped the engine, if one did.
        pass_at: address whose hook is let through once.
    """

    __slots__ = ("_hooks", "_searched", "_uc", "caught", "frames", "pass_at")

    def __init__(self, uc: Uc) -> None:
        self._uc = uc
        self._hooks: dict[int, int] = {}
        self._searched: set[tuple[int, int]] = set()
        self.frames: set[int] = set()
        self.caught: int | None = None
        self.pass_at: int | None = None

    def knows(self, page: int, gfn: int) -> bool:
        """Whether this frame has been searched as the content of this page."""
        return (page, gfn) in self._searched

    def cover(self, page: int, gfn: int, content: bytes, following: bytes | None) -> None:
        """Hook every place in a page at which a sensitive instruction may begin."""
        self._searched.add((page, gfn))
        self.frames.add(gfn)
        for offset in candidates(content, following):
            address = page + offset
            if address not in self._hooks:
                self._hooks[address] = self._uc.hook_add(UC_HOOK_CODE, self._reached, None, address, address)

    def forget(self, frames: Iterable[int]) -> None:
        """The content of these frames is no longer what was searched. Hooks stay: one too many costs a stop."""
        gone = self.frames.intersection(frames)
        self.frames -= gone
        self._searched = {place for place in self._searched if place[1] not in gone}

    def crowded(self) -> bool:
        """Whether it is time for `reset`."""
        return len(self._hooks) > HOOKS_MAX

    def reset(self) -> None:
        """Forget everything; the caller flushes translations and the TLB."""
        for handle in self._hooks.values():
            self._uc.hook_del(handle)
        self._hooks.clear()
        self._searched.clear()
        self.frames.clear()

    def _reached(self, uc: Uc, address: int, _size: int, _: object) -> None:
        if self.pass_at == address:
            self.pass_at = None
            return
        self.caught = address
        uc.emu_stop()
