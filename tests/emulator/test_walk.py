"""Page walks against a slow reading of the manual, over tables that hypothesis invents."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gva
from policyc.emulator.memory import Memory
from policyc.emulator.walk import FETCH, READ, WRITE, GuestPageFault, Mapping, Paging, access_for, translate

ROOT = 0x1000
P, RW, US, A, D, PS = 1, 2, 4, 0x20, 0x40, 0x80
NX = 1 << 63
EFER_NXE, WP, SMEP, SMAP, AC = 1 << 11, 1 << 16, 1 << 20, 1 << 21, 1 << 18
FRAME = 0x000F_FFFF_FFFF_F000
SHIFTS = (39, 30, 21, 12)

flags = st.integers(0, 255).flatmap(
    lambda low: st.sampled_from([low, low | NX, low | P, low | P | RW | US, low | P | NX])
)
paths = st.lists(flags, min_size=4, max_size=4)
gvas = st.integers(0, (1 << 48) - 1).map(lambda low: low | (0xFFFF << 48 if low >> 47 else 0))
pagings = st.builds(
    Paging,
    cr0=st.sampled_from([0, WP]),
    cr3=st.just(ROOT),
    cr4=st.sampled_from([0, SMEP, SMAP, SMEP | SMAP]),
    efer=st.sampled_from([0, EFER_NXE]),
    rflags=st.sampled_from([0, AC]),
    cpl=st.sampled_from([0, 3]),
)


def build(gva: int, path: list[int]) -> tuple[Memory, list[tuple[int, int]]]:
    """Tables at 0x1000 to 0x4000 that lead to frame 0x200000, and where each entry is."""
    memory = Memory(8 << 20)
    places = []
    for level, (shift, bits) in enumerate(zip(SHIFTS, path, strict=True)):
        at = ROOT + 0x1000 * level + 8 * (gva >> shift & 511)
        if level == 0:
            bits &= ~PS
        target = 0x20_0000 if level == 3 or (bits & PS and level) else ROOT + 0x1000 * (level + 1)
        memory.quadwords[at >> 3] = target | bits
        places.append((at, target | bits))
    return memory, places


def expected(gva: int, path: list[int], paging: Paging, kind: int) -> tuple[int | None, int]:
    """The shift of the page and 0, or None and the error code: straight from volume 3, 4.6 and 4.7."""
    write_all = user_all = True
    nx_any = False
    shift = 0
    for level, bits in enumerate(path):
        if not bits & P:
            return None, error(paging, kind, 0)
        write_all &= bool(bits & RW)
        user_all &= bool(bits & US)
        nx_any |= bool(bits & NX and paging.efer & EFER_NXE)
        shift = SHIFTS[level]
        if level == 3 or (level and bits & PS):
            break
    supervisor = paging.cpl < 3
    if kind == FETCH:
        allowed = not nx_any and (user_all or supervisor) and not (supervisor and user_all and paging.cr4 & SMEP)
    else:
        allowed = user_all or supervisor
        if supervisor and user_all and paging.cr4 & SMAP and not paging.rflags & AC:
            allowed = False
        if kind == WRITE and not write_all and not (supervisor and not paging.cr0 & WP):
            allowed = False
    return (shift, 0) if allowed else (None, error(paging, kind, P))


def error(paging: Paging, kind: int, present: int) -> int:
    fetch = kind == FETCH and (paging.efer & EFER_NXE or paging.cr4 & SMEP)
    return present | (2 if kind == WRITE else 0) | (4 if paging.cpl == 3 else 0) | (16 if fetch else 0)


@settings(max_examples=400, deadline=None)
@given(gvas, paths, pagings, st.sampled_from([READ, WRITE, FETCH]))
def test_an_access_is_decided_as_the_manual_says(gva: int, path: list[int], paging: Paging, kind: int) -> None:
    path[0] &= ~PS
    memory, places = build(gva, path)
    shift, code = expected(gva, path, paging, kind)
    result = access_for(memory, paging, gva, kind)
    after = [memory.quadwords[at >> 3] for at, _ in places]
    before = [entry for _, entry in places]
    if shift is None:
        assert result == GuestPageFault(result.gva, code) if isinstance(result, GuestPageFault) else False
        assert after == before
        return
    depth = SHIFTS.index(shift) + 1
    assert isinstance(result, Mapping)
    assert result.gpa == 0x20_0000 & ~((1 << shift) - 1) | gva & (1 << shift) - 1
    assert result.rights & kind
    for other in (READ, WRITE, FETCH):
        allowed = expected(gva, path, paging, other)[0] is not None
        dirty = after[depth - 1] & D
        assert bool(result.rights & other) == (allowed and (other != WRITE or bool(dirty)))
    leaf = before[depth - 1] | A | (D if kind == WRITE else 0)
    assert after == [entry | A for entry in before[: depth - 1]] + [leaf] + before[depth:]


@settings(max_examples=200, deadline=None)
@given(gvas, paths)
def test_a_translation_asks_for_presence_alone(gva: int, path: list[int]) -> None:
    path[0] &= ~PS
    memory, places = build(gva, path)
    found = next((bits for level, bits in enumerate(path) if not bits & P or (level and bits & PS)), path[3])
    gpa = translate(memory, ROOT, gva)
    assert (gpa is not None) == bool(found & P)
    if gpa is not None:
        assert gpa & 0xFFF == gva & 0xFFF
    assert [memory.quadwords[at >> 3] for at, _ in places] == [entry for _, entry in places]


def test_addresses_that_are_not_canonical_lead_nowhere() -> None:
    memory, _ = build(0, [P | RW | US] * 4)
    for gva in (1 << 47, 1 << 63, 0x7FFF << 48, (1 << 64) - (1 << 48)):
        assert translate(memory, ROOT, gva) is None


def test_tables_outside_memory_are_not_present() -> None:
    paging = Paging(0, 0, 0, 0, 0, 0)
    for cr3, entry in product((0x80_0000, 0xF_FFFF_F000), (0,)):
        memory = Memory(8 << 20)
        memory.quadwords[0] = entry
        assert translate(memory, cr3, 0) is None
        assert access_for(memory, paging._replace(cr3=cr3), 0, READ) == GuestPageFault(Gva(0), 0)
    memory = Memory(8 << 20)
    memory.quadwords[ROOT >> 3] = 0x000F_FFFF_FFFF_F000 | P
    assert translate(memory, ROOT, 0) is None


def test_tables_that_lead_to_themselves_end() -> None:
    memory = Memory(8 << 20)
    memory.quadwords[ROOT >> 3] = ROOT | P | RW
    assert translate(memory, ROOT, 0) == ROOT
