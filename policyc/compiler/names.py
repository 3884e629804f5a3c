"""The names of rules and watches without label: digests of what they say, in words that no layout changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from policyc.compiler.resolved import ResolvedCondition, ResolvedPlace, ResolvedRule, ResolvedWatch
from policyc.plan.conditions import text_of
from policyc.plan.model import Record

__all__ = ["name_of_rule", "name_of_watch"]

ID_DIGITS = 12
"""Hexadecimal digits of a digest that names a rule."""


def name_of_rule(rule: ResolvedRule) -> str:
    """The label, else a name that stays the same for as long as the rule means the same, wherever it stands."""
    if rule.label is not None:
        return rule.label
    meaning = {
        "effect": [rule.effect.kind.name, rule.effect.argument, rule.effect.retries],
        "access": rule.access.rwx,
        "places": _texts(rule.places),
        "event": None if rule.event is None else [rule.event.key.word, *rule.event.key.numbers],
        "origin": _texts(rule.origin),
        "when": _condition(rule.when),
        "exemptions": sorted(
            [_texts(e.code), _condition(e.when), e.because, e.owner or "", str(e.until or "")] for e in rule.exemptions
        ),
        "overriding": list(rule.overriding),
        "enforce": rule.enforce,
        "record": _record(rule.record),
    }
    return f"rule-{_digest(meaning)}"


def name_of_watch(watch: ResolvedWatch) -> str:
    """The label, else a digest as rules have one."""
    if watch.label is not None:
        return watch.label
    meaning = {
        "places": _texts(watch.places),
        "period": watch.period,
        "restore": watch.restore,
        "enforce": watch.enforce,
        "record": _record(watch.record),
    }
    return f"watch-{_digest(meaning)}"


def _texts(places: Iterable[ResolvedPlace]) -> list[str]:
    return sorted({str(place.place) for place in places})


def _condition(when: ResolvedCondition | None) -> str:
    return "" if when is None else text_of(when.condition, lambda number: str(when.places[number].place))


def _record(record: Record) -> list[object]:
    limit = [] if record.limit is None else [record.limit.count, record.limit.per]
    return [record.severity, record.because or "", list(record.tags), *limit]


def _digest(meaning: object) -> str:
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
