"""Looks in a running guest for frames of kernel data in which counters run: from a profile, or from LSTAR alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from policyc.addresses import ADDRESS_SPACE_END, PAGE_SIZE, Gfn, Gva, GvaRange, Range, frame_start, gfn_of, gfns_of
from policyc.guest.linux_kernel import KernelFound, VcpuRegisters
from policyc.guest.paging import AddressSpace, Translation, Walk, walk
from policyc.guest.profile import Profile
from policyc.kvmi import ReadPhysical, ReadPhysicalReply
from policyc.runtime.doctor_counters import looks_like_page_table, runs_counters_only
from policyc.runtime.procedure import Procedure, Sleep, ask_all, read_pages

__all__ = ["MAX_SAMPLED", "frames_of_kernel", "frames_of_profile"]

TICK_SYMBOLS = ("jiffies", "jiffies_64")
"""What Linux writes at every timer interrupt (kernel/time/timekeeping.c)."""

DATA_SECTIONS = (".data", ".bss")

SEARCHED_BYTES = 1 << 30
"""Without a profile, the kernel's data is looked for in the aligned GiB around LSTAR: Linux keeps its image there."""

MAX_SAMPLED = 2048
"""Frames that are read to find counters: 8 MiB."""

SAMPLES = 3
SAMPLE_PAUSE = 0.2
"""Seconds between two samples: twenty ticks or more of most kernels."""

READ_AT_ONCE = 256
"""Frames a batch, so that a slow kernel answers it in time."""


def frames_of_profile(profile: Profile, found: KernelFound, memory_end: int) -> Procedure[list[Gfn]]:
    """Frames to try in the kernel that a profile describes: the clock's first, then where counters were seen to run.

    Raises:
        WalkLimitError: the guest's page tables make the search too large.
    """
    symbols = [symbol for name in TICK_SYMBOLS for symbol in profile.kernel.symbol(name)]
    ticks = [_slid(Range(symbol.gva, Gva(symbol.gva + 1)), found.slide) for symbol in symbols]
    sections = [profile.kernel.section(name) for name in DATA_SECTIONS]
    data = [_slid(section, found.slide) for section in sections if section is not None]
    first = yield from _frames(found.space, ticks)
    others = yield from _counting((yield from _frames(found.space, data)), memory_end)
    return list(dict.fromkeys([*first, *others]))


def frames_of_kernel(registers: VcpuRegisters, memory_end: int) -> Procedure[list[Gfn]]:
    """Frames to try in whatever kernel runs on a vCPU with these registers.

    Raises:
        WalkLimitError: the guest's page tables make the search too large.
    """
    start = registers.lstar - registers.lstar % SEARCHED_BYTES
    region = Range(Gva(start), Gva(start + SEARCHED_BYTES))
    own = AddressSpace.of_registers(registers.cr3, registers.cr4, registers.efer)
    # A vCPU stopped in user mode may show page tables without the kernel's data; the kernel's own lie one page below.
    for root in dict.fromkeys((own.root, frame_start(Gfn(gfn_of(own.root) & ~1)))):
        frames = yield from _frames(own.at(root), [region])
        if frames:
            return (yield from _counting(frames, memory_end))
    return []


def _slid(span: GvaRange, slide: int) -> GvaRange | None:
    """Where it lies in the guest, which says how far its kernel slid and may say anything."""
    start, end = span.start + slide, span.end + slide
    return Range(Gva(start), Gva(end)) if start >= 0 and end <= ADDRESS_SPACE_END else None


def _frames(space: AddressSpace, spans: Sequence[GvaRange | None]) -> Procedure[list[Gfn]]:
    """The kernel's own writable data in these spans, without the tables that lead there."""
    found = yield from read_pages(walk(space, [span for span in spans if span is not None]))
    tables = set(found.tables().gfns)
    frames: dict[Gfn, None] = {}
    for gfn in _data_frames(found):
        if len(frames) == MAX_SAMPLED:
            break
        if gfn not in tables:
            frames[gfn] = None
    return list(frames)


def _data_frames(found: Walk) -> Iterator[Gfn]:
    for pieces in found.ranges:
        for piece in pieces:
            if isinstance(piece, Translation) and piece.writable and not piece.user and not piece.executable:
                yield from map(Gfn, gfns_of(piece.gpa_range))


def _counting(frames: Sequence[Gfn], memory_end: int) -> Procedure[list[Gfn]]:
    """Those of the frames in which counters run and nothing else changes."""
    samples: dict[Gfn, list[bytes]] = {gfn: [] for gfn in frames}
    for number in range(SAMPLES):
        if number:
            yield Sleep(SAMPLE_PAUSE)
        contents = yield from _read(list(samples))
        # What stands still from one sample to the next isn't asked for again.
        samples = {gfn: [*samples[gfn], page] for gfn, page in contents.items() if samples[gfn][-1:] != [page]}
    return [
        gfn for gfn, seen in samples.items() if runs_counters_only(seen) and not looks_like_page_table(seen, memory_end)
    ]


def _read(gfns: Sequence[Gfn]) -> Procedure[Mapping[Gfn, bytes]]:
    """The content of every frame that has memory."""
    found: dict[Gfn, bytes] = {}
    for first in range(0, len(gfns), READ_AT_ONCE):
        part = gfns[first : first + READ_AT_ONCE]
        results = yield from ask_all(ReadPhysical(frame_start(gfn), PAGE_SIZE) for gfn in part)
        for gfn, result in zip(part, results, strict=True):
            if isinstance(result, ReadPhysicalReply):
                found[gfn] = result.data
    return found
