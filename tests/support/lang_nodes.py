"""Short ways to write the syntax tree that a test expects, and to see all of one that the parser gave."""

from __future__ import annotations

import dataclasses

from policyc.diagnostics import Source, Span
from policyc.lang import ast
from policyc.lang.parse import parse

__all__ = [
    "EFFECT_WORDS",
    "NOWHERE",
    "access_rule",
    "clauses",
    "effect",
    "event_rule",
    "named",
    "number",
    "parsed",
    "parsed_one",
    "section",
    "shown",
    "symbol",
    "text",
    "word",
]

EFFECT_WORDS = ("allow", "log", "skip", "deny", "crash")

NOWHERE = Span(Source("nowhere", ""), 0, 0)
"""The place of nodes that a test writes down: places take no part in comparison."""


def parsed(text: str) -> ast.PolicyFile:
    """The tree of a text that has no mistakes."""
    file, diagnostics = parse(Source("test.policy", text), EFFECT_WORDS)
    assert not diagnostics
    assert file is not None
    return file


def parsed_one(text: str) -> ast.Statement:
    """The tree of a text that is one statement."""
    (statement,) = parsed(text).statements
    return statement


def word(text: str) -> ast.Word:
    return ast.Word(text, NOWHERE)


def text(text: str) -> ast.Text:
    return ast.Text(text, NOWHERE)


def number(value: int) -> ast.Number:
    return ast.Number(value, str(value), NOWHERE)


def effect(text: str) -> ast.PlainEffect:
    return ast.PlainEffect(word(text), NOWHERE)


def symbol(name: str, offset: int | None = None, size: int | None = None) -> ast.SymbolPlace:
    """A symbol of the kernel."""
    return ast.SymbolPlace(
        word("kernel"),
        word(name),
        None if offset is None else number(offset),
        None if size is None else number(size),
        NOWHERE,
    )


def section(image: str, name: str) -> ast.SectionPlace:
    return ast.SectionPlace(word(image), word(name), NOWHERE)


def named(name: str) -> ast.NamePlace:
    return ast.NamePlace(word(name), NOWHERE)


def clauses(**given: object) -> ast.Clauses:
    """Clauses with these fields given and all others absent."""
    return dataclasses.replace(ast.Clauses(NOWHERE), **given)  # type: ignore[arg-type]  # the test names the fields


def access_rule(
    access: str, place: ast.Place, *, verdict: str = "deny", label: str | None = None, **given: object
) -> ast.AccessRule:
    """A rule about one access to one place."""
    return ast.AccessRule(
        None if label is None else word(label), effect(verdict), (word(access),), (place,), clauses(**given), NOWHERE
    )


def event_rule(
    *words: str | ast.Number | ast.Pair, verdict: ast.Effect | None = None, label: str | None = None, **given: object
) -> ast.EventRule:
    """A rule about the event with this name and these arguments."""
    name, *arguments = (word(part) if isinstance(part, str) else part for part in words)
    assert isinstance(name, ast.Word)
    pattern = ast.EventPattern(name, tuple(arguments), NOWHERE)
    return ast.EventRule(
        None if label is None else word(label), pattern, verdict or effect("deny"), clauses(**given), NOWHERE
    )


def shown(node: object) -> object:
    """A tree as nested tuples that hold everything, places and spellings too."""
    if isinstance(node, Span):
        return (node.start, node.end)
    if isinstance(node, Source):
        return node.name
    if isinstance(node, tuple):
        return tuple(shown(part) for part in node)
    if dataclasses.is_dataclass(node):
        return (type(node).__name__, *(shown(getattr(node, field.name)) for field in dataclasses.fields(node)))
    return node
