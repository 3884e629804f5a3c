"""The words of the language as one Markdown document: docs/reference/words.md."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from policyc.analysis.keywords import KEYWORDS, Role
from policyc.analysis.vocabulary import (
    PHRASES,
    PINNABLE,
    RETRY_PHRASE,
    Kind,
    Word,
    mechanism_name,
    mechanism_of,
    vocabulary,
    words_of,
)
from policyc.catalog import (
    CONTROL_BITS,
    EFFECTS,
    EVENTS,
    FIELDS,
    MSR_RANGES,
    MSRS,
    NOT_EVENTS,
    TARGETS,
    Column,
    FieldSpec,
    Mechanism,
    Parameter,
    Unknown,
    carries,
)
from policyc.cli.markdown import code, section, table

__all__ = ["words_markdown"]

_HEAD = """\
# The words of the language

Written by `policyc words --format markdown` from the tables that the compiler itself reads. How the words make
sentences is in [the language by example](../language.md), the syntax in
[grammar/policy.lark](../../grammar/policy.lark), what is said about mistakes in [diagnostics.md](diagnostics.md).
"""


def words_markdown(carried_out: frozenset[Mechanism]) -> str:
    """The document; `carried_out` is what the runtime of this version can do."""
    words: dict[Kind, list[Word]] = {kind: [] for kind in Kind}
    for word in vocabulary():
        words[word.kind].append(word)
    sections = [
        _HEAD,
        _effects(),
        _legality(),
        _mechanisms(carried_out),
        _accesses(words[Kind.ACCESS]),
        _events(),
        _fields(words[Kind.FUNCTION]),
        _bits(),
        _msrs(),
        _vectors(words[Kind.VECTOR]),
        _places(words),
        _settings(words),
        _keywords(),
    ]
    return "\n".join(sections)


def _effects() -> str:
    rows = [(code(phrase + _argument(phrase)), str(int(kind)), _meaning(phrase)) for kind, phrase in PHRASES.items()]
    return section(
        "Effects",
        "Where rules overlap, the highest rank wins. `retry N then EFFECT` has the rank of its EFFECT.",
        table(("Effect", "Rank", "Meaning"), rows),
    )


def _argument(phrase: str) -> str:
    spec = EFFECTS.get(phrase)
    return f" {spec.argument.upper()}" if spec is not None and spec.argument else ""


def _meaning(phrase: str) -> str:
    return EFFECTS[phrase].doc if phrase in EFFECTS else "Keep it from happening and raise #GP in the guest."


def _legality() -> str:
    phrases = (*PHRASES.values(), RETRY_PHRASE)
    rows = [(_about(column), *(_cell(phrase, column) for phrase in phrases)) for column in Column]
    return section(
        "Which effect on what",
        "An empty cell is refused by the compiler (P304), which then says what is legal. A name in a cell is the\n"
        "mechanism that brings the effect about; what each means on the wire stands below.",
        table(("", *(code(phrase) for phrase in phrases)), rows),
        "`retry N then EFFECT` answers RETRY up to N times and then does what EFFECT does; where its cell is empty,\n"
        f"it can't stand. `pin` is for {', '.join(map(code, PINNABLE))} alone. `deny by skip` is the same as `skip`.",
    )


def _about(column: Column) -> str:
    return f"{column.value} ({', '.join(map(code, words_of(column)))})"


def _cell(phrase: str, column: Column) -> str:
    how = mechanism_of(phrase, column)
    return "" if how is None else mechanism_name(how)


def _mechanisms(carried_out: frozenset[Mechanism]) -> str:
    rows = [
        (mechanism_name(how), how.value, "yes" if how in carried_out else "not in this version") for how in Mechanism
    ]
    return section(
        "Mechanisms",
        "What the tool answers to the KVMI event. A rule whose mechanism this version doesn't carry out compiles, and\n"
        "`policyc run` refuses the plan before it listens.",
        table(("Mechanism", "On the wire", "Carried out"), rows),
    )


def _accesses(words: Iterable[Word]) -> str:
    rows = [(code(word.word), word.doc) for word in words]
    return section(
        "Accesses",
        "One or several, with commas: `deny read, write to idt`. Each comes as a page fault event.",
        table(("Access", "Meaning"), rows),
    )


def _events() -> str:
    rows = [
        (
            code(spec.word),
            "" if spec.parameter is Parameter.NONE else spec.parameter.value,
            spec.doc,
            ", ".join(code(field.word) for field in FIELDS.values() if spec.column in field.columns),
            "all" if spec.dialects == TARGETS else ", ".join(spec.dialects),
            spec.kvmi,
        )
        for spec in EVENTS.values()
    ]
    refused = [f"- {code(word)}: {reason}." for word, reason in NOT_EVENTS.items()]
    return section(
        "Events",
        "Behind `on`. Every event but `unhook` also carries the fields that every event of a vCPU has, below.",
        table(("Event", "Followed by", "Meaning", "Own fields", "Dialects", "KVMI event"), rows),
        "No rule can be about these:",
        "\n".join(refused),
    )


def _fields(functions: Iterable[Word]) -> str:
    rows = [
        (", ".join(code(spec.word) for spec in specs), doc, *facts)
        for (doc, *facts), specs in groupby(FIELDS.values(), _field_row)
    ]
    return section(
        "Fields",
        "What conditions read. An address can be asked for `in PLACE`, the bits of a register by their names. A field\n"
        "without value counts as what makes the verdict stricter: a rule applies, an exception doesn't.",
        table(("Field", "Meaning", "Carried by", "Value", "But"), rows),
        "The functions are about the change that an event with `old` and `new` tells of:",
        table(("Function", "Meaning"), [(code(word.word), word.doc) for word in functions]),
    )


def _field_row(spec: FieldSpec) -> tuple[str, ...]:
    """What is said of the field; neighbours of which the same is said share a row."""
    doc = "The register." if spec.doc == f"The register {spec.word.upper()}." else spec.doc
    return doc, _carried_by(spec), _value(spec), _remark(spec)


def _carried_by(spec: FieldSpec) -> str:
    if not spec.columns:
        return "every event of a vCPU"
    return ", ".join(column.value for column in Column if carries(column, spec))


def _value(spec: FieldSpec) -> str:
    if spec.bits_of is not None:
        return f"bits of {spec.bits_of}"
    return "" if spec.space is None else f"{spec.space.value} address"


def _remark(spec: FieldSpec) -> str:
    limits = [f"{column.value}: {', '.join(dialects)} only" for column, dialects in spec.dialects.items()]
    unknown = [] if spec.unknown is Unknown.NEVER else [f"without value {spec.unknown.value}"]
    return "; ".join([*unknown, *limits])


def _bits() -> str:
    parts = []
    for register, bits in CONTROL_BITS.items():
        listed = ", ".join(f"{code(word)} {mask.bit_length() - 1}" for word, mask in bits.items())
        parts.append(f"- {code(register)}: {listed}")
    return section(
        "Bits of control registers",
        "By name and position, for `pin`, `clears`, `sets` and conditions. No name stands in two registers.",
        "\n".join(parts),
    )


def _msrs() -> str:
    rows = [
        (code(word), f"{number:#x}", *(_reached(number, dialect) for dialect in TARGETS))
        for word, number in MSRS.items()
    ]
    ranges = [
        f"- {dialect}: {' and '.join(f'{span.start:#x} to {span.stop - 1:#x}' for span in spans)}"
        for dialect, spans in MSR_RANGES.items()
    ]
    return section(
        "MSRs",
        "Behind `on msr`, by name or by number. These numbers can be intercepted, first and last included:",
        "\n".join(ranges),
        "and these have names:",
        table(("MSR", "Number", *TARGETS), rows),
    )


def _reached(number: int, dialect: str) -> str:
    return "yes" if any(number in span for span in MSR_RANGES[dialect]) else "no"


def _vectors(words: Iterable[Word]) -> str:
    return section(
        "Exceptions that may be injected",
        "Behind `inject`, by name or by number. Others would stop the vCPU, loop, or need facts that the event lacks.",
        table(("Exception", "Vector"), [(code(word.word), str(word.facts["vector"])) for word in words]),
    )


def _places(words: dict[Kind, list[Word]]) -> str:
    rows = [(code(f"{word.facts['image']} {word.word}"), word.doc) for word in words[Kind.SECTION]]
    rows += [(code(word.word), word.doc) for word in words[Kind.TABLE]]
    return section(
        "Places with names of their own",
        "Besides these, a place is a symbol, a pattern of symbols, addresses, or a `let` name.",
        table(("Place", "Meaning"), rows),
    )


def _settings(words: dict[Kind, list[Word]]) -> str:
    rows = [
        (f"{lead} …", ", ".join(code(word.word) for word in words[kind]))
        for lead, kind in (
            ("`severity`", Kind.SEVERITY),
            ("`mode`", Kind.MODE),
            ("`by`", Kind.WAY),
            ("`for`", Kind.PLATFORM),
            ("`per`", Kind.UNIT),
        )
    ]
    return section("Words behind keywords", table(("Behind", "One of"), rows))


_ROLES = {
    Role.STATEMENT: "Words that begin a statement",
    Role.CLAUSE: "Words that begin a clause",
    Role.EFFECT: "Effects with an argument",
    Role.PLACE: "Words of places",
    Role.OPERATOR: "Operators in words",
    Role.JOINT: "Words that hold a sentence together",
}


def _keywords() -> str:
    parts = ["They are keywords only where the grammar has them: a place may be called `size` or `test`."]
    for role, title in _ROLES.items():
        rows = [(code(word), doc) for word, (of, doc) in KEYWORDS.items() if of is role]
        parts.append(table((title, "Meaning"), rows))
    return section("Keywords", *parts)
