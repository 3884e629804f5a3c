"""Binding: a plan's extents to the guest physical bytes that they are in one boot.

Rules were resolved against each other in virtual space. Where two virtual ranges meet on one frame, both sets of rules
hold there and the stricter answer wins: an `allow` never reaches through an alias.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from policyc.addresses import PAGE_SHIFT, Gfn, Gpa, Gva, GvaRange, Range, gfns_of
from policyc.catalog import Access, EffectKind
from policyc.guest.paging import AddressSpace, Translation, Unmapped, Walk, walk
from policyc.guest.requests import PageReply, PageRequest
from policyc.plan.model import Plan
from policyc.plan.pages import denied_on, hold, may_hold_code
from policyc.plan.places import Base, Extent
from policyc.plan.sweep import Segment, sweep
from policyc.plan.tables import code_places, condition_places, events_of, guards_of, segments_of
from policyc.plan.verdict_table import Cell, CodeRanges, Group, Space, VerdictTable
from policyc.runtime.bound import BoundPlan, CodeFrames, FreeableFrames, UnboundPlace

__all__ = ["BindError", "Binding", "Location", "bind", "rebind"]

MAX_FRAMES = 1 << 20
"""Frames that one plan may restrict: 4 GiB of guest memory."""


FREEABLE = frozenset({Base.VIRTUAL})
"""What the guest may map elsewhere as it runs; its kernel's own image stays where it is for the whole boot."""


class BindError(Exception):
    """The plan can't be bound to this guest; the text says why."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a guest keeps what extents count from.

    Attributes:
        slide: what to add to the profile's addresses.
        space: the page tables to translate with.
        idts, gdts: the descriptor tables of the vCPUs, as virtual ranges without repetition.
    """

    slide: int
    space: AddressSpace
    idts: tuple[GvaRange, ...]
    gdts: tuple[GvaRange, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """A bound plan, and what it rests on, to be compared again before it is armed: page walk and registers.

    Attributes:
        cpu: whose page rights count.
        moved: numbers of the pieces that the guest has mapped elsewhere since the plan was armed.
    """

    plan: BoundPlan
    walk: Walk
    location: Location
    cpu: str
    moved: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Virtual bytes with the rules written about them; `rules` is empty for code that is only trusted."""

    span: GvaRange
    rules: Group
    base: Base


def bind(
    plan: Plan, location: Location, *, cpu: str = "any", skip_unmapped: bool = False
) -> Generator[PageRequest, PageReply, Binding]:
    """Translate everything that the plan names.

    Args:
        plan: with extents for all of its places.
        location: from the search for the kernel.
        cpu: whose page rights count, once the guest's processor is known.
        skip_unmapped: leave out bytes that aren't mapped, and list them, instead of refusing.

    Raises:
        BindError: bytes that a rule guards or trusts aren't mapped, too many frames, rights that can't be held.
        WalkLimitError: the guest's page tables make the walk too large.
    """
    pieces = list(_pieces(plan, location))
    trusted = {place: _code_spans(plan, location, place) for place in code_places(plan.rules)}
    copies = [_slid(plan, location, extent) for extent in plan.guest.copy_routines]
    code_spans = [span for spans in trusted.values() for span in spans] + copies
    found = yield from walk(location.space, [*(piece.span for piece in pieces), *code_spans])
    unbound = _unbound(plan, pieces, found)
    if unbound and not skip_unmapped:
        first = unbound[0]
        raise BindError(
            f"`{first.place}` can't be guarded whole: [{first.gva_start:#x}, {first.gva_end:#x}) is {first.reason}"
            + (f", and {len(unbound) - 1} more ranges" if len(unbound) > 1 else "")
        )
    return Binding(_bound(plan, location, pieces, found, cpu), found, location, cpu)


def rebind(plan: Plan, before: Binding) -> Generator[PageRequest, PageReply, Binding]:
    """Translate again what the guest may have mapped elsewhere; frames of its kernel stay what they were.

    What has moved is guarded where it is now, and no `allow` goes with it: whoever mapped the new frames may be the
    attacker. Bytes that lead nowhere any more are left out.

    Raises:
        BindError, WalkLimitError: as for `bind`.
    """
    pieces = list(_pieces(plan, before.location))
    freeable = [number for number, piece in enumerate(pieces) if piece.base in FREEABLE]
    again = yield from walk(before.location.space, [pieces[number].span for number in freeable])
    ranges = list(before.walk.ranges)
    moved = set(before.moved)
    for number, parts in zip(freeable, again.ranges, strict=True):
        if _frames_of(parts) != _frames_of(ranges[number]):
            moved.add(number)
            ranges[number] = parts
    for number in moved:
        pieces[number] = _without_holes(plan, pieces[number])
        ranges[number] = ranges[number] if pieces[number].rules else ()
    found = replace(before.walk, ranges=tuple(ranges))
    # Trusted code is where it was when the plan was armed, or it isn't trusted.
    bound = replace(_bound(plan, before.location, pieces, found, before.cpu), code=before.plan.code)
    return Binding(bound, found, before.location, before.cpu, frozenset(moved))


def _without_holes(plan: Plan, piece: _Piece) -> _Piece:
    rules = tuple(index for index in piece.rules if plan.rules[index].effect.kind is not EffectKind.ALLOW)
    return replace(piece, rules=rules)


def _frames_of(parts: Sequence[Translation | Unmapped]) -> list[tuple[Gva, Gva, Gpa]]:
    return [(p.gva_range.start, p.gva_range.end, p.gpa_start) for p in parts if isinstance(p, Translation)]


def _unbound(plan: Plan, pieces: Sequence[_Piece], found: Walk) -> tuple[UnboundPlace, ...]:
    """Bytes that lead nowhere."""
    return tuple(
        UnboundPlace(_name(plan, piece), hole.gva_range.start, hole.gva_range.end, hole.reason.value)
        for piece, parts in zip(pieces, found.ranges[: len(pieces)], strict=True)
        for hole in parts
        if isinstance(hole, Unmapped)
    )


def _bound(plan: Plan, location: Location, pieces: Sequence[_Piece], found: Walk, cpu: str) -> BoundPlan:
    """The plan over the frames that were found."""
    copies = [_slid(plan, location, extent) for extent in plan.guest.copy_routines]
    code = {
        place: _addresses(plan, location, place) for place in code_places(plan.rules) | condition_places(plan.rules)
    }
    table, rights, notes = _physical_table(plan, pieces, found, cpu, code, copies, location)
    runs = [
        (part.gva_range.start, part.gva_range.end, part.gpa_start)
        for parts in found.ranges
        for part in parts
        if isinstance(part, Translation)
    ]
    freeable = FreeableFrames(
        run
        for piece, parts in zip(pieces, found.ranges[: len(pieces)], strict=True)
        if piece.base in FREEABLE
        for run in _frames_of(parts)
    )
    unbound = _unbound(plan, pieces, found)
    return BoundPlan(table, rights, CodeFrames(runs), location.slide, unbound, notes, freeable)


def _pieces(plan: Plan, location: Location) -> Iterable[_Piece]:
    """Every virtual segment with its rules; descriptor tables as often as vCPUs have different ones."""
    image = plan.guest.image_base + location.slide
    for base, segments in segments_of(plan).items():
        for segment in segments:
            match base:
                case Base.IMAGE:
                    yield _piece(base, segment, image, None)
                case Base.VIRTUAL:
                    yield _piece(base, segment, 0, None)
                case Base.IDT | Base.GDT:
                    tables = location.idts if base is Base.IDT else location.gdts
                    if not tables:
                        raise BindError(f"no vCPU says where its {base.word} lies")
                    for table in tables:
                        if segment.start < table.size:
                            yield _piece(base, segment, table.start, table.end)
                case Base.PHYSICAL:
                    pass


def _piece(base: Base, segment: Segment, origin: int, limit: int | None) -> _Piece:
    end = origin + segment.end if limit is None else min(origin + segment.end, limit)
    return _Piece(_virtual(origin + segment.start, end), segment.members, base)


def _virtual(start: int, end: int) -> GvaRange:
    """The range, if the slide hasn't moved it out of the address space."""
    try:
        return Range(Gva(start), Gva(end))
    except ValueError as error:
        raise BindError(f"with this guest's slide the plan names {error}") from error


def _slid(plan: Plan, location: Location, extent: Extent) -> GvaRange:
    origin = plan.guest.image_base + location.slide if extent.base is Base.IMAGE else 0
    return _virtual(origin + extent.start, origin + extent.end)


def _code_spans(plan: Plan, location: Location, place: int) -> tuple[GvaRange, ...]:
    extents = plan.places[place].extents or ()
    return tuple(_slid(plan, location, extent) for extent in extents if extent.base in (Base.IMAGE, Base.VIRTUAL))


def _addresses(plan: Plan, location: Location, place: int) -> CodeRanges:
    """The addresses that a condition or a `from` clause compares with: physical ones for physical places."""
    spans = (_slid(plan, location, extent) for extent in plan.places[place].extents or ())
    return CodeRanges((span.start, span.end) for span in spans)


def _physical_table(
    plan: Plan,
    pieces: Sequence[_Piece],
    found: Walk,
    cpu: str,
    code: Mapping[int, CodeRanges],
    copies: Sequence[GvaRange],
    location: Location,
) -> tuple[VerdictTable, dict[Gfn, Access], tuple[str, ...]]:
    groups: dict[Group, int] = {}
    ranges = [
        (part.gpa_start, part.gpa_range.end, groups.setdefault(piece.rules, len(groups)))
        for piece, parts in zip(pieces, found.ranges[: len(pieces)], strict=True)
        for part in parts
        if isinstance(part, Translation)
    ]
    ranges += [
        (Gpa(segment.start), Gpa(segment.end), groups.setdefault(segment.members, len(groups)))
        for segment in segments_of(plan).get(Base.PHYSICAL, ())
    ]
    segments = sweep(ranges)
    by_number = tuple(groups)
    cells: dict[Cell, int] = {}
    numbered = [
        (s.start, s.end, cells.setdefault(tuple(by_number[member] for member in s.members), len(cells)))
        for s in segments
    ]
    rights, notes = _rights(
        plan, tuple(cells), numbered, cpu, lambda: _frames_without_code(plan, pieces, found, location)
    )
    table = VerdictTable(
        rules=plan.rules,
        policies=tuple(policy.name for policy in plan.policies),
        cells=tuple(cells),
        spaces={Base.PHYSICAL: Space(numbered)},
        events=events_of(plan.rules),
        code=code,
        copy_routines=CodeRanges((s.start, s.end) for s in copies),
        guards=guards_of(plan.rules, code),
    )
    return table, rights, notes


def _frames_without_code(plan: Plan, pieces: Sequence[_Piece], found: Walk, location: Location) -> set[Gfn]:
    """The frames of which it is certain that nothing on them is ever executed: data of the image, descriptor tables."""
    image = plan.guest.image_base + location.slide
    with_code: set[Gfn] = set()
    without: set[Gfn] = set()
    for piece, parts in zip(pieces, found.ranges[: len(pieces)], strict=True):
        origin = image if piece.base is Base.IMAGE else 0
        pages = CodeRanges((origin + start, origin + end) for start, end in may_hold_code(piece.base, plan.guest.code))
        for part in parts:
            if isinstance(part, Translation):
                first = part.gva_range.start >> PAGE_SHIFT
                for number, frame in enumerate(gfns_of(part.gpa_range)):
                    page = (first + number) << PAGE_SHIFT
                    (with_code if page in pages else without).add(Gfn(frame))
    # A physical place says nothing of what its frames are used for.
    for segment in segments_of(plan).get(Base.PHYSICAL, ()):
        with_code.update(Gfn(n) for n in gfns_of(Range(Gpa(segment.start), Gpa(segment.end))))
    return without - with_code


def _rights(
    plan: Plan,
    cells: Sequence[Cell],
    segments: Sequence[tuple[int, int, int]],
    cpu: str,
    frames_without_code: Callable[[], set[Gfn]],
) -> tuple[dict[Gfn, Access], tuple[str, ...]]:
    """The rights of every frame: the union of what its segments need denied, widened to what hardware can hold."""
    denied_in = [_denied(plan, cell) for cell in cells]
    denied: dict[Gfn, Access] = {}
    frames = 0
    for start, end, cell in segments:
        if not denied_in[cell]:
            continue
        first, last = start >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT
        frames += last - first + 1
        if frames > MAX_FRAMES:
            raise BindError(f"the plan restricts more than {MAX_FRAMES} frames")
        for number in range(first, last + 1):
            gfn = Gfn(number)
            denied[gfn] = denied.get(gfn, Access.NONE) | denied_in[cell]
    held = {mask: hold(mask, cpu) for mask in set(denied.values())}
    codeless: set[Gfn] = set()
    if any(result.impossible for result in held.values()):
        codeless = frames_without_code()
        if any(held[mask].impossible for gfn, mask in denied.items() if gfn not in codeless):
            raise BindError("the plan needs execute-only pages, and this guest's processor has none")
        held = {mask: hold(mask, cpu, holds_code=not result.impossible) for mask, result in held.items()}
    notes = tuple(
        f"pages that deny {mask.rwx} also lose {result.widened.rwx}: the hardware can't hold less"
        for mask, result in sorted(held.items())
        if result.widened
    )
    return {gfn: held[mask].allowed for gfn, mask in denied.items()}, notes


def _denied(plan: Plan, cell: Cell) -> Access:
    denied = Access.NONE
    for group in cell:
        denied |= denied_on(plan.rules, group)
    return denied


def _name(plan: Plan, piece: _Piece) -> str:
    places = plan.rules[piece.rules[0]].places
    return str(plan.places[places[0]].place)
