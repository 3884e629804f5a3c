"""Plans as plain JSON values: one function a type, addresses as hexadecimal strings, ranges half-open."""

from __future__ import annotations

from typing import TypeAlias

from policyc.plan.condition_steps import encode_condition
from policyc.plan.conditions import Condition
from policyc.plan.model import BoundPlace, EventKey, GuestFacts, Plan, Record, Rule, SourceSpan, Watch
from policyc.plan.pages import page_runs
from policyc.plan.places import Absolute, DescriptorTable, Extent, ModuleSection, Place, Section, SymbolPlace
from policyc.plan.tables import events_of, segments_of

__all__ = ["Json", "encode_core", "encode_sources"]

# Recursive, hence quoted: the name isn't bound yet where it is used.
Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"


def encode_core(plan: Plan) -> dict[str, Json]:
    """Everything that decides, with the tables that follow from it."""
    resolved = all(place.extents is not None for place in plan.places)
    segments = segments_of(plan) if resolved else {}
    return {
        "target": plan.target,
        "cpu": plan.cpu,
        "guest": _guest(plan.guest),
        "policies": [{"name": policy.name, "mode": _mode(policy.enforce)} for policy in plan.policies],
        "places": [_bound_place(place) for place in plan.places],
        "rules": [_rule(rule) for rule in plan.rules],
        "watches": [_watch(watch) for watch in plan.watches],
        "pages": [
            {
                "base": run.base.word,
                "start": hex(run.start),
                "end": hex(run.end),
                "allowed": run.allowed.rwx,
                "guarded": run.guarded,
            }
            for run in page_runs(segments, plan.rules, plan.cpu, plan.guest.code)
        ],
        "verdicts": {
            "ranges": [
                {"base": base.word, "start": hex(s.start), "end": hex(s.end), "rules": list(s.members)}
                for base in sorted(segments)
                for s in segments[base]
            ],
            "events": [
                {"event": _event(key), "rules": list(indices)} for key, indices in events_of(plan.rules).items()
            ],
        },
    }


def encode_sources(plan: Plan) -> dict[str, Json]:
    """Where the rules were written."""
    return {
        "files": [{"path": file.path, "digest": file.digest} for file in plan.sources],
        "rules": [_span(span) for span in plan.spans],
        "watches": [_span(span) for span in plan.watch_spans],
    }


def _span(span: SourceSpan) -> dict[str, Json]:
    return {"file": span.file, "start": span.start, "end": span.end, "line": span.line}


def _mode(enforce: bool) -> str:
    return "enforce" if enforce else "monitor"


def _guest(guest: GuestFacts) -> dict[str, Json]:
    return {
        "os": guest.os,
        "arch": guest.arch,
        "image_base": hex(guest.image_base),
        "landmarks": {name: hex(guest.landmarks[name]) for name in sorted(guest.landmarks)},
        "copy_routines": [_extent(extent) for extent in guest.copy_routines],
        "code": None if guest.code is None else [_extent(extent) for extent in guest.code],
        "profile": guest.profile_digest,
        "build_id": guest.build_id,
        "banner": guest.banner,
    }


def _extent(extent: Extent) -> dict[str, Json]:
    return {"base": extent.base.word, "start": hex(extent.start), "end": hex(extent.end)}


def _event(key: EventKey) -> dict[str, Json]:
    return {"word": key.word, "numbers": list(key.numbers)}


def _bound_place(bound: BoundPlace) -> dict[str, Json]:
    extents: Json = None if bound.extents is None else [_extent(extent) for extent in bound.extents]
    return {"place": _place(bound.place), "extents": extents, "inferred": bound.inferred}


def _condition(condition: Condition | None) -> Json:
    if condition is None:
        return None
    return [step if isinstance(step, str) else {"in": list(step["in"])} for step in encode_condition(condition)]


def _place(place: Place) -> dict[str, Json]:
    match place:
        case Section(image, name):
            return {"kind": "section", "image": image, "name": name}
        case SymbolPlace(image, pattern, offset, size):
            return {"kind": "symbol", "image": image, "pattern": pattern, "offset": offset, "size": size}
        case ModuleSection(module, name):
            return {"kind": "module", "module": module, "name": name}
        case DescriptorTable(base):
            return {"kind": "table", "base": base.word}
        case Absolute(extent):
            return {"kind": "absolute", "extent": _extent(extent)}


def _rule(rule: Rule) -> dict[str, Json]:
    return {
        "id": rule.id,
        "policy": rule.policy,
        "effect": {
            "kind": rule.effect.kind.name.lower(),
            "argument": hex(rule.effect.argument),
            "retries": rule.effect.retries,
        },
        "mode": _mode(rule.enforce),
        "access": rule.access.rwx,
        "places": list(rule.places),
        "event": None if rule.event is None else _event(rule.event),
        "origin": list(rule.origin),
        "when": _condition(rule.when),
        "exemptions": [
            {
                "code": list(e.code),
                "when": _condition(e.when),
                "because": e.because,
                "owner": e.owner,
                "until": e.until,
            }
            for e in rule.exemptions
        ],
        "overriding": list(rule.overriding),
        "record": _record(rule.record),
    }


def _watch(watch: Watch) -> dict[str, Json]:
    return {
        "id": watch.id,
        "policy": watch.policy,
        "mode": _mode(watch.enforce),
        "places": list(watch.places),
        "period_ms": watch.period,
        "restore": watch.restore,
        "record": _record(watch.record),
    }


def _record(record: Record) -> dict[str, Json]:
    return {
        "severity": record.severity,
        "because": record.because,
        "tags": list(record.tags),
        "limit": None if record.limit is None else {"count": record.limit.count, "per": record.limit.per},
    }
