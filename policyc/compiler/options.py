"""What the plan is to run on, and what the author has accepted: the same for every check."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from policyc.catalog import TARGETS

__all__ = ["CheckOptions"]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How strict the checks are.

    Attributes:
        target: `any`, or the dialect that everything must be legal in.
        cpu: `any`, `intel` or `amd`: whose page tables must hold the rights.
        accept_hot_pages: whether pages that the guest uses all the time may be guarded without a word.
        today: the day by which exceptions expire; None leaves their dates alone.
    """

    target: str = "any"
    cpu: str = "any"
    accept_hot_pages: bool = False
    today: datetime.date | None = None

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects in which everything must be legal."""
        return TARGETS if self.target == "any" else (self.target,)
