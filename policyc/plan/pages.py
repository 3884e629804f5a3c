"""From byte-exact rules to the 4 KiB pages that hardware can guard.

A page gets the union of what the rules on it need. What the hardware can't hold is widened, and only ever in the
direction of less access; what would have to be widened into taking execution away is an error, never done silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from policyc.addresses import PAGE_SHIFT, PAGE_SIZE
from policyc.catalog import Access, EffectKind
from policyc.plan.model import Rule
from policyc.plan.places import Base
from policyc.plan.sweep import Segment, sweep

__all__ = ["CPUS", "Held", "PageRun", "denied_on", "hold", "page_runs"]

CPUS: tuple[str, ...] = ("any", "intel", "amd")
"""What `--cpu` may be. Execute-only pages need Intel's EPT; `any` is legal on both."""

ALL = Access.R | Access.W | Access.X


@dataclass(frozen=True, slots=True)
class Held:
    """Rights that hardware can hold.

    Attributes:
        allowed: the rights the page keeps.
        widened: accesses denied beyond what the rules ask for.
        impossible: whether the rules need an execute-only page and the processor has none.
    """

    allowed: Access
    widened: Access = Access.NONE
    impossible: bool = False


def hold(denied: Access, cpu: str) -> Held:
    """The rights of a page whose rules deny `denied`.

    An EPT entry that is writable but not readable is a misconfiguration (Intel SDM vol. 3C 29.3.3.1), and AMD's nested
    page tables have no bit against reading at all (AMD APM vol. 2 15.25.5).
    """
    widened = Access.W if denied & Access.R and not denied & Access.W else Access.NONE
    allowed = ALL & ~(denied | widened)
    return Held(allowed, widened, impossible=allowed == Access.X and cpu != "intel")


@dataclass(frozen=True, slots=True)
class PageRun:
    """Neighbouring pages with the same rights.

    Attributes:
        start, end: page-aligned bytes from `base`.
        allowed: the rights they keep; less than rwx.
        guarded: bytes of the run that some rule is about; the rest is collateral.
    """

    base: Base
    start: int
    end: int
    allowed: Access
    guarded: int

    @property
    def pages(self) -> int:
        """How many 4 KiB pages the run has."""
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def collateral(self) -> int:
        """Bytes on these pages that no rule is about."""
        return self.end - self.start - self.guarded


def denied_on(rules: Sequence[Rule], members: Iterable[int]) -> Access:
    """What a segment's rules need to be told of: the union of their accesses, less what unconditional holes cover."""
    members = tuple(members)
    holes: dict[int, Access] = {}
    for index in members:
        rule = rules[index]
        if rule.effect.kind is EffectKind.ALLOW and rule.unconditional:
            holes[rule.policy] = holes.get(rule.policy, Access.NONE) | rule.access
    denied = Access.NONE
    for index in members:
        rule = rules[index]
        if rule.effect.kind is not EffectKind.ALLOW:
            denied |= rule.access & ~holes.get(rule.policy, Access.NONE)
    return denied


def page_runs(spaces: Mapping[Base, Sequence[Segment]], rules: Sequence[Rule], cpu: str) -> tuple[PageRun, ...]:
    """The pages that the segments need guarded, as runs in ascending order."""
    runs: list[PageRun] = []
    for base in sorted(spaces):
        wanted = [(s.start, s.end, denied_on(rules, s.members)) for s in spaces[base]]
        runs.extend(_runs_of(base, [(start, end, denied) for start, end, denied in wanted if denied], cpu))
    return tuple(runs)


def _runs_of(base: Base, wanted: Sequence[tuple[int, int, Access]], cpu: str) -> list[PageRun]:
    bits = [
        (start & -PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE, int(bit))
        for start, end, denied in wanted
        for bit in Access
        if denied & bit
    ]
    runs: list[PageRun] = []
    position = 0
    for segment in sweep(bits):
        denied = Access(sum(segment.members))
        guarded = 0
        while position < len(wanted) and wanted[position][0] < segment.end:
            start, end, _ = wanted[position]
            guarded += min(end, segment.end) - max(start, segment.start)
            if end > segment.end:
                break
            position += 1
        runs.append(PageRun(base, segment.start, segment.end, hold(denied, cpu).allowed, guarded))
    return runs
