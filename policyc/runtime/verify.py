"""Guarded bytes read again on a slow schedule: what changed without an event, no vCPU wrote.

A device, or the VMM itself, writes to guest memory without asking, and some kernels miss events that they should send.
Only bytes that nobody may write are looked at: where an exception, a condition or an `allow` lets somebody write, a
change says nothing. The first look is the measure, taken while the pages are guarded already.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from policyc.addresses import PAGE_SIZE, Gfn, frame_start
from policyc.catalog import Access, EffectKind
from policyc.kvmi import ReadPhysical, ReadPhysicalReply
from policyc.plan.places import Base
from policyc.plan.verdict_table import Group, VerdictTable
from policyc.runtime.bound import BoundPlan
from policyc.runtime.procedure import Emit, Procedure, Sleep, TimedOutError, ask_all
from policyc.runtime.records import StateRecord

__all__ = ["Verification", "guarded_for_good"]

BATCH = 32
"""Pages read at a time: 128 KiB, so that an event's reply never waits for long."""

BATCH_PAUSE = 0.02
"""Seconds between two batches: at most 6 MiB of guest memory a second."""

DIGEST_BYTES = 16

BLOCK = 64
"""Bytes that a change is told to within: each block's checksum is kept, which costs a sixteenth of what is guarded."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What a page's guarded bytes were: the digest says whether they have changed, the checksums roughly where."""

    digest: bytes
    blocks: array[int]


@dataclass(frozen=True, slots=True)
class GuardedPage:
    """What is looked at of one frame.

    Attributes:
        spans: half-open byte ranges within the page, ascending.
        rules: ids of the rules that guard them.
    """

    spans: tuple[tuple[int, int], ...]
    rules: tuple[str, ...]


class Verification:
    """The schedule for one armed guest.

    Args:
        guarded: what is in force now; None when it no longer is.
        every: seconds from the end of one look to the next.
        degraded: called when a change was found, before its record is written; says what the state is called then.
    """

    def __init__(self, guarded: Callable[[], BoundPlan | None], every: float, degraded: Callable[[], str]) -> None:
        self._guarded = guarded
        self._every = every
        self._degraded = degraded
        self._bound: BoundPlan | None = None
        self._pages: Mapping[Gfn, GuardedPage] = {}
        self._measures: dict[Gfn, Measure] = {}
        self._unreadable: set[Gfn] = set()

    def run(self) -> Procedure[None]:
        """Look again and again, for as long as something is guarded."""
        while self._keep_up():
            for gfns in _batches(sorted(self._pages)):
                try:
                    records = yield from self._look(gfns)
                except TimedOutError:
                    records = []
                if self._guarded() is not self._bound:
                    break
                for record in records:
                    yield Emit(record)
                yield Sleep(BATCH_PAUSE)
            else:
                yield Sleep(self._every)

    def _keep_up(self) -> bool:
        """Turn to what is in force now; what is guarded as before keeps its measure."""
        bound = self._guarded()
        if bound is not None and bound is not self._bound:
            before = self._pages
            self._bound, self._pages = bound, guarded_for_good(bound)
            kept = {gfn for gfn, page in self._pages.items() if before.get(gfn) == page}
            self._measures = {gfn: measure for gfn, measure in self._measures.items() if gfn in kept}
        return bound is not None

    def _look(self, gfns: Sequence[Gfn]) -> Procedure[list[StateRecord]]:
        results = yield from ask_all(ReadPhysical(frame_start(gfn), PAGE_SIZE) for gfn in gfns)
        found: list[StateRecord] = []
        for gfn, result in zip(gfns, results, strict=True):
            page = self._pages[gfn]
            if not isinstance(result, ReadPhysicalReply):
                # What it was is kept: it may come back changed.
                if gfn in self._measures and gfn not in self._unreadable:
                    self._unreadable.add(gfn)
                    found.append(self._told(gfn, page.spans[0][0], page.spans[-1][1], "can't be read any more"))
                continue
            self._unreadable.discard(gfn)
            before, digest = self._measures.get(gfn), _digest(result.data, page.spans)
            if before is not None and before.digest == digest:
                continue
            after = self._measures[gfn] = Measure(digest, _checksums(result.data, page.spans))
            if before is not None:
                found.append(self._told(gfn, *_where(page.spans, before, after), "changed without an event"))
        return found

    def _told(self, gfn: Gfn, first: int, last: int, what: str) -> StateRecord:
        start = frame_start(gfn)
        return StateRecord(
            self._degraded(),
            f"guarded bytes in [{start + first:#x}, {start + last:#x}) {what}",
            "critical",
            {"gpa": hex(start + first), "rules": list(self._pages[gfn].rules)},
        )


def guarded_for_good(bound: BoundPlan) -> Mapping[Gfn, GuardedPage]:
    """Every frame with bytes that nobody may write, whoever it is and whatever else holds; none that may be freed."""
    table = bound.table
    closed = {number: rules for number, cell in enumerate(table.cells) if (rules := _closed(table, cell))}
    spans: dict[Gfn, list[tuple[int, int]]] = {}
    rules_on: dict[Gfn, set[int]] = {}
    space = table.spaces[Base.PHYSICAL]
    for start, end, number in zip(space.starts, space.ends, space.cells, strict=True):
        if number not in closed:
            continue
        for at in range(start - start % PAGE_SIZE, end, PAGE_SIZE):
            gfn = Gfn(at // PAGE_SIZE)
            if bound.freeable.pages_of(gfn):
                continue
            spans.setdefault(gfn, []).append((max(start, at) - at, min(end, at + PAGE_SIZE) - at))
            rules_on.setdefault(gfn, set()).update(closed[number])
    ids = [rule.id for rule in table.rules]
    return {gfn: GuardedPage(tuple(spans[gfn]), tuple(ids[n] for n in sorted(rules_on[gfn]))) for gfn in spans}


def _closed(table: VerdictTable, cell: Sequence[Group]) -> tuple[int, ...]:
    """The rules that keep everybody from writing here; none where somebody may."""
    found: list[int] = []
    for group in cell:
        rules = {index: table.rules[index] for index in group if table.rules[index].access & Access.W}
        if any(rule.effect.kind is EffectKind.ALLOW for rule in rules.values()):
            continue
        found += [
            index
            for index, rule in rules.items()
            if rule.enforce and rule.unconditional and rule.effect.kind >= EffectKind.SKIP
        ]
    return tuple(found)


def _digest(content: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for start, end in spans:
        digest.update(content[start:end])
    return digest.digest()


def _checksums(content: bytes, spans: Sequence[tuple[int, int]]) -> array[int]:
    return array("I", (crc32(content[start:end]) for start, end in _blocks(spans)))


def _blocks(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans, parted where a multiple of `BLOCK` lies."""
    for start, end in spans:
        for at in range(start - start % BLOCK, end, BLOCK):
            yield max(start, at), min(end, at + BLOCK)


def _where(spans: Sequence[tuple[int, int]], before: Measure, after: Measure) -> tuple[int, int]:
    """The first byte that may have changed and the one after the last, within the page."""
    compared = zip(_blocks(spans), before.blocks, after.blocks, strict=True)
    changed = [block for block, old, new in compared if old != new]
    return (changed[0][0], changed[-1][1]) if changed else (spans[0][0], spans[-1][1])


def _batches(gfns: Sequence[Gfn]) -> Iterator[Sequence[Gfn]]:
    for first in range(0, len(gfns), BATCH):
        yield gfns[first : first + BATCH]
