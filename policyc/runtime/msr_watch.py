"""MSRs compared with what they were, on hosts whose kernel reports no write to them.

There nothing can be stopped: KVMI has no command that writes an MSR. What a rule says is recorded, with the value
before and after; who wrote it isn't known, so every rule about the MSR counts unless its condition rules it out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from policyc.kvmi import ErrorCode, Event, EventMsrs
from policyc.plan.accesses import NoticedEvent, Origin
from policyc.plan.model import EventKey
from policyc.plan.verdict_table import VerdictTable
from policyc.plan.verdicts import Verdict, decide
from policyc.runtime.arming import vcpu_count
from policyc.runtime.bound import BoundPlan
from policyc.runtime.msr_values import read_msrs
from policyc.runtime.procedure import Emit, Procedure, Sleep, TimedOutError
from policyc.runtime.records import StateRecord

__all__ = ["LOOK_PAUSE", "MsrWatch"]

LOOK_PAUSE = 1.0
"""Seconds between two looks at all vCPUs."""

IN_EVENTS: Mapping[int, str] = {
    0x174: "sysenter_cs",
    0x175: "sysenter_esp",
    0x176: "sysenter_eip",
    0x277: "pat",
    0xC000_0080: "efer",
    0xC000_0081: "star",
    0xC000_0082: "lstar",
    0xC000_0083: "cstar",
    0xC000_0102: "shadow_gs",
}
"""The MSRs that each event carries, and what its block calls them."""


class MsrWatch:
    """What the watched MSRs of each vCPU were when they were last seen.

    Args:
        measure: what (vCPU, MSR) held while the guest stood still to be armed; what isn't in it is first seen later.
        state: how the runtime's state is called now, for records.
    """

    def __init__(
        self,
        bound: BoundPlan,
        msrs: Collection[int],
        measure: Mapping[tuple[int, int], int],
        state: Callable[[], str],
    ) -> None:
        self._table: VerdictTable = bound.table
        self._msrs = tuple(sorted(msrs))
        self._carried = tuple((msr, IN_EVENTS[msr]) for msr in self._msrs if msr in IN_EVENTS)
        self._state = state
        self._last = dict(measure)
        self._unreadable: set[int] = set()

    def look(self, event: Event) -> list[StateRecord]:
        """Compare what an event carries; usually nothing has changed."""
        if not self._carried:
            return []
        block: EventMsrs = event.msrs
        return self._compare(event.vcpu, [(msr, getattr(block, name)) for msr, name in self._carried])

    def run(self, wanted: Callable[[], bool]) -> Procedure[None]:
        """Look at every vCPU once a second, for as long as `wanted` says."""
        while wanted():
            for record in (yield from self._look_at_all()):
                yield Emit(record)
            yield Sleep(LOOK_PAUSE)

    def _look_at_all(self) -> Procedure[list[StateRecord]]:
        try:
            count = (yield from vcpu_count()) or 0
        except TimedOutError:
            return []
        found: list[StateRecord] = []
        for vcpu, msr, value in (yield from read_msrs(range(count), self._msrs)):
            if isinstance(value, int):
                found += self._compare(vcpu, [(msr, value)])
            elif value.errno == ErrorCode.EINVAL and msr not in self._unreadable:
                self._unreadable.add(msr)
                found.append(
                    StateRecord(self._state(), f"MSR {msr:#x} can't be read, so nothing guards it", "critical")
                )
        return found

    def _compare(self, vcpu: int, values: Sequence[tuple[int, int]]) -> list[StateRecord]:
        found: list[StateRecord] = []
        for msr, new in values:
            old = self._last.get((vcpu, msr), new)
            self._last[vcpu, msr] = new
            if old != new:
                found.extend(self._judge(vcpu, msr, old, new))
        return found

    def _judge(self, vcpu: int, msr: int, old: int, new: int) -> list[StateRecord]:
        fields = {"old": old, "new": new, "vcpu": vcpu}
        verdict = decide(self._table, NoticedEvent(EventKey("msr", (msr,)), UNKNOWN, partial(_field, fields)))
        if not isinstance(verdict, Verdict) or verdict.would is None:
            return []
        rules = [self._table.rules[index] for index in verdict.rules]
        fact = f"MSR {msr:#x} of vCPU {vcpu} was changed, and this kernel reports no write to it"
        details = {"msr": hex(msr), "old": hex(old), "new": hex(new), "rules": [rule.id for rule in rules]}
        return [StateRecord(self._state(), fact, "critical", details)]


UNKNOWN = Origin(rip=0, return_address=0, rip_genuine=False, return_genuine=False)
"""Nobody saw who wrote it."""


def _field(fields: Mapping[str, int], word: str) -> int | None:
    return fields.get(word)
