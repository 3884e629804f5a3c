"""The write test: does a write to a write-protected frame really come as an event, whatever the replies said?

No KVMI kernel since v7 lets rights be read back, and some deployed v7 kernels answer success and let writes to half of
all frames pass, those whose number has bit 1 set. So evidence is taken where the guest writes by itself: a frame in
which counters run is protected for a moment, and its content is watched beside the events. Events are answered
CONTINUE, so every write is carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from policyc.addresses import PAGE_SIZE, Gfn, Gva, GvaRange, Range, frame_start, gfn_of, gfns_of
from policyc.guest.errors import WalkLimitError
from policyc.guest.linux_kernel import KernelFound
from policyc.guest.paging import AddressSpace, Translation, walk
from policyc.guest.profile import Profile
from policyc.kvmi import (
    ControlEvents,
    EventKind,
    PageAccess,
    PauseVcpu,
    ReadPhysical,
    ReadPhysicalReply,
    Refused,
    SetPageAccess,
    set_page,
)
from policyc.runtime.doctor_chart import Chart, FrameOutcome, FrameTrial, Permission, ProbeResult
from policyc.runtime.doctor_counters import looks_like_page_table, runs_counters_only
from policyc.runtime.procedure import Emit, Pause, Procedure, Resume, Sleep, TimedOutError, ask, ask_all, read_pages
from policyc.runtime.records import StateRecord

__all__ = ["Watch", "probe"]

NEEDED_COMMANDS = (ControlEvents, PauseVcpu, ReadPhysical, SetPageAccess)
NEEDED_EVENTS = (EventKind.PAUSE, EventKind.PF)

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

TRIED_OF_A_KIND = 3
"""Frames with, and without, bit 1 that are tried at most; the first that is reported settles it."""

LOOKS = 20
LOOK_PAUSE = 0.05
"""A frame stays protected for a second at most: so many looks, so far apart."""

WRITES_TRAPPED = PageAccess.RX
PAST_MEMORY = 1 << 52


@dataclass(slots=True)
class Watch:
    """The writes that were reported, by frame; kept up by whoever receives events."""

    writes: Counter[Gfn] = field(default_factory=Counter)


@dataclass(slots=True)
class _Refusal(Exception):
    """The test can't be made; the text says why."""

    reason: str


def probe(chart: Chart, profile: Profile | None, watch: Watch) -> Procedure[ProbeResult]:
    """Make the test on a guest whose chart is filled in otherwise; whatever happens, nothing stays protected."""
    try:
        _check(chart)
        yield _saying("looking for frames in which counters run")
        candidates = yield from _candidates(chart, profile)
    except (_Refusal, WalkLimitError, TimedOutError) as error:
        return ProbeResult(reason=str(error))
    return (yield from _try_frames(chart, candidates, watch))


def _check(chart: Chart) -> None:
    denied = [command.__name__ for command in NEEDED_COMMANDS if not chart.may(command)]
    denied += [f"{kind.name} events" for kind in NEEDED_EVENTS if chart.events.get(kind) is not Permission.ALLOWED]
    if denied:
        raise _Refusal(f"the VMM doesn't allow {', '.join(denied)}")
    if not chart.started:
        raise _Refusal("no vCPU that has been started answers")
    if len(chart.started) < len(chart.vcpus):
        raise _Refusal("a vCPU that hasn't been started could write unseen once it is")
    if chart.kernel is None or not chart.kernel.is_kernel:
        raise _Refusal("no kernel runs yet")


# --- where to look ---


def _candidates(chart: Chart, profile: Profile | None) -> Procedure[list[Gfn]]:
    """Frames to try, the likeliest first; a profile that isn't this guest's is as good as none."""
    found = chart.search
    if profile is not None and isinstance(found, KernelFound):
        ticks = [found.slide + symbol.gva for name in TICK_SYMBOLS for symbol in profile.kernel.symbol(name)]
        first = yield from _frames(found.space, [_around(Gva(gva)) for gva in ticks])
        spans = [profile.kernel.section(name) for name in DATA_SECTIONS]
        data = [Range(Gva(s.start + found.slide), Gva(s.end + found.slide)) for s in spans if s is not None]
        return [*first, *(yield from _counting(chart, (yield from _frames(found.space, data))))]
    assert chart.kernel is not None, "checked before"
    registers = chart.kernel.registers
    start = registers.lstar - registers.lstar % SEARCHED_BYTES
    region = Range(Gva(start), Gva(start + SEARCHED_BYTES))
    own = AddressSpace.of_registers(registers.cr3, registers.cr4, registers.efer)
    # A vCPU stopped in user mode may show page tables without the kernel's data; the kernel's own lie one page below.
    for space in (own, own.at(frame_start(Gfn(gfn_of(own.root) & ~1)))):
        frames = yield from _frames(space, [region])
        if frames:
            return (yield from _counting(chart, frames))
    raise _Refusal("the kernel's data can't be found")


def _around(gva: Gva) -> GvaRange:
    start = gva - gva % PAGE_SIZE
    return Range(Gva(start), Gva(start + PAGE_SIZE))


def _frames(space: AddressSpace, spans: Sequence[GvaRange]) -> Procedure[list[Gfn]]:
    """The kernel's own writable data in these spans, without the tables that lead there."""
    if not spans:
        return []
    found = yield from read_pages(walk(space, spans))
    tables = set(found.tables().gfns)
    frames = {
        Gfn(number): None
        for pieces in found.ranges
        for piece in pieces
        if isinstance(piece, Translation) and piece.writable and not piece.user and not piece.executable
        for number in _first_frames(piece)
    }
    return [gfn for gfn in frames if gfn not in tables][:MAX_SAMPLED]


def _first_frames(piece: Translation) -> range:
    """No more than are sampled: a guest may map a GiB of anything."""
    return gfns_of(piece.gpa_range)[: MAX_SAMPLED * 2]


def _counting(chart: Chart, frames: Sequence[Gfn]) -> Procedure[list[Gfn]]:
    """Those of the frames in which counters run and nothing else changes."""
    end = chart.memory_end or PAST_MEMORY
    samples: dict[Gfn, list[bytes]] = {gfn: [] for gfn in frames}
    for number in range(SAMPLES):
        if number:
            yield Sleep(SAMPLE_PAUSE)
        contents = yield from _read(list(samples))
        samples = {gfn: [*samples[gfn], page] for gfn, page in contents.items() if _still(samples[gfn], page)}
    return [
        gfn for gfn, seen in samples.items() if runs_counters_only(seen) and not looks_like_page_table(seen, end)
    ]


def _still(seen: Sequence[bytes], page: bytes) -> bool:
    """Whether a frame is worth another sample: it changed since the last."""
    return not seen or seen[-1] != page


def _read(gfns: Sequence[Gfn]) -> Procedure[Mapping[Gfn, bytes]]:
    found: dict[Gfn, bytes] = {}
    for first in range(0, len(gfns), READ_AT_ONCE):
        part = gfns[first : first + READ_AT_ONCE]
        results = yield from ask_all(ReadPhysical(frame_start(gfn), PAGE_SIZE) for gfn in part)
        for gfn, result in zip(part, results, strict=True):
            if isinstance(result, ReadPhysicalReply):
                found[gfn] = result.data
    return found


# --- what happens there ---


def _try_frames(chart: Chart, candidates: Sequence[Gfn], watch: Watch) -> Procedure[ProbeResult]:
    """Try some of each kind, with page faults on for every vCPU, and put everything back."""
    trials: list[FrameTrial] = []
    unrestored: list[str] = []
    reason: str | None = None
    try:
        refused = yield from _listen(chart.started)
        if refused:
            reason = f"page-fault events can't be switched on: {refused[0]}"
        else:
            for kind in (True, False):
                yield from _try_kind(list(_of_kind(candidates, kind)), watch, trials, unrestored)
    except TimedOutError as error:
        reason = str(error)
        yield Resume()
    try:
        results = yield from ask_all(ControlEvents(vcpu, EventKind.PF, enable=False) for vcpu in chart.started)
        unrestored += [str(result) for result in results if isinstance(result, Refused)]
    except TimedOutError as error:
        unrestored.append(str(error))
    if not trials and reason is None:
        reason = "no frame was found in which nothing but counters change"
    return ProbeResult(tuple(trials), reason, tuple(unrestored))


def _of_kind(candidates: Sequence[Gfn], deaf_bit: bool) -> Iterator[Gfn]:
    frames = dict.fromkeys(candidates)
    return (gfn for gfn in frames if FrameTrial(gfn, FrameOutcome.UNWRITTEN).has_deaf_bit == deaf_bit)


def _listen(vcpus: Sequence[int]) -> Procedure[list[str]]:
    """Switch page-fault events on for every vCPU while it stands still; what the kernel refused, in words."""
    results = yield from ask_all(PauseVcpu(vcpu, wait=True) for vcpu in vcpus)
    refused = [str(result) for result in results if isinstance(result, Refused)]
    if not refused:
        yield Pause(frozenset(vcpus))
        results = yield from ask_all(ControlEvents(vcpu, EventKind.PF, enable=True) for vcpu in vcpus)
        refused = [str(result) for result in results if isinstance(result, Refused)]
    yield Resume()
    return refused


def _try_kind(
    frames: Sequence[Gfn], watch: Watch, trials: list[FrameTrial], unrestored: list[str]
) -> Procedure[None]:
    for gfn in frames[:TRIED_OF_A_KIND]:
        yield _saying(f"write-protecting frame {gfn:#x} for a moment")
        gpa = frame_start(gfn)
        protected = yield from ask(set_page(gpa, WRITES_TRAPPED))
        outcome = FrameOutcome.REFUSED
        timed_out: TimedOutError | None = None
        try:
            if not isinstance(protected, Refused):
                outcome = yield from _watch_frame(gfn, watch)
        except TimedOutError as error:
            timed_out = error
        released = yield from ask(set_page(gpa, PageAccess.RWX))
        if isinstance(released, Refused):
            unrestored.append(str(released))
        if timed_out is not None:
            raise timed_out
        trials.append(FrameTrial(gfn, outcome, watch.writes[gfn]))
        if outcome is FrameOutcome.REPORTED:
            return


def _watch_frame(gfn: Gfn, watch: Watch) -> Procedure[FrameOutcome]:
    """Compare the frame with what it was; the kernel sends a write's event before it carries the write out."""
    before = yield from _content(gfn)
    for _ in range(LOOKS):
        yield Sleep(LOOK_PAUSE)
        now = yield from _content(gfn)
        if watch.writes[gfn]:
            return FrameOutcome.REPORTED
        if None not in (before, now) and now != before:
            return FrameOutcome.SILENT
    return FrameOutcome.UNWRITTEN


def _content(gfn: Gfn) -> Procedure[bytes | None]:
    result = yield from ask(ReadPhysical(frame_start(gfn), PAGE_SIZE))
    return result.data if isinstance(result, ReadPhysicalReply) else None


def _saying(what: str) -> Emit:
    return Emit(StateRecord("EXAMINING", what))
