"""A plan with the rules as they were written beside it: what checks that need bytes look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from policyc.compiler.image_map import ImageMap
from policyc.compiler.lower import Lowered
from policyc.compiler.options import CheckOptions
from policyc.compiler.resolved import ResolvedRule
from policyc.plan.model import Plan
from policyc.plan.pages import PageRun, page_runs
from policyc.plan.places import Base
from policyc.plan.sweep import Segment
from policyc.plan.tables import segments_of

__all__ = ["Compiled"]


@dataclass
class Compiled:
    """What came of lowering, and where the image's other symbols lie."""

    lowered: Lowered
    image: ImageMap
    options: CheckOptions

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.lowered.plan

    @property
    def origins(self) -> Sequence[ResolvedRule]:
        """The rules as they were written, in the plan's order."""
        return self.lowered.origins

    @cached_property
    def segments(self) -> Mapping[Base, tuple[Segment, ...]]:
        """Which rules lie over which bytes."""
        return segments_of(self.plan)

    @cached_property
    def runs(self) -> tuple[PageRun, ...]:
        """The pages that are guarded."""
        return page_runs(self.segments, self.plan.rules, self.plan.cpu, self.plan.guest.code)
