"""New vCPUs where the kernel doesn't announce them: looked for, and stopped so that they can be given their events.

One seen late was unguarded until then. One that can't be stopped stays so, which is said at once and tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from policyc.kvmi import PauseVcpu, Refused
from policyc.runtime.arming import vcpu_count
from policyc.runtime.procedure import Emit, Procedure, Sleep, TimedOutError, ask_each, time_now
from policyc.runtime.records import StateRecord

if TYPE_CHECKING:
    from policyc.runtime.state import State

__all__ = ["VCPU_POLL", "watch_vcpus"]

VCPU_POLL = 1.0
"""Seconds between two looks."""


def watch_vcpus(state: State, known: int) -> Procedure[None]:
    """Look for vCPUs beyond those that are known, for as long as the guest is guarded."""
    running: dict[int, float] = {}
    told: set[int] = set()
    looked = yield from time_now()
    while True:
        yield Sleep(VCPU_POLL)
        if not state.is_guarding:
            return
        begun = yield from time_now()
        try:
            count = (yield from vcpu_count()) or known
        except TimedOutError:
            continue
        running.update((vcpu, looked) for vcpu in range(known, count))
        known, looked = max(known, count), begun
        if running:
            yield from _stop(state, running, told)


def _stop(state: State, running: dict[int, float], told: set[int]) -> Procedure[None]:
    """Ask vCPUs for their PAUSE events, at which they're guarded.

    Args:
        running: since when each may have been running; who takes the request goes out of it.
        told: those of which it has been recorded that they can't be stopped.
    """
    asked = sorted(running)
    results = yield from ask_each(PauseVcpu(vcpu) for vcpu in asked)
    if not state.is_guarding:
        return
    now = yield from time_now()
    stopped = [vcpu for vcpu, result in zip(asked, results, strict=True) if _is_taken(result)]
    if stopped:
        seconds = now - min(running.pop(vcpu) for vcpu in stopped)
        fact = f"{_name(stopped)} new, and ran unguarded for up to {seconds:.1f} seconds"
        yield Emit(StateRecord(state.phase.value, fact, "high"))
    for vcpu, result in zip(asked, results, strict=True):
        if vcpu in running and vcpu not in told:
            told.add(vcpu)
            state.degrade()
            why = "the kernel doesn't answer" if result is None else str(result)
            fact = f"vCPU {vcpu} is new and can't be stopped, so nothing guards it: {why}"
            yield Emit(StateRecord(state.phase.value, fact, "critical"))


def _is_taken(result: object) -> bool:
    return result is not None and not isinstance(result, Refused)


def _name(vcpus: Sequence[int]) -> str:
    return f"vCPU {vcpus[0]} is" if len(vcpus) == 1 else f"vCPUs {', '.join(map(str, vcpus))} are"
