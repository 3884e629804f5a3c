"""The write test on request: does a write to a write-protected frame really come as an event?

Frames in which counters run are looked for in a guest that nobody guards, page faults are switched on for the time of
the test, and everything is put back.
"""

from __future__ import annotations

from collections.abc import Sequence

from policyc.addresses import Gfn
from policyc.guest.errors import WalkLimitError
from policyc.guest.linux_kernel import KernelFound
from policyc.guest.profile import Profile
from policyc.kvmi import (
    ControlEvents,
    EventKind,
    PauseVcpu,
    ReadPhysical,
    Refused,
    SetPageAccess,
)
from policyc.runtime.doctor_candidates import frames_of_kernel, frames_of_profile
from policyc.runtime.doctor_chart import Chart, Permission
from policyc.runtime.doctor_losses import command_name, event_name
from policyc.runtime.frame_trials import FrameTrials, ProbeResult, Watch
from policyc.runtime.procedure import Emit, Pause, Procedure, Resume, TimedOutError, ask_all
from policyc.runtime.records import StateRecord

__all__ = ["probe", "saying"]

NEEDED_COMMANDS = (ControlEvents, PauseVcpu, ReadPhysical, SetPageAccess)
NEEDED_EVENTS = (EventKind.PAUSE, EventKind.PF)

PAST_MEMORY = 1 << 52

EXAMINING = "EXAMINING"


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
    trials = FrameTrials(watch, EXAMINING)
    vcpus = chart.started
    try:
        refused = yield from _switch_on(vcpus)
        if refused:
            reason = f"page-fault events can't be switched on: {refused[0]}"
        else:
            reason = yield from trials.run(candidates)
    except TimedOutError as error:
        reason = str(error)
    yield Resume()
    yield from trials.restore(*(ControlEvents(vcpu, EventKind.PF, enable=False) for vcpu in vcpus))
    return trials.result(reason)


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


def _switch_on(vcpus: Sequence[int]) -> Procedure[list[str]]:
    """Have page faults reported by every vCPU, while all stand still; what the kernel refused, in words."""
    results = yield from ask_all(PauseVcpu(vcpu, wait=True) for vcpu in vcpus)
    refused = [str(result) for result in results if isinstance(result, Refused)]
    if not refused:
        yield Pause(frozenset(vcpus))
        results = yield from ask_all(ControlEvents(vcpu, EventKind.PF, enable=True) for vcpu in vcpus)
        refused = [str(result) for result in results if isinstance(result, Refused)]
    yield Resume()
    return refused


def saying(what: str) -> Emit:
    """Progress, for whoever watches the examination."""
    return Emit(StateRecord(EXAMINING, what))
