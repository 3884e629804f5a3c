"""Which pages are open at the moment, and until when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from policyc.addresses import Gfn

__all__ = ["OpenPage", "OpenedPages"]


@dataclass(frozen=True, slots=True)
class OpenPage:
    """When a page is to be closed, and what it held before; None where that couldn't be read."""

    until: float
    before: bytes | None


@dataclass(slots=True)
class OpenedPages:
    """The pages that are open.

    Attributes:
        pages: by frame.
        closing: whether a procedure is there that will close them.
    """

    pages: dict[Gfn, OpenPage] = field(default_factory=dict)
    closing: bool = False

    @property
    def wants_closing(self) -> bool:
        """Whether somebody has to be found who closes them."""
        return bool(self.pages) and not self.closing

    def release(self, gfns: Iterable[Gfn]) -> bool:
        """Forget frames that aren't guarded any more, so that there is nothing to close; whether none is left now."""
        some = bool(self.pages)
        for gfn in gfns:
            self.pages.pop(gfn, None)
        return some and not self.pages
