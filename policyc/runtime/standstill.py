"""Every vCPU but one stands still while that one executes an instruction on pages that are open.

A vCPU that stands at an event sends no PAUSE event before that is answered: it counts as it stands. One that hasn't
started is given no PAUSE: each would be waiting for it when it does. Whoever is late still sends the PAUSE event that
was asked for.
"""

from __future__ import annotations

from collections.abc import Collection

from policyc.addresses import Gva
from policyc.kvmi import ErrorCode, PauseVcpu, Refused, TranslateGva
from policyc.runtime.arming import vcpu_count
from policyc.runtime.procedure import Pause, Procedure, ask_all, stop_at_events

__all__ = ["stop_others"]


def stop_others(vcpu: int) -> Procedure[bool]:
    """Stop every vCPU but this one, which stands at an event; False where that can't be had.

    Raises:
        TimedOutError: one of them doesn't come to stand in time.
    """
    count = yield from vcpu_count()
    if count is None:
        return False
    others = frozenset(range(count)) - {vcpu}
    standing = yield from stop_at_events(others)
    started = yield from _started(others - standing)
    results = yield from ask_all(PauseVcpu(other) for other in sorted(started))
    if any(isinstance(result, Refused) for result in results):
        return False
    yield Pause(standing | started)
    # Another one may have been started while these still ran.
    return not (yield from _started(others - standing - started))


def _started(vcpus: Collection[int]) -> Procedure[frozenset[int]]:
    """Those of the vCPUs that have been started: the others refuse every command."""
    asked = sorted(vcpus)
    results = yield from ask_all(TranslateGva(vcpu, Gva(0)) for vcpu in asked)
    return frozenset(
        vcpu
        for vcpu, result in zip(asked, results, strict=True)
        if not (isinstance(result, Refused) and result.errno == ErrorCode.EAGAIN)
    )
