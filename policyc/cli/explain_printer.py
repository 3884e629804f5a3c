"""What a printer of `policyc explain` is asked for, whatever form it prints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from policyc.analysis.addresses import address_text
from policyc.analysis.explanation import Explanation
from policyc.analysis.page_map import GuardedPages
from policyc.compiler.resolved import ResolvedCase
from policyc.guest.profile import Profile
from policyc.plan.accesses import MemoryAccess
from policyc.plan.model import Plan, Rule, Watch
from policyc.plan.places import Base
from policyc.plan.sweep import sweep

__all__ = ["Printer"]


class Printer(ABC):
    """Says things about one plan; `profile`, where there is one, names its addresses."""

    def __init__(self, plan: Plan, profile: Profile | None, color: bool) -> None:
        self._plan = plan
        self._profile = profile
        self._color = color

    @abstractmethod
    def answer(self, case: ResolvedCase, explained: Sequence[Explanation]) -> str:
        """The answer to a question."""

    @abstractmethod
    def pages(self) -> str:
        """The pages that are guarded."""

    @abstractmethod
    def rules(self) -> str:
        """The rules and watches, and what each comes to."""

    def _address(self, base: Base, address: int) -> str:
        return address_text(base, address, self._profile)

    def _pages_under(self, asked: MemoryAccess, pages: Sequence[GuardedPages]) -> GuardedPages | None:
        return next((run for run in pages if run.holds(asked.base, asked.start)), None)

    def _bytes_of(self, stated: Rule | Watch) -> int:
        """Bytes that the rule or watch is about."""
        extents = (extent for place in stated.places for extent in self._plan.places[place].extents or ())
        pieces = sweep((extent.start, extent.end, int(extent.base)) for extent in extents)
        return sum((piece.end - piece.start) * len(piece.members) for piece in pieces)
