"""What the enforcement records, one line each for people who watch a terminal.

The audit log has everything; a line has what one wants to see at once. Guests choose some of the words, so every line
is made safe to print.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

from policyc.diagnostics import printable

__all__ = ["record_line"]

STYLES: Mapping[str, tuple[str, bool | None]] = MappingProxyType(
    {
        "low": ("cyan", None),
        "medium": ("yellow", None),
        "high": ("red", None),
        "critical": ("red", True),
    }
)
"""The colour of a line's first word, and whether it is bold, by severity; what isn't here isn't coloured."""

WIDTH = len("critical")


def record_line(record: Mapping[str, object]) -> str:
    """One record, as plain data, as one line; coloured, so print it through click."""
    severity = str(record.get("severity", "info"))
    text = LINES.get(str(record.get("kind")), _unknown)(record)
    color, bold = STYLES.get(severity, (None, None))
    return click.style(printable(severity).ljust(WIDTH), fg=color, bold=bold, reset=color is not None) + (
        f"  {printable(text)}"
    )


def _state(record: Mapping[str, object]) -> str:
    known = {"kind", "severity", "state", "fact"}
    details = ", ".join(
        f"{name} {_value(value)}" for name, value in record.items() if name not in known and value not in EMPTY
    )
    return f"{record.get('state')}: {record.get('fact')}" + (f" ({details})" if details else "")


def _verdict(record: Mapping[str, object]) -> str:
    # An access to memory says what it did; that it came as a page fault is KVMI's affair.
    what = [str(record.get("access", record.get("event")))]
    what += [
        # A register's number is named as the event is.
        _value(value) if name == record.get("event") else f"{name} {_value(value)}"
        for name, value in record.items()
        if name not in SAID_ELSEWHERE
    ]
    # An event of the whole machine has no vCPU.
    if "vcpu" in record:
        what.append(f"at rip {record.get('rip')} on vCPU {record['vcpu']}")
    effect, would = record.get("effect"), record.get("would")
    outcome = f"{effect}" if would == effect else f"{effect} (would be {would})"
    rules = record.get("rules")
    winner = f" by {_rule(rules[0])}" if isinstance(rules, list) and rules else ""
    return f"{' '.join(what)}: {outcome}{winner}: {record.get('done')}"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(_value, value))
    return "unknown" if value is None else str(value)


def _rule(rule: object) -> str:
    if not isinstance(rule, Mapping):
        return str(rule)
    return f"{rule.get('policy')}: {rule.get('rule')} ({rule.get('file')}:{rule.get('line')})"


def _dropped(record: Mapping[str, object]) -> str:
    return f"{record.get('records')} records aren't shown: they came faster than they could be printed"


def _unknown(record: Mapping[str, object]) -> str:
    return " ".join(f"{name} {_value(value)}" for name, value in record.items())


SAID_ELSEWHERE = frozenset(
    (
        "kind",
        "severity",
        "event",
        "access",
        "vcpu",
        "rip",
        "cr3",
        "effect",
        "would",
        "done",
        "rules",
        "set_aside",
        "exempted",
    )
)

EMPTY: tuple[object, ...] = ([], {})

LINES = MappingProxyType({"state": _state, "verdict": _verdict, "dropped": _dropped})
"""How each kind of record is said."""
