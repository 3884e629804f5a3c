"""Events as written to events of the catalogue: the word looked up, what follows it read as its parameter says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policyc.catalog import (
    DELIVERED_HYPERCALL,
    EVENTS,
    MSR_RANGES,
    MSRS,
    NOT_EVENTS,
    Access,
    EventSpec,
    Parameter,
)
from policyc.compiler.resolved import ResolvedEvent
from policyc.diagnostics import Diagnostic, did_you_mean
from policyc.lang import ast
from policyc.plan.model import EventKey

__all__ = ["resolve_event"]

Argument = ast.Word | ast.Number | ast.Pair
Outcome = tuple[tuple[int, ...] | None, list[Diagnostic]]

_DIRECTIONS = {"read": int(Access.R), "write": int(Access.W)}
_MAX_LEAF = 0xFFFF_FFFF


def resolve_event(pattern: ast.EventPattern) -> tuple[ResolvedEvent | None, list[Diagnostic]]:
    """The event, or None with the reasons. Warnings come with an event."""
    word = pattern.name.text
    spec = EVENTS.get(word)
    if spec is None:
        return None, [_unknown(pattern.name)]
    numbers, found = _READERS[spec.parameter](spec, pattern)
    if numbers is None:
        return None, found
    return ResolvedEvent(EventKey(word, numbers), spec.column, pattern.span), found


def _unknown(name: ast.Word) -> Diagnostic:
    if name.text in NOT_EVENTS:
        return Diagnostic(
            "P210", f"`{name.text}` is no event that a rule can be about", name.span, NOT_EVENTS[name.text]
        )
    near = did_you_mean(name.text, EVENTS)
    help = f"did you mean `{near}`?" if near else f"the events are {', '.join(f'`{word}`' for word in EVENTS)}"
    return Diagnostic("P210", f"there is no event `{name.text}`", name.span, help)


def _nothing(spec: EventSpec, pattern: ast.EventPattern) -> Outcome:
    if not pattern.arguments:
        return (), []
    extra = pattern.arguments[0]
    return None, [Diagnostic("P301", f"`{spec.word}` is followed by nothing", extra.span, f"write `on {spec.word}`")]


def _one(spec: EventSpec, pattern: ast.EventPattern, example: str) -> Argument | Diagnostic:
    if len(pattern.arguments) == 1:
        return pattern.arguments[0]
    fact = f"`{spec.word}` is followed by {spec.parameter.value}"
    return Diagnostic("P301", fact, pattern.span, f"write `on {spec.word} {example} …`")


def _msr(spec: EventSpec, pattern: ast.EventPattern) -> Outcome:
    argument = _one(spec, pattern, "lstar")
    if isinstance(argument, Diagnostic):
        return None, [argument]
    if isinstance(argument, ast.Number):
        number = argument.value
    elif isinstance(argument, ast.Word) and argument.text in MSRS:
        number = MSRS[argument.text]
    else:
        near = did_you_mean(argument.span.text, MSRS)
        help = f"did you mean `{near}`?" if near else "give its name, such as `lstar`, or its number"
        return None, [Diagnostic("P209", f"there is no MSR called `{argument.span.text}`", argument.span, help)]
    if not any(number in span for spans in MSR_RANGES.values() for span in spans):
        fact = f"no kernel can intercept writes to the MSR {number:#x}"
        return None, [
            Diagnostic("P303", fact, argument.span, "MSRs up to 0x1fff and from 0xc0000000 to 0xc0001fff can be")
        ]
    return (number,), []


def _read_write(spec: EventSpec, pattern: ast.EventPattern) -> Outcome:
    argument = _one(spec, pattern, "write")
    if isinstance(argument, Diagnostic):
        return None, [argument]
    if isinstance(argument, ast.Word) and argument.text in _DIRECTIONS:
        return (_DIRECTIONS[argument.text],), []
    fact = f"`{spec.word}` is followed by `read` or `write`, not by `{argument.span.text}`"
    return None, [Diagnostic("P301", fact, argument.span, f"write `on {spec.word} write …`")]


def _pair(spec: EventSpec, pattern: ast.EventPattern) -> Outcome:
    delivered = "/".join(map(str, DELIVERED_HYPERCALL))
    argument = _one(spec, pattern, delivered)
    if isinstance(argument, Diagnostic):
        return None, [argument]
    if not isinstance(argument, ast.Pair):
        fact = f"`{spec.word}` is followed by {spec.parameter.value}"
        return None, [Diagnostic("P301", fact, argument.span, f"write `on {spec.word} {delivered} …`")]
    pair = (argument.first.value, argument.second.value)
    if pair == DELIVERED_HYPERCALL:
        return pair, []
    fact = f"the hypercall {pair[0]}/{pair[1]} never reaches the tool, so this rule can never match"
    return pair, [Diagnostic("P404", fact, argument.span, f"the kernel delivers {delivered} alone")]


def _leaf(spec: EventSpec, pattern: ast.EventPattern) -> Outcome:
    argument = _one(spec, pattern, "0x40000000")
    if isinstance(argument, Diagnostic):
        return None, [argument]
    if isinstance(argument, ast.Number) and argument.value <= _MAX_LEAF:
        return (argument.value,), []
    return None, [Diagnostic("P301", f"`{argument.span.text}` is no CPUID leaf", argument.span, "a leaf has 32 bits")]


def _created(spec: EventSpec, pattern: ast.EventPattern) -> Outcome:
    argument = _one(spec, pattern, "created")
    if isinstance(argument, Diagnostic):
        return None, [argument]
    if isinstance(argument, ast.Word) and argument.text == "created":
        return (), []
    fact = f"`{spec.word}` is followed by `created`, not by `{argument.span.text}`"
    return None, [Diagnostic("P301", fact, argument.span, f"write `on {spec.word} created …`")]


_READERS: Mapping[Parameter, Callable[[EventSpec, ast.EventPattern], Outcome]] = {
    Parameter.NONE: _nothing,
    Parameter.MSR: _msr,
    Parameter.READ_WRITE: _read_write,
    Parameter.PAIR: _pair,
    Parameter.LEAF: _leaf,
    Parameter.CREATED: _created,
}
