"""What guarding bytes does to the pages that they lie on, told before anyone pays for it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from policyc.addresses import PAGE_SIZE
from policyc.catalog import Access, EffectKind
from policyc.compiler.compiled import Compiled
from policyc.compiler.resolved import ResolvedPlace
from policyc.diagnostics import Diagnostic
from policyc.plan.accesses import NEAR_ZONE
from policyc.plan.model import Rule
from policyc.plan.pages import PageRun, denied_on
from policyc.plan.places import Base, Extent, Section
from policyc.plan.sweep import Segment

__all__ = [
    "executed_pages_hold_no_foreign_code",
    "pages_are_quiet",
    "rights_are_exact",
    "rights_can_be_held",
]

MUCH_COLLATERAL = 1024
MANY_SYMBOLS = 16
"""Bytes of writable data beside what is guarded, and symbols in them, from which on the pages count as busy."""

Ranges = list[tuple[int, int]]


def rights_can_be_held(compiled: Compiled) -> Iterator[Diagnostic]:
    """Rights that no page-table entry expresses are found before the guest is asked for them."""
    for index in _rules_on(compiled, lambda run: run.impossible, Access.R):
        fact = "this would leave pages that can be executed and not read, which not every processor can hold"
        help = "deny `execute` too, or compile with `--cpu intel` if every host has EPT with execute-only pages"
        yield Diagnostic("P502", fact, compiled.origins[index].span, help)


def rights_are_exact(compiled: Compiled) -> Iterator[Diagnostic]:
    """Widening denies more accesses than were asked for; those are let through, and each stops a vCPU."""
    for index in _rules_on(compiled, lambda run: bool(run.widened) and not run.impossible, Access.R):
        if not compiled.plan.rules[index].access & Access.W:
            fact = "no page can be kept from being read and still be written: writes to these pages stop the vCPU too"
            yield Diagnostic("P418", fact, compiled.origins[index].span)


def executed_pages_hold_no_foreign_code(compiled: Compiled) -> Iterator[Diagnostic]:
    """Where other code shares a page with what may not be executed, every call of it stops a vCPU."""
    if compiled.options.accept_hot_pages:
        return
    guarded = _Guarded(compiled, Access.X)
    for _index, place, extent in _guarding(compiled, Access.X):
        gaps = guarded.gaps(extent)
        if extent.base is Base.IMAGE and compiled.plan.guest.code is not None:
            gaps = _intersection(gaps, compiled.plan.guest.code)
        elif extent.base in (Base.IDT, Base.GDT):
            continue
        if not gaps:
            continue
        what = f"`{place.place}` shares its pages with {sum(end - start for start, end in gaps)} bytes of other code"
        if extent.base is Base.IMAGE:
            foreign = compiled.image.foreign(gaps)
            what += f", such as {foreign}" if foreign.count else ""
        help = "name whole pages, or compile with `--accept-hot-pages`: each call of that code then stops a vCPU"
        yield Diagnostic("P503", what, place.span, help)


def pages_are_quiet(compiled: Compiled) -> Iterator[Diagnostic]:
    """Collateral is let through and never alerted, but each access stops a vCPU for a round trip."""
    if compiled.options.accept_hot_pages:
        return
    told: set[tuple[int, int]] = set()
    guarded = _Guarded(compiled, Access.R | Access.W)
    for index, place, extent in _guarding(compiled, Access.R | Access.W):
        key = (index, place.span.start)
        if extent.base is not Base.IMAGE or key in told:
            continue
        said = _busy_itself(compiled, compiled.plan.rules[index], place, extent) or _busy_beside(
            compiled, guarded, place, extent
        )
        if said is not None:
            told.add(key)
            help = "if that is what is wanted, compile with `--accept-hot-pages`"
            yield Diagnostic("P415", said, place.span, help)


def _busy_itself(compiled: Compiled, rule: Rule, place: ResolvedPlace, extent: Extent) -> str | None:
    """Why the guarded bytes themselves are used all the time."""
    image = compiled.image
    if rule.access & Access.R and _intersection([(extent.start, extent.end)], image.data):
        return f"the kernel reads `{place.place}` as it goes: each read of its pages stops a vCPU"
    if isinstance(place.place, Section) and extent in image.writable:
        return f"the kernel writes to `{place.place}` all the time: each write stops a vCPU"
    return None


def _busy_beside(compiled: Compiled, guarded: _Guarded, place: ResolvedPlace, extent: Extent) -> str | None:
    """Why what shares pages with the guarded bytes is used all the time."""
    gaps = _intersection(guarded.gaps(extent), compiled.image.writable)
    collateral = sum(end - start for start, end in gaps)
    foreign = compiled.image.foreign(gaps)
    if collateral < MUCH_COLLATERAL or foreign.count < MANY_SYMBOLS:
        return None
    near = sum(min(end - start, NEAR_ZONE) for start, end in gaps if guarded.begins_at(extent.base, end))
    decoded = f", and {near} bytes are so near that {_near(compiled)}" if near else ""
    what = f"{collateral} bytes of data that the kernel writes, such as {foreign}"
    return f"`{place.place}` shares its pages with {what}{decoded}"


def _near(compiled: Compiled) -> str:
    """What becomes of stores just below guarded bytes: a size counts only if the code that says it can't be changed."""
    code = compiled.plan.guest.code or ()
    segments = compiled.segments.get(Base.IMAGE, ())
    rules = compiled.plan.rules
    kept = sum(
        min(segment.end, extent.end) - max(segment.start, extent.start)
        for segment in segments
        for extent in code
        if segment.start < extent.end and extent.start < segment.end
        if any(_keeps_code(rules[index]) for index in segment.members)
    )
    if kept:
        return "the instruction is decoded too"
    return "the kernel's own stores there are denied too, since no rule guards the code that makes them"


def _keeps_code(rule: Rule) -> bool:
    return (
        rule.enforce
        and bool(rule.access & Access.W)
        and rule.effect.kind >= EffectKind.SKIP
        and rule.spares_trusted_code_alone
    )


def _rules_on(compiled: Compiled, wanted: Callable[[PageRun], bool], access: Access) -> Sequence[int]:
    """The rules about this access that have bytes on such pages."""
    found: set[int] = set()
    for run in filter(wanted, compiled.runs):
        segments = compiled.segments[run.base]
        first = bisect_right(segments, run.start, key=lambda segment: segment.end)
        for segment in segments[first:]:
            if segment.start >= run.end:
                break
            found.update(segment.members)
    rules = compiled.plan.rules
    return sorted(i for i in found if rules[i].access & access and rules[i].effect.kind is not EffectKind.ALLOW)


def _guarding(compiled: Compiled, access: Access) -> Iterator[tuple[int, ResolvedPlace, Extent]]:
    """The extents of every rule about this access, with the place that they belong to."""
    for index, rule in enumerate(compiled.plan.rules):
        if rule.access & access and rule.effect.kind is not EffectKind.ALLOW:
            for place in compiled.origins[index].places:
                for extent in place.extents:
                    yield index, place, extent


class _Guarded:
    """The bytes that some rule needs told of, by base; everything else on their pages is collateral."""

    def __init__(self, compiled: Compiled, access: Access) -> None:
        rules = compiled.plan.rules
        self._segments: dict[Base, list[Segment]] = {
            base: [segment for segment in segments if denied_on(rules, segment.members) & access]
            for base, segments in compiled.segments.items()
        }

    def gaps(self, extent: Extent) -> Ranges:
        """What isn't guarded on the pages of an extent."""
        segments = self._segments.get(extent.base, [])
        position, end = extent.start & -PAGE_SIZE, -(-extent.end // PAGE_SIZE) * PAGE_SIZE
        index = bisect_right(segments, position, key=lambda segment: segment.end)
        found: Ranges = []
        while position < end:
            start = segments[index].start if index < len(segments) else end
            if start > position:
                found.append((position, min(start, end)))
            position = segments[index].end if index < len(segments) else end
            index += 1
        return found

    def begins_at(self, base: Base, address: int) -> bool:
        """Whether guarded bytes begin at this address."""
        segments = self._segments.get(base, [])
        index = bisect_right(segments, address, key=lambda segment: segment.start) - 1
        return index >= 0 and segments[index].start == address


def _intersection(ranges: Sequence[tuple[int, int]], extents: Sequence[Extent]) -> Ranges:
    return [
        (max(start, extent.start), min(end, extent.end))
        for start, end in ranges
        for extent in extents
        if max(start, extent.start) < min(end, extent.end)
    ]
