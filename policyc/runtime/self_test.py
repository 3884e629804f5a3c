"""After arming: evidence that this kernel tells of writes to protected frames, half of which some kernels miss.

The frames are those in which the guest's kernel counts, and none that the plan guards. What was seen is recorded; where
a write passed in silence, the state is DEGRADED, and guarded bytes are as safe as the next look at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policyc.addresses import Gfn
from policyc.catalog import Access
from policyc.guest.errors import ProfileError, WalkLimitError
from policyc.guest.linux_kernel import KernelFound
from policyc.plan.model import Plan
from policyc.runtime.bound import ALL_RIGHTS
from policyc.runtime.doctor_candidates import frames_of_profile
from policyc.runtime.frame_trials import FrameTrials, ProbeResult, ProbeVerdict, Watch
from policyc.runtime.locate import profile_of
from policyc.runtime.procedure import Emit, Procedure, Sleep, TimedOutError
from policyc.runtime.records import StateRecord

__all__ = ["self_test"]

PAST_MEMORY = 1 << 52

START_PAUSE = 1.0
"""Seconds before the first look: in a kernel that has just come up, counters still stand at zero."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verdict comes to: a sentence, its weight, and whether the guest is guarded as the plan says."""

    fact: str
    severity: str
    degrades: bool = False


OUTCOMES: Mapping[ProbeVerdict, Outcome] = {
    ProbeVerdict.REPORTED: Outcome("writes to protected frames are reported", "info"),
    ProbeVerdict.PARTLY: Outcome(
        "writes to protected frames are reported; on frames whose number has bit 1 set nobody wrote", "info"
    ),
    ProbeVerdict.DEAF: Outcome(
        "this kernel misses writes to protected frames whose number has bit 1 set: half of all frames aren't guarded "
        "against writes",
        "critical",
        degrades=True,
    ),
    ProbeVerdict.SILENT: Outcome("this kernel misses writes to protected frames", "critical", degrades=True),
    ProbeVerdict.UNPROVEN: Outcome("whether writes to protected frames are reported wasn't seen", "low"),
}


def self_test(
    plan: Plan,
    allowed: Callable[[Gfn], Access],
    found: KernelFound,
    memory_end: int | None,
    watch: Watch,
    degrade: Callable[[], str],
    state: Callable[[], str],
) -> Procedure[None]:
    """Take the evidence and say what it was.

    Args:
        allowed: what the plan in force lets a frame be accessed for.
        memory_end: one past the last byte of guest memory, where the VMM said it.
        watch: kept up with the writes that are reported.
        degrade: called where the guest isn't guarded as the plan says; gives the state's name, as `state` does.
    """
    yield Sleep(START_PAUSE)
    result = yield from _evidence(plan, allowed, found, memory_end, watch)
    outcome = OUTCOMES[result.verdict]
    details = {
        "frames": [f"{trial.gfn:#x}: {trial.outcome.value}" for trial in result.trials],
        **({"reason": result.reason} if result.reason is not None else {}),
        **({"unrestored": list(result.unrestored)} if result.unrestored else {}),
    }
    name = degrade() if outcome.degrades or result.unrestored else state()
    yield Emit(StateRecord(name, f"self-test: {outcome.fact}", outcome.severity, details))


def _evidence(
    plan: Plan, allowed: Callable[[Gfn], Access], found: KernelFound, memory_end: int | None, watch: Watch
) -> Procedure[ProbeResult]:
    try:
        frames = yield from frames_of_profile(profile_of(plan), found, memory_end or PAST_MEMORY)
    except (ProfileError, WalkLimitError, TimedOutError) as error:
        return ProbeResult(reason=str(error))
    candidates = [gfn for gfn in frames if allowed(gfn) == ALL_RIGHTS]
    if not candidates:
        return ProbeResult(reason="no frame of kernel data was found in which nothing but counters change")
    trials = FrameTrials(watch, allowed=allowed)
    return trials.result((yield from trials.run(candidates)))
