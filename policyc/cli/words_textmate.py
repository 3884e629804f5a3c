"""The TextMate grammar of the language: what editors colour policy files by.

The shapes of names, numbers and texts are the terminals of the language's own grammar; the words are the vocabulary's.
TextMate matches patterns line by line and knows no sentences, so a word that is several things is told apart by the
word before it: `cr4` behind `on` is an event, elsewhere a field.

The patterns keep to what Oniguruma and Python's `re` read alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TypeAlias

from policyc.analysis.keywords import KEYWORDS, Role
from policyc.analysis.vocabulary import Kind, vocabulary
from policyc.catalog import EFFECTS, FIELDS, PLAIN_EFFECT_WORDS
from policyc.lang.text_to_tree import load_parser

__all__ = ["ROLE_SCOPES", "SCOPES", "SCOPE_NAME", "words_textmate"]

SCOPE_NAME = "source.policy"

SCOPES: Mapping[Kind, str] = MappingProxyType(
    {
        Kind.EFFECT: "keyword.control.effect",
        Kind.WAY: "support.constant.way",
        Kind.ACCESS: "storage.type.access",
        Kind.EVENT: "support.class.event",
        Kind.NOT_EVENT: "invalid.illegal.event",
        Kind.FIELD: "variable.language.field",
        Kind.FUNCTION: "support.function",
        Kind.BIT: "support.constant.bit",
        Kind.MSR: "support.constant.msr",
        Kind.VECTOR: "support.constant.exception",
        Kind.IMAGE: "entity.name.namespace",
        Kind.SECTION: "entity.name.section",
        Kind.TABLE: "support.variable.table",
        Kind.SEVERITY: "support.constant.severity",
        Kind.MODE: "support.constant.mode",
        Kind.PLATFORM: "support.constant.platform",
        Kind.UNIT: "support.constant.unit",
    }
)
"""What themes colour each kind of word by; `.policy` is added. Keywords go by their roles."""

ROLE_SCOPES: Mapping[Role, str] = MappingProxyType(
    {
        Role.STATEMENT: "keyword.control.statement",
        Role.CLAUSE: "keyword.other.clause",
        Role.EFFECT: "keyword.control.effect",
        Role.PLACE: "storage.modifier.place",
        Role.OPERATOR: "keyword.operator.word",
        Role.JOINT: "keyword.other.joint",
    }
)

Pattern: TypeAlias = "dict[str, str | dict[str, dict[str, str]]]"

_BLANK = "[ \\t]+"
_START = "(?<![A-Za-z0-9_-])"
_END = "(?![A-Za-z0-9_-])"


def words_textmate() -> str:
    """The grammar, as JSON."""
    document = {
        "$schema": "https://raw.githubusercontent.com/martinring/tmlanguage/master/tmlanguage.json",
        "name": "policyc policy",
        "scopeName": SCOPE_NAME,
        "fileTypes": ["policy"],
        "patterns": [{"include": f"#{name}"} for name in _REPOSITORY],
        "repository": {name: {"patterns": list(patterns())} for name, patterns in _REPOSITORY.items()},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _texts() -> Iterable[Pattern]:
    yield _match(_terminal("COMMENT"), "comment.line.number-sign")
    yield _match(_terminal("STRING"), "string.quoted.double")
    yield _match('"[^"\\n]*', "invalid.illegal.unclosed")


def _names() -> Iterable[Pattern]:
    image, symbol = _terminal("SYMBOL").split(":")
    yield _match(_START + _terminal("LABEL"), "entity.name.label")
    yield _captures(
        f"{_START}({image})(:)({symbol})", SCOPES[Kind.IMAGE], "punctuation.separator", "entity.name.function"
    )
    quoted = _terminal("STRING")
    module, section = f"{_terminal('NAME')}|{quoted}", f"{_terminal('SECTION')}|{quoted}"
    yield _captures(
        f"{_START}(module){_BLANK}({module}){_BLANK}({section})",
        ROLE_SCOPES[Role.PLACE],
        SCOPES[Kind.IMAGE],
        SCOPES[Kind.SECTION],
    )
    yield _captures(
        f"{_START}({_terminal('NAME')}){_BLANK}({_terminal('SECTION')})", SCOPES[Kind.IMAGE], SCOPES[Kind.SECTION]
    )
    # On a line of its own.
    yield _match(_START + _terminal("SECTION"), SCOPES[Kind.SECTION])
    yield _captures(f"{_START}(let){_BLANK}({_terminal('NAME')})", ROLE_SCOPES[Role.STATEMENT], "entity.name.variable")
    yield _match(f"{_START}{image}\\.[A-Za-z_][A-Za-z0-9_.$-]*", "invalid.illegal.glued")


def _pairs() -> Iterable[Pattern]:
    """Words that are what they are because of the word before them."""
    statement, clause = ROLE_SCOPES[Role.STATEMENT], ROLE_SCOPES[Role.CLAUSE]
    yield _pair("on", statement, Kind.NOT_EVENT)
    msrs = f"{_START}(on){_BLANK}(msr){_BLANK}({_any(_words(Kind.MSR))}){_END}"
    yield _captures(msrs, statement, SCOPES[Kind.EVENT], SCOPES[Kind.MSR])
    created = f"{_START}(on){_BLANK}(vcpu){_BLANK}(created){_END}"
    yield _captures(created, statement, SCOPES[Kind.EVENT], SCOPES[Kind.EVENT])
    yield _pair("on", statement, Kind.EVENT)
    yield _pair("inject", SCOPES[Kind.EFFECT], Kind.VECTOR)
    yield _pair("severity", clause, Kind.SEVERITY)
    yield _pair("mode", clause, Kind.MODE)
    yield _pair("by", clause, Kind.WAY)
    yield _pair("per", clause, Kind.UNIT)
    platforms = "|".join(word.replace(" ", _BLANK) for word in _words(Kind.PLATFORM))
    yield _captures(f"{_START}(for){_BLANK}({platforms}){_END}", clause, SCOPES[Kind.PLATFORM])


def _words_alone() -> Iterable[Pattern]:
    yield _match(f"{_START}(?:{_any(_words(Kind.FUNCTION))})(?=[ \\t]*\\()", SCOPES[Kind.FUNCTION])
    # The only keyword that is a field too: as a keyword it has its number behind it.
    yield _match(f"{_START}size(?={_BLANK}[0-9])", ROLE_SCOPES[Role.PLACE])
    for kind in (Kind.EFFECT, Kind.ACCESS, Kind.FIELD, Kind.BIT, Kind.TABLE):
        yield _match(f"{_START}(?:{_any(_words(kind))}){_END}", SCOPES[kind])
    others = {*EFFECTS, *FIELDS}
    for role, scope in ROLE_SCOPES.items():
        words = [word for word, (of, _) in KEYWORDS.items() if of is role and word not in others]
        yield _match(f"{_START}(?:{_any(words)}){_END}", scope)
    yield _match(_START + _terminal("NAME"), "variable.other.name")


def _numbers() -> Iterable[Pattern]:
    # A digit inside a name begins no number.
    before = "(?<![A-Za-z0-9_])"
    yield _match(before + _terminal("DATE"), "constant.numeric.date")
    yield _match(before + _terminal("DURATION"), "constant.numeric.duration")
    yield _match(before + _terminal("NUMBER"), "constant.numeric.integer")
    yield _match(f"{before}[0-9][A-Za-z0-9_]*", "invalid.illegal.number")


def _signs() -> Iterable[Pattern]:
    yield _match(_terminal("_ARROW"), "keyword.operator.arrow")
    yield _match(_terminal("COMPARISON"), "keyword.operator.comparison")
    yield _match(_terminal("_DOTS"), "keyword.operator.range")
    yield _match("[|&~]", "keyword.operator.bitwise")
    yield _match("[+/-]", "keyword.operator.arithmetic")
    yield _match("=", "keyword.operator.assignment")
    yield _match(",", "punctuation.separator")
    yield _match("[(){}]", "punctuation.section")


_REPOSITORY = {
    "texts": _texts,
    "names": _names,
    "pairs": _pairs,
    "words": _words_alone,
    "numbers": _numbers,
    "signs": _signs,
}
"""The groups of patterns: at one place of a line the earlier group wins, within a group the earlier pattern."""


def _pair(word: str, scope: str, kind: Kind) -> Pattern:
    return _captures(f"{_START}({word}){_BLANK}({_any(_words(kind))}){_END}", scope, SCOPES[kind])


def _match(pattern: str, scope: str) -> Pattern:
    return {"match": pattern, "name": f"{scope}.policy"}


def _captures(pattern: str, *scopes: str) -> Pattern:
    """A pattern whose groups have scopes of their own; it must have no other groups."""
    return {
        "match": pattern,
        "captures": {str(number): {"name": f"{scope}.policy"} for number, scope in enumerate(scopes, 1)},
    }


def _terminal(name: str) -> str:
    """The regular expression that the parser knows a terminal by."""
    return load_parser(PLAIN_EFFECT_WORDS).patterns[name]


@cache
def _words(kind: Kind) -> Sequence[str]:
    return [word.word for word in vocabulary() if word.kind is kind]


def _any(words: Iterable[str]) -> str:
    """One of the words, the longest first, so that none hides one that begins with it."""
    return "|".join(sorted(words, key=lambda word: (-len(word), word)))
