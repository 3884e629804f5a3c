"""From byte-exact rules to the 4 KiB pages that hardware can guard.

A page gets the union of what the rules on it need. What the hardware can't hold is widened, and only ever in the
direction of less access; what would have to be widened into taking execution away is an error, never done silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from policyc.addresses import ADDRESS_SPACE_END, PAGE_SHIFT, PAGE_SIZE
from policyc.catalog import Access, EffectKind
from policyc.plan.model import Rule
from policyc.plan.places import Base, Extent
from policyc.plan.sweep import Segment, sweep

__all__ = ["CPUS", "Held", "PageRun", "denied_on", "hold", "may_hold_code", "page_runs"]

CPUS: tuple[str, ...] = ("any", "intel", "amd")
"""What `--cpu` may be. Execute-only pages need Intel's EPT; `any` is legal on both."""

ALL = Access.R | Access.W | Access.X


@dataclass(frozen=True, slots=True)
class Held:
    """Rights that hardware can hold.

    Attributes:
        allowed: the rights the page keeps.
        widened: accesses denied beyond what the rules ask for.
        impossible: whether the rules need an execute-only page with code on it, and the processor has none.
    """

    allowed: Access
    widened: Access = Access.NONE
    impossible: bool = False


def hold(denied: Access, cpu: str, *, holds_code: bool = True) -> Held:
    """The rights of a page whose rules deny `denied`.

    An EPT entry that is writable but not readable is a misconfiguration (Intel SDM vol. 3C 29.3.3.1), and AMD's nested
    page tables have no bit against reading at all (AMD APM vol. 2 15.25.5). Where only execution would be left, it goes
    too if nothing on the page is ever executed.
    """
    widened = Access.W if denied & Access.R and not denied & Access.W else Access.NONE
    allowed = ALL & ~(denied | widened)
    if allowed != Access.X or cpu == "intel":
        return Held(allowed, widened)
    if holds_code:
        return Held(allowed, widened, impossible=True)
    return Held(Access.NONE, widened | Access.X)


@dataclass(frozen=True, slots=True)
class PageRun:
    """Neighbouring pages with the same rights.

    Attributes:
        start, end: page-aligned bytes from `base`.
        allowed: the rights they keep; less than rwx.
        guarded: bytes of the run that some rule is about; the rest is collateral.
        widened: accesses taken away beyond what the rules ask for.
        impossible: whether not every processor in question can hold the rights.
    """

    base: Base
    start: int
    end: int
    allowed: Access
    guarded: int
    widened: Access = Access.NONE
    impossible: bool = False

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


def page_runs(
    spaces: Mapping[Base, Sequence[Segment]],
    rules: Sequence[Rule],
    cpu: str,
    code: Sequence[Extent] | None = None,
) -> tuple[PageRun, ...]:
    """The pages that the segments need guarded, as runs in ascending order.

    Args:
        code: where the image has code; None where that isn't known.
    """
    runs: list[PageRun] = []
    for base in sorted(spaces):
        wanted = [(s.start, s.end, denied_on(rules, s.members)) for s in spaces[base]]
        runs.extend(_runs_of(base, [(start, end, denied) for start, end, denied in wanted if denied], cpu, code))
    return tuple(runs)


def may_hold_code(base: Base, code: Sequence[Extent] | None) -> list[tuple[int, int]]:
    """The whole pages of a base that may hold code: of the image's those that do, of descriptor tables none."""
    if base in (Base.IDT, Base.GDT):
        return []
    if base is Base.IMAGE and code is not None:
        return [_pages(extent.start, extent.end) for extent in code]
    return [(0, ADDRESS_SPACE_END)]


def _pages(start: int, end: int) -> tuple[int, int]:
    return start & -PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE


CODE_MARK = 8
"""Beside the bits of denied accesses, what marks pages that may hold code."""


def _runs_of(
    base: Base, wanted: Sequence[tuple[int, int, Access]], cpu: str, code: Sequence[Extent] | None
) -> list[PageRun]:
    bits = [(*_pages(start, end), int(bit)) for start, end, denied in wanted for bit in Access if denied & bit]
    bits += [(start, end, CODE_MARK) for start, end in may_hold_code(base, code)]
    runs: list[PageRun] = []
    position = 0
    for segment in sweep(bits):
        denied = Access(sum(segment.members) & ~CODE_MARK)
        if not denied:
            continue
        held = hold(denied, cpu, holds_code=CODE_MARK in segment.members)
        guarded = 0
        while position < len(wanted) and wanted[position][0] < segment.end:
            start, end, _ = wanted[position]
            guarded += min(end, segment.end) - max(start, segment.start)
            if end > segment.end:
                break
            position += 1
        run = PageRun(base, segment.start, segment.end, held.allowed, guarded, held.widened, held.impossible)
        last = runs[-1] if runs else run
        if last.end == run.start and replace(run, start=last.start, guarded=last.guarded) == replace(last, end=run.end):
            runs[-1] = replace(last, end=run.end, guarded=last.guarded + guarded)
        else:
            runs.append(run)
    return runs
