"""Every word of the policy language with what it is and what it means: what references and editors are made from.

Nothing is said here that a table doesn't say: the words are those of the catalogue, the grammar, the profile's sections
and the compiler. One word may be several things: `cr4` is an event, and a field in conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from policyc.analysis.keywords import FUNCTIONS, KEYWORDS
from policyc.catalog import (
    ACCESS_WORDS,
    CONTROL_BITS,
    EFFECTS,
    EVENTS,
    FIELDS,
    LEGALITY,
    MECHANISM_WORDS,
    MODES,
    MSR_RANGES,
    MSRS,
    NOT_EVENTS,
    RATE_SECONDS,
    RETRYABLE,
    SEVERITIES,
    VECTORS,
    Column,
    EffectKind,
    FieldSpec,
    Mechanism,
    Parameter,
    Unknown,
    carries,
    column_of_access,
)
from policyc.compiler.places import TABLE_WORDS
from policyc.compiler.resolve import PLATFORMS
from policyc.guest.linux_image import SECTIONS
from policyc.guest.profile import KERNEL

__all__ = [
    "PHRASES",
    "PINNABLE",
    "RETRY_PHRASE",
    "Fact",
    "Kind",
    "Word",
    "effects_on",
    "legal_on",
    "mechanism_name",
    "mechanism_of",
    "vocabulary",
    "words_of",
]

Fact: TypeAlias = "str | int | bool | Sequence[Fact] | Mapping[str, Fact] | None"
"""What is known of a word beyond its meaning: plain data, fit for `json.dumps`."""


class Kind(Enum):
    """What a word can be. The value is its name in documents."""

    KEYWORD = "keyword"
    EFFECT = "effect"
    WAY = "way"
    ACCESS = "access"
    EVENT = "event"
    NOT_EVENT = "not an event"
    FIELD = "field"
    FUNCTION = "function"
    BIT = "bit"
    MSR = "msr"
    VECTOR = "exception"
    IMAGE = "image"
    SECTION = "section"
    TABLE = "table"
    SEVERITY = "severity"
    MODE = "mode"
    PLATFORM = "platform"
    UNIT = "unit of time"


@dataclass(frozen=True, slots=True)
class Word:
    """One word as one kind of thing.

    Attributes:
        doc: what it means, as one sentence; empty where its facts say all there is.
        facts: more of it, by names that each word of the kind has.
    """

    word: str
    kind: Kind
    doc: str
    facts: Mapping[str, Fact] = field(default_factory=dict)


PHRASES: Mapping[EffectKind, str] = {
    kind: next((spec.word for spec in EFFECTS.values() if spec.kind is kind), "deny by fault") for kind in EffectKind
}
"""Each effect as a rule has it; the one kind that is no word of its own is `deny by fault`."""

RETRY_PHRASE = "retry"

_PIN = PHRASES[EffectKind.PIN]

PINNABLE: tuple[str, ...] = tuple(word if word in EVENTS else f"msr {word}" for word in CONTROL_BITS)
"""The events whose register has named bits, the only ones that `pin` can keep."""


def mechanism_name(mechanism: Mechanism) -> str:
    """A short name, such as `skip or fault`."""
    return mechanism.name.lower().replace("_", " ")


def mechanism_of(phrase: str, column: Column) -> Mechanism | None:
    """What brings the effect about on events of this column; None where nothing does."""
    if phrase == RETRY_PHRASE:
        return Mechanism.RETRY if column in RETRYABLE else None
    return next((LEGALITY[kind].get(column) for kind, words in PHRASES.items() if words == phrase), None)


def words_of(column: Column) -> tuple[str, ...]:
    """The events, or the accesses, that are decided by this column."""
    events = [spec.word for spec in EVENTS.values() if spec.column is column]
    return (*events, *(word for word, access in ACCESS_WORDS.items() if column in column_of_access(access)))


def legal_on(phrase: str) -> Mapping[str, Mechanism]:
    """What the effect is legal on, several words of one column together, with what brings it about."""
    found = {column: how for column in Column if (how := mechanism_of(phrase, column)) is not None}
    return {", ".join(PINNABLE if phrase == _PIN else words_of(column)): how for column, how in found.items()}


def effects_on(word: str, column: Column) -> Mapping[str, Mechanism]:
    """The effects that are legal on the event or access of this name, with what brings each about."""
    found = {phrase: mechanism_of(phrase, column) for phrase in (*PHRASES.values(), RETRY_PHRASE)}
    if word not in (event.split()[0] for event in PINNABLE):
        found[_PIN] = None
    return {phrase: how for phrase, how in found.items() if how is not None}


def vocabulary() -> tuple[Word, ...]:
    """Every word, kind by kind."""
    return tuple(word for kind in _WORDS for word in kind())


def _keywords() -> Iterator[Word]:
    for word, (role, doc) in KEYWORDS.items():
        if word not in EFFECTS:
            yield Word(word, Kind.KEYWORD, doc, {"role": role.value})


def _effects() -> Iterator[Word]:
    for spec in EFFECTS.values():
        yield Word(spec.word, Kind.EFFECT, spec.doc, {"rank": int(spec.kind), "argument": spec.argument})
    for word, kind in MECHANISM_WORDS.items():
        doc = f"`by {word}` carries a `deny` out in this way and no other."
        yield Word(word, Kind.WAY, doc, {"rank": int(kind), "phrase": PHRASES[kind]})


def _accesses() -> Iterator[Word]:
    for word, access in ACCESS_WORDS.items():
        (column,) = column_of_access(access)
        yield Word(word, Kind.ACCESS, f"To {word} bytes of a place.", {"column": column.name.lower()})


def _events() -> Iterator[Word]:
    for spec in EVENTS.values():
        facts: dict[str, Fact] = {
            "column": spec.column.name.lower(),
            "argument": None if spec.parameter is Parameter.NONE else spec.parameter.name.lower(),
            "dialects": list(spec.dialects),
            "kvmi": spec.kvmi,
        }
        yield Word(spec.word, Kind.EVENT, spec.doc, facts)
    for word, reason in NOT_EVENTS.items():
        yield Word(word, Kind.NOT_EVENT, f"No rule can be about it: {reason}.")


def _fields() -> Iterator[Word]:
    for spec in FIELDS.values():
        yield Word(spec.word, Kind.FIELD, spec.doc, _facts_of_field(spec))
    for word, doc in FUNCTIONS.items():
        yield Word(word, Kind.FUNCTION, doc)


def _facts_of_field(spec: FieldSpec) -> dict[str, Fact]:
    return {
        "columns": [column.name.lower() for column in Column if carries(column, spec)],
        "dialects": {column.name.lower(): list(dialects) for column, dialects in spec.dialects.items()},
        "unknown": None if spec.unknown is Unknown.NEVER else spec.unknown.value,
        "bits_of": spec.bits_of,
        "address": None if spec.space is None else spec.space.value,
    }


def _registers() -> Iterator[Word]:
    for register, bits in CONTROL_BITS.items():
        for word, mask in bits.items():
            position = mask.bit_length() - 1
            yield Word(word, Kind.BIT, f"Bit {position} of {register}.", {"register": register, "position": position})
    for word, number in MSRS.items():
        dialects = [dialect for dialect, spans in MSR_RANGES.items() if any(number in span for span in spans)]
        yield Word(word, Kind.MSR, f"The MSR {number:#x}.", {"number": number, "dialects": list(dialects)})
    for word, number in VECTORS.items():
        yield Word(word, Kind.VECTOR, f"The exception #{word.upper()}, vector {number}.", {"vector": number})


def _places() -> Iterator[Word]:
    yield Word(KERNEL, Kind.IMAGE, "The guest's kernel.")
    for bounds in SECTIONS:
        starts = ", else ".join(f"`{symbol}`" for symbol in bounds.starts)
        yield Word(bounds.name, Kind.SECTION, f"The kernel from {starts} to `{bounds.end}`.", {"image": KERNEL})
    for word in TABLE_WORDS:
        yield Word(word, Kind.TABLE, f"The bytes that {word.upper()}R points to when the plan is armed.")


def _settings() -> Iterator[Word]:
    for rank, word in enumerate(SEVERITIES):
        yield Word(word, Kind.SEVERITY, "How much a record weighs, from `info` to `critical`.", {"rank": rank})
    for word in MODES:
        yield Word(word, Kind.MODE, KEYWORDS["mode"][1])
    for pair in PLATFORMS:
        yield Word(" ".join(pair), Kind.PLATFORM, "Guests of this system, in a header: `for linux x86_64`.")
    for word, seconds in RATE_SECONDS.items():
        yield Word(word, Kind.UNIT, f"In `at most N per {word}`.", {"seconds": seconds})


_WORDS = (_keywords, _effects, _accesses, _events, _fields, _registers, _places, _settings)
