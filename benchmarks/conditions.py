"""Microseconds that a condition of a rule takes on a real event, beside the same test written by hand in Python.

Each condition is compiled from policy text, bound to a guest and evaluated as the runtime does: on an event as it came
from the wire, from which only the fields that the condition names are decoded, anew for each event. What counts is the
ratio of the two within a round.

    python benchmarks/conditions.py [--quick | --least]
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from benchmarks.spread import spread
from policyc.addresses import Gva
from policyc.kvmi import (
    V7,
    CrData,
    Event,
    EventData,
    EventKind,
    MsrData,
    PageAccess,
    PfData,
    Registers,
)
from policyc.plan.accesses import MemoryAccess, NoticedEvent, Origin
from policyc.plan.places import Base
from policyc.runtime.bound import BoundPlan
from policyc.runtime.event_fields import EventFields
from policyc.runtime.event_keys import key_of
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, ScriptedKernel, compile_plan, gpa_of

AMOUNTS = {"full": (30000, 15), "quick": (3000, 5), "least": (10, 1)}
"""Calls of a round, and rounds."""

TEXT = range(IMAGE_BASE + SLIDE, IMAGE_BASE + SLIDE + 0x2345)
SMEP_AND_SMAP = 0x300000
WP = 0x10000


@dataclass(frozen=True)
class Case:
    """A rule with a condition, an event, and the condition written by hand."""

    policy: str
    kind: EventKind
    data: EventData
    by_hand: Callable[[Event], bool]


def _cleared(event: Event) -> bool:
    data = event.data
    assert isinstance(data, CrData)
    return bool(data.old & ~data.new & SMEP_AND_SMAP)


def _set_before(event: Event) -> bool:
    data = event.data
    assert isinstance(data, MsrData)
    return data.old != 0


def _from_text(event: Event) -> bool:
    return event.rip in TEXT and event.sregs.ss.dpl == 0


def _long(event: Event) -> bool:
    regs, data = event.regs, event.data
    assert isinstance(data, CrData)
    return not data.new & WP and event.mode == 8 and (regs.rax in range(4, 9) or regs.rdi == 7 or event.rip in TEXT)


FAULT = PfData(Gva(IMAGE_BASE + SLIDE + 0x6104), gpa_of(IMAGE_BASE + 0x6104), PageAccess.W)
CASES = {
    "bits": Case("on cr4 when clears(smep | smap) deny", EventKind.CR, CrData(4, 0x3006F0, 0x0006F0), _cleared),
    "number": Case("on msr lstar when old != 0 deny", EventKind.MSR, MsrData(0xC0000082, 1, 2), _set_before),
    "place": Case(
        "deny write to kernel:guarded_object when rip in kernel .text and cpl == 0", EventKind.PF, FAULT, _from_text
    ),
    "long": Case(
        "on cr0 when not new & wp and bits == 64 and (rax >= 4 and rax < 9 or rdi == 7 or rip in kernel .text) deny",
        EventKind.CR,
        CrData(0, 0x80050033, 0x80040033),
        _long,
    ),
}


def armed(policy: str) -> Conversation:
    """The scripted guest under the policy."""
    talk = Conversation(compile_plan(policy), ScriptedKernel(V7))
    talk.connect()
    if not talk.state.is_guarding:
        raise SystemExit(f"not armed: {talk.state.outcome}")
    return talk


def received(talk: Conversation, case: Case) -> Event:
    """The case's event, as the tool receives it."""
    kernel = talk.peer.kernel
    state = replace(talk.peer.vcpu_state(0, 0), regs=Registers(rip=TEXT.start + 0x1000, rax=5))
    kernel.send_event(case.kind, 0, state, case.data)
    talk.tool.receive_data(b"".join(kernel.data_to_send()))
    event = talk.tool.next_event()
    if not isinstance(event, Event):
        raise SystemExit("the event didn't come through")
    return event


def per_call(call: Callable[[], object], calls: int) -> float:
    """Seconds for one call."""
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def compiled(bound: BoundPlan, event: Event) -> Callable[[], bool | None]:
    """The condition as the runtime evaluates it."""
    when = bound.table.guards[0].when
    assert when is not None

    def evaluate() -> bool | None:
        fields = EventFields(event)
        if event.kind is EventKind.PF:
            written = bound.table.rules[0].access
            return when(MemoryAccess(written, Base.PHYSICAL, event.gpa, 8, Origin(event.rip), fields=fields).field)
        return when(NoticedEvent(key_of(event), Origin(event.rip), fields).field)

    return evaluate


def main() -> None:
    calls, rounds = AMOUNTS[parser_for(__doc__).parse_args().amount]
    summary = {}
    for name, case in CASES.items():
        talk = armed(case.policy)
        event = received(talk, case)
        evaluate = compiled(talk.state.bound, event)
        by_hand = functools.partial(case.by_hand, event)
        if not (evaluate() is by_hand() is True):
            raise SystemExit(f"`{name}` isn't decided as by hand")
        pairs = [(per_call(evaluate, calls), per_call(by_hand, calls)) for _ in range(rounds)]
        ratios = [ours / hand for ours, hand in pairs]
        print(f"{name}: {case.policy}")
        summary[name] = {
            "microseconds": round(min(ours for ours, _ in pairs) * 1e6, 2),
            "vs_by_hand": spread(ratios, digits=2),
        }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
