"""What a case comes to, against the plainest way to ask: each byte by itself, and the runtime's own table."""

from __future__ import annotations

from hypothesis import given, settings

from policyc.addresses import PAGE_SIZE
from policyc.analysis.cases import run_case
from policyc.analysis.probes import probes_of
from policyc.compiler.resolved import ResolvedCase
from policyc.guest.paging import AddressSpace
from policyc.plan.accesses import MemoryAccess, Origin
from policyc.plan.model import Effect, Plan
from policyc.plan.places import Base, Extent
from policyc.plan.tables import link_time_table
from policyc.plan.verdict_table import VerdictTable
from policyc.plan.verdicts import Verdict, decide
from policyc.runtime.bind import Location, bind
from tests.support.cases import CODE, DATA, DATA_BYTES, cases, pages_of, plans, unit_with
from tests.support.guest_memory import GuestMemory, transcript

STRANGER = 0x1234_5000
SLIDE = 0


def would(table: VerdictTable, asked: MemoryAccess) -> Effect | None:
    said = decide(table, asked)
    assert isinstance(said, Verdict)
    return said.would


def access(case: ResolvedCase, base: Base, start: int, size: int) -> MemoryAccess:
    """The access as the runtime would put it once everything about it has been established."""
    resolutions = [place.resolution for place in case.origin if place.resolution is not None]
    rip = resolutions[0].extents[0].start if resolutions else STRANGER
    origin = Origin(rip, STRANGER, rip_genuine=True, return_genuine=True)
    return MemoryAccess(case.access, base, start, size, origin, fields=case.fields.get)


def whole(case: ResolvedCase) -> Extent:
    (place,) = case.places
    assert place.resolution is not None
    (extent,) = place.resolution.extents
    return extent


@given(plans(), cases())
def test_every_byte__is_asked_about(plan: Plan, case: ResolvedCase) -> None:
    """The spans of an area's probes are its bytes, each once; what a probe says holds for each of its bytes."""
    table = link_time_table(plan)
    if case.size is not None:
        return
    covered: list[int] = []
    for said in run_case(case, unit_with(plan).tables, plan.guest.image_base).answers:
        for span in said.probe.spans:
            covered += range(span.start, span.end)
            for byte in range(span.start, span.end):
                assert would(table, access(case, Base.VIRTUAL, byte, 1)) == said.verdict.would
    assert sorted(covered) == list(range(whole(case).start, whole(case).end))


@settings(max_examples=60)
@given(plans(), cases())
def test_verdicts__are_those_of_the_bound_table(plan: Plan, case: ResolvedCase) -> None:
    """What a test is told is what the runtime does with the same access to the frames that binding found."""
    memory = GuestMemory()
    space = AddressSpace(root=memory.new_page(), levels=4, nx_enabled=True, physical_bits=46)
    frames = {}
    for page in pages_of(plan):
        frames[page] = memory.new_page()
        memory.map(space.root, page * PAGE_SIZE, frames[page])
    _, binding = transcript(bind(plan, Location(SLIDE, space, (), ()), cpu="intel"), memory.read)

    for probe in probes_of(case, link_time_table(plan), plan.guest.image_base):
        for asked in probe.parts:
            assert isinstance(asked, MemoryAccess)
            assert asked.size is not None
            frame = frames.get(asked.start // PAGE_SIZE)
            if frame is None:
                continue
            told = decide(link_time_table(plan), asked)
            done = decide(
                binding.plan.table,
                access(case, Base.PHYSICAL, frame + asked.start % PAGE_SIZE, asked.size),
            )
            assert told == done


def test_support__covers_what_it_should() -> None:
    """The bytes lie on two pages, or nothing here would cross from one into the other."""
    assert DATA // PAGE_SIZE + 1 == (DATA + DATA_BYTES - 1) // PAGE_SIZE
    assert CODE // PAGE_SIZE > (DATA + DATA_BYTES) // PAGE_SIZE
