"""What the runtime writes down: one value a happening, turned into plain data when the vCPU has long gone on.

Building the value is cheap and formats nothing; `to_json` is called after the replies have been sent. The document
layout is described by `policyc/runtime/schema/audit-1.json` and is stable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from policyc.addresses import GVA_UNKNOWN
from policyc.catalog import VECTORS, EffectKind
from policyc.kvmi import (
    BreakpointData,
    CpuidData,
    CpuMode,
    Descriptor,
    DescriptorData,
    Event,
    EventKind,
    XsetbvData,
)
from policyc.plan.model import Effect, Plan
from policyc.plan.verdicts import Verdict
from policyc.runtime.outcome import Delivered

__all__ = ["MAX_RULES", "JsonObject", "Record", "StateRecord", "VerdictRecord", "delivered_json", "effect_text"]

JsonObject = dict[str, object]

MAX_RULES = 32
"""Rules that each list of a record names; of those on top, it has the number."""

_VECTOR_WORDS = {number: word for word, number in VECTORS.items()}


@dataclass(frozen=True, slots=True)
class Record:
    """Something worth writing down."""

    def to_json(self, plan: Plan) -> JsonObject:
        """The record as plain data, without time and sequence number, which the writer adds."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StateRecord(Record):
    """The runtime's state changed, or something about it has to be said."""

    state: str
    fact: str
    severity: str = "info"
    details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self, plan: Plan) -> JsonObject:
        """`kind` is "state"."""
        return {
            "kind": "state",
            "state": self.state,
            "severity": self.severity,
            "fact": self.fact,
            **self.details,
        }


@dataclass(frozen=True, slots=True)
class VerdictRecord(Record):
    """An event that rules of the plan had something to say about.

    Attributes:
        event: as received; decoded here, not before.
        done: what was done on the wire, in the catalogue's words.
        size: bytes accessed, where the instruction was decoded.
        instruction: its text, where it was decoded.
        thinned: records that began with the same rule and were left out since the last one, as `at most` asks.
        retried: how often the same event was answered RETRY, as `retry` asks.
        delivered: what the guest was given, where an exception was asked for.
    """

    event: Event
    verdict: Verdict
    done: str
    size: int | None = None
    instruction: str | None = None
    thinned: int = 0
    retried: int = 0
    delivered: Delivered | None = None

    def to_json(self, plan: Plan) -> JsonObject:
        """`kind` is "verdict"; `rules` has the winner first, and no list more than `MAX_RULES`."""
        worst = max((plan.rules[index].record.severity for index in self.verdict.rules), key=_weight, default="info")
        record: JsonObject = {
            "kind": "verdict",
            "severity": worst,
            "event": self.event.kind.value,
        }
        if self.event.needs_reply:
            record.update(vcpu=self.event.vcpu, rip=hex(self.event.rip), cr3=hex(self.event.sregs.cr3))
        record.update(_DETAILS.get(self.event.kind, _no_details)(self.event))
        if self.size is not None:
            record["size"] = self.size
        if self.instruction is not None:
            record["instruction"] = self.instruction
        record.update(
            effect=effect_text(self.verdict.effect),
            would=effect_text(self.verdict.would),
            done=self.done,
            rules=[],
        )
        if self.retried:
            record["retried"] = self.retried
        if self.delivered is not None:
            record.update(delivered_json(self.delivered))
        record.update(_rules(plan, "rules", self.verdict.rules))
        if self.thinned:
            record["thinned"] = self.thinned
        record.update(_rules(plan, "set_aside", self.verdict.set_aside))
        record.update(_rules(plan, "exempted", self.verdict.exempted))
        return record


def delivered_json(delivered: Delivered) -> JsonObject:
    """What was delivered, under the name that all records have for it."""
    return {"delivered": {"vector": delivered.vector, "error_code": delivered.error_code}}


def effect_text(effect: Effect | None) -> str:
    """The effect in the language's words; `allow` where nothing stops the guest."""
    if effect is None:
        return "allow"
    match effect.kind:
        case EffectKind.FAULT:
            text = "deny by fault"
        case EffectKind.INJECT:
            text = f"inject {_VECTOR_WORDS[effect.argument]}"
        case EffectKind.PIN:
            text = f"pin {effect.argument:#x}"
        case kind:
            text = kind.name.lower()
    return f"retry {effect.retries} then {text}" if effect.retries else text


def _weight(severity: str) -> int:
    return ("info", "low", "medium", "high", "critical").index(severity)


def _rules(plan: Plan, name: str, indices: Sequence[int]) -> JsonObject:
    """One list of rules under its name, and beside it how many it leaves out; nothing for no rules."""
    if not indices:
        return {}
    described: JsonObject = {name: [_rule(plan, index) for index in indices[:MAX_RULES]]}
    if len(indices) > MAX_RULES:
        described[f"more_{name}"] = len(indices) - MAX_RULES
    return described


def _rule(plan: Plan, index: int) -> JsonObject:
    rule, span = plan.rules[index], plan.spans[index]
    described: JsonObject = {
        "policy": plan.policies[rule.policy].name,
        "rule": rule.id,
        "mode": "enforce" if rule.enforce else "monitor",
        "severity": rule.record.severity,
        "file": plan.sources[span.file].path,
        "line": span.line,
    }
    if rule.record.because is not None:
        described["because"] = rule.record.because
    if rule.record.tags:
        described["tags"] = list(rule.record.tags)
    return described


def _page_fault(event: Event) -> JsonObject:
    access = {1: "read", 2: "write", 4: "execute"}.get(int(event.access), str(int(event.access)))
    gva = None if event.gva == GVA_UNKNOWN else hex(event.gva)
    return {"access": access, "gpa": hex(event.gpa), "gva": gva}


def _old_new(event: Event) -> JsonObject:
    data = event.data
    found: JsonObject = {}
    for name in ("cr", "msr", "old", "new"):
        value = getattr(data, name, None)
        if value is not None:
            found[name] = hex(value) if name != "cr" else value
    return found


def _hypercall(event: Event) -> JsonObject:
    """The registers in which callers pass data, as the kernel's documentation says of each mode."""
    regs = event.regs
    if event.mode is CpuMode.LONG:
        return {"arguments": {name: hex(getattr(regs, name)) for name in ("rdx", "r10", "r8", "r9")}}
    low = {f"e{name}": getattr(regs, f"r{name}") & 0xFFFF_FFFF for name in ("dx", "si", "di", "bp")}
    return {"arguments": {name: hex(value) for name, value in low.items()}}


def _descriptor(event: Event) -> JsonObject:
    data = event.data
    assert isinstance(data, DescriptorData)
    return {"access": "write" if data.write else "read", "table": Descriptor(data.descriptor).name.lower()}


def _breakpoint(event: Event) -> JsonObject:
    data = event.data
    assert isinstance(data, BreakpointData)
    return {} if int(data.gpa) == GVA_UNKNOWN else {"gpa": hex(data.gpa)}


def _xsetbv(event: Event) -> JsonObject:
    data = event.data
    # v7 says no more than that it happened.
    return {"xcr": data.xcr, **_old_new(event)} if isinstance(data, XsetbvData) else {}


def _cpuid(event: Event) -> JsonObject:
    data = event.data
    assert isinstance(data, CpuidData)
    return {"leaf": hex(data.function), "subleaf": hex(data.index)}


def _no_details(event: Event) -> JsonObject:
    return {}


_DETAILS: Mapping[EventKind, Callable[[Event], JsonObject]] = {
    EventKind.PF: _page_fault,
    EventKind.CR: _old_new,
    EventKind.MSR: _old_new,
    EventKind.XSETBV: _xsetbv,
    EventKind.HYPERCALL: _hypercall,
    EventKind.DESCRIPTOR: _descriptor,
    EventKind.BREAKPOINT: _breakpoint,
    EventKind.CPUID: _cpuid,
}
"""What a record says of one kind of event besides what every event has."""
