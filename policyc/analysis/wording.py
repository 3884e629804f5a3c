"""Plans in the language's own words: effects, events, rules and where they were written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policyc.catalog import ACCESS_WORDS, CONTROL_BITS, EVENTS, MSRS, VECTORS, Access, EffectKind, Parameter
from policyc.plan.conditions import Condition, text_of
from policyc.plan.model import Effect, EventKey, Exemption, Plan, SourceSpan

__all__ = [
    "access_text",
    "count",
    "effect_text",
    "event_text",
    "exemption_text",
    "rule_place",
    "rule_text",
    "watch_place",
    "watch_text",
]

_VECTOR_WORDS = {number: word for word, number in VECTORS.items()}
_MSR_WORDS = {number: word for word, number in MSRS.items()}
_TIME_UNITS = (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))
_ACCESS_LETTERS = {bit: word for word, bit in ACCESS_WORDS.items()}
ALL_ACCESSES = Access.R | Access.W | Access.X


def effect_text(effect: Effect | None, event: EventKey | None = None) -> str:
    """The effect as a rule has it; `allow` for None. `event` says which register's bits `pin` keeps."""
    if effect is None:
        return "allow"
    match effect.kind:
        case EffectKind.FAULT:
            text = "deny by fault"
        case EffectKind.INJECT:
            text = f"inject {_VECTOR_WORDS.get(effect.argument, effect.argument)}"
        case EffectKind.PIN:
            text = f"pin {_bits_text(effect.argument, event)}"
        case kind:
            text = kind.name.lower()
    return f"retry {effect.retries} then {text}" if effect.retries else text


def event_text(key: EventKey) -> str:
    """The event as a rule has it, such as `msr lstar` or `hypercall 34/24`."""
    match EVENTS[key.word].parameter, key.numbers:
        case Parameter.MSR, (number,):
            words = [_MSR_WORDS.get(number, hex(number))]
        case Parameter.READ_WRITE, (number,):
            words = [access_text(Access(number & ALL_ACCESSES))]
        case Parameter.PAIR, (first, second):
            words = [f"{first}/{second}"]
        case Parameter.CREATED, ():
            words = ["created"]
        case _:
            # A CPUID leaf, nothing, or what no policy says and a plan may hold all the same.
            words = [hex(number) for number in key.numbers]
    return " ".join([key.word, *words])


def access_text(access: Access) -> str:
    """The accesses as a rule lists them."""
    return ", ".join(word for bit, word in _ACCESS_LETTERS.items() if access & bit)


def rule_text(plan: Plan, index: int) -> str:
    """What the rule is about, without its exceptions and what it says for the record."""
    rule = plan.rules[index]
    effect = effect_text(rule.effect, rule.event)
    # How a `deny` is carried out stands behind the sentence.
    by = effect[effect.index(" by ") :] if rule.effect.kind is EffectKind.FAULT else ""
    effect = effect.removesuffix(by)
    origin = f" from {_places(plan, rule.origin)}" if rule.origin else ""
    when = _when(plan, rule.when)
    if rule.event is not None:
        return f"on {event_text(rule.event)}{when} {effect}{by}{origin}"
    preposition = "to" if rule.access & Access.W else "of"
    return f"{effect} {access_text(rule.access)} {preposition} {_places(plan, rule.places)}{by}{origin}{when}"


def exemption_text(plan: Plan, exemption: Exemption) -> str:
    """The `except` clause without its reason."""
    origin = f" from {_places(plan, exemption.code)}" if exemption.code else ""
    return f"except{origin}{_when(plan, exemption.when)}"


def watch_text(plan: Plan, index: int) -> str:
    """What the watch looks at, and how often."""
    watch = plan.watches[index]
    unit, size = next((unit, size) for unit, size in _TIME_UNITS if watch.period % size == 0)
    restore = " restore" if watch.restore else ""
    return f"watch {_places(plan, watch.places)} every {watch.period // size}{unit}{restore}"


def rule_place(plan: Plan, index: int) -> str:
    """The file and line that the rule was written in."""
    return _line(plan, plan.spans[index])


def watch_place(plan: Plan, index: int) -> str:
    """The file and line that the watch was written in."""
    return _line(plan, plan.watch_spans[index])


def count(number: int, noun: str, nouns: str | None = None) -> str:
    """`1 rule`, `2 rules`; `nouns` where an `s` isn't enough."""
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"


def _line(plan: Plan, span: SourceSpan) -> str:
    return f"{plan.sources[span.file].path}:{span.line}"


def _when(plan: Plan, condition: Condition | None) -> str:
    """The clause, with a blank before it."""
    return "" if condition is None else f" when {text_of(condition, lambda index: str(plan.places[index].place))}"


def _places(plan: Plan, indices: Iterable[int]) -> str:
    return ", ".join(str(plan.places[index].place) for index in indices)


def _bits_text(mask: int, event: EventKey | None) -> str:
    bits = _bits_of(event)
    words = [word for word, bit in bits.items() if mask & bit]
    rest = mask & ~sum(bits.values())
    return " | ".join([*words, hex(rest)] if rest or not words else words)


def _bits_of(event: EventKey | None) -> Mapping[str, int]:
    """The named bits of the register that the event is about."""
    if event is None:
        return {}
    word = event.word
    if word == "msr" and len(event.numbers) == 1:
        word = _MSR_WORDS.get(event.numbers[0], word)
    return CONTROL_BITS.get(word, {})
