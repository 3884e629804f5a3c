"""The write test: does a write to a write-protected frame really come as an event, whatever the replies said?

No KVMI kernel since v7 lets rights be read back, and some deployed v7 kernels answer success and let writes to half of
all frames pass, those whose number has bit 1 set. So evidence is taken where the guest writes by itself: a frame in
which counters run is protected for a moment, and its content is watched beside the events. Events are answered
CONTINUE, so every write is carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from policyc.addresses import PAGE_SIZE, Gfn, frame_start
from policyc.guest.errors import WalkLimitError
from policyc.guest.linux_kernel import KernelFound
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
from policyc.runtime.doctor_candidates import frames_of_kernel, frames_of_profile
from policyc.runtime.doctor_chart import DEAF_BIT, Chart, FrameOutcome, FrameTrial, Permission, ProbeResult
from policyc.runtime.doctor_losses import command_name, event_name
from policyc.runtime.procedure import Emit, Pause, Procedure, Resume, Sleep, TimedOutError, ask, ask_all
from policyc.runtime.records import StateRecord

__all__ = ["Watch", "probe", "saying"]

NEEDED_COMMANDS = (ControlEvents, PauseVcpu, ReadPhysical, SetPageAccess)
NEEDED_EVENTS = (EventKind.PAUSE, EventKind.PF)

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


def probe(chart: Chart, profile: Profile | None, watch: Watch) -> Procedure[ProbeResult]:
    """Make the test on a guest whose chart is filled in otherwise; whatever happens, nothing stays protected."""
    reason = _obstacle(chart)
    if reason is not None:
        return ProbeResult(reason=reason)
    yield saying("looking for frames in which counters run")
    try:
        candidates = yield from _candidates(chart, profile)
    except (WalkLimitError, TimedOutError) as error:
        return ProbeResult(reason=str(error))
    if not candidates:
        return ProbeResult(reason="no frame of kernel data was found in which nothing but counters change")
    return (yield from _Trials(chart.started, watch).run(candidates))


def _obstacle(chart: Chart) -> str | None:
    """Why the test can't be made, if it can't."""
    denied = [command_name(command) for command in NEEDED_COMMANDS if not chart.may(command)]
    denied += [f"{event_name(k)} events" for k in NEEDED_EVENTS if chart.events.get(k) is not Permission.ALLOWED]
    if denied:
        return f"the VMM doesn't allow {', '.join(denied)}"
    if not chart.started:
        return "no vCPU that has been started answers"
    if len(chart.started) < len(chart.vcpus):
        return "a vCPU that hasn't been started could write unseen once it is"
    if chart.kernel is None or not chart.kernel.is_kernel:
        return "no kernel runs yet"
    return None


def _candidates(chart: Chart, profile: Profile | None) -> Procedure[list[Gfn]]:
    """Frames to try, the likeliest first; a profile that isn't this guest's is as good as none."""
    end = chart.memory_end or PAST_MEMORY
    if profile is not None and isinstance(chart.search, KernelFound):
        return (yield from frames_of_profile(profile, chart.search, end))
    assert chart.kernel is not None, "without one there is an obstacle"
    return (yield from frames_of_kernel(chart.kernel.registers, end))


class _Trials:
    """Frames are tried, with page faults on for every vCPU, and everything is put back.

    Where even that isn't answered, the connection is about to end, and the kernel undoes it then.
    """

    def __init__(self, vcpus: Sequence[int], watch: Watch) -> None:
        self._vcpus = vcpus
        self._watch = watch
        self._trials: list[FrameTrial] = []
        self._unrestored: list[str] = []

    def run(self, candidates: Sequence[Gfn]) -> Procedure[ProbeResult]:
        """Try the first candidates of each kind."""
        reason = None
        try:
            refused = yield from self._switch_on()
            if refused:
                reason = f"page-fault events can't be switched on: {refused[0]}"
            else:
                for kind in (DEAF_BIT, 0):
                    yield from self._try_some([gfn for gfn in candidates if gfn & DEAF_BIT == kind])
        except TimedOutError as error:
            reason = str(error)
            yield Resume()
        yield from self._restore(*(ControlEvents(vcpu, EventKind.PF, enable=False) for vcpu in self._vcpus))
        return ProbeResult(tuple(self._trials), reason, tuple(self._unrestored))

    def _switch_on(self) -> Procedure[list[str]]:
        """Have page faults reported by every vCPU, while all stand still; what the kernel refused, in words."""
        results = yield from ask_all(PauseVcpu(vcpu, wait=True) for vcpu in self._vcpus)
        refused = [str(result) for result in results if isinstance(result, Refused)]
        if not refused:
            yield Pause(frozenset(self._vcpus))
            results = yield from ask_all(ControlEvents(vcpu, EventKind.PF, enable=True) for vcpu in self._vcpus)
            refused = [str(result) for result in results if isinstance(result, Refused)]
        yield Resume()
        return refused

    def _restore(self, *commands: ControlEvents | SetPageAccess) -> Procedure[None]:
        try:
            results = yield from ask_all(commands)
        except TimedOutError as error:
            self._unrestored.append(str(error))
            return
        self._unrestored += [str(result) for result in results if isinstance(result, Refused)]

    def _try_some(self, frames: Sequence[Gfn]) -> Procedure[None]:
        for gfn in frames[:TRIED_OF_A_KIND]:
            yield saying(f"write-protecting frame {gfn:#x} for a moment")
            unprotected = set_page(frame_start(gfn), PageAccess.RWX)
            try:
                outcome = yield from self._try(gfn)
            except TimedOutError:
                yield from self._restore(unprotected)
                raise
            if outcome is not FrameOutcome.REFUSED:
                yield from self._restore(unprotected)
            self._trials.append(FrameTrial(gfn, outcome, self._watch.writes[gfn]))
            if outcome is FrameOutcome.REPORTED:
                return

    def _try(self, gfn: Gfn) -> Procedure[FrameOutcome]:
        """Compare the frame with what it was; the kernel sends a write's event before it carries the write out."""
        protected = yield from ask(set_page(frame_start(gfn), WRITES_TRAPPED))
        if isinstance(protected, Refused):
            return FrameOutcome.REFUSED
        before = yield from _content(gfn)
        for _ in range(LOOKS):
            yield Sleep(LOOK_PAUSE)
            now = yield from _content(gfn)
            if self._watch.writes[gfn]:
                return FrameOutcome.REPORTED
            if None not in (before, now) and now != before:
                return FrameOutcome.SILENT
        return FrameOutcome.UNWRITTEN


def _content(gfn: Gfn) -> Procedure[bytes | None]:
    result = yield from ask(ReadPhysical(frame_start(gfn), PAGE_SIZE))
    return result.data if isinstance(result, ReadPhysicalReply) else None


def saying(what: str) -> Emit:
    """Progress, for whoever watches the examination."""
    return Emit(StateRecord("EXAMINING", what))
