"""From branches of the parser's tree to the parts that statements are made of: places, conditions and effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from policyc.diagnostics import Span
from policyc.lang import ast
from policyc.lang.leaves import Leaves, children, kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from policyc.lang.leaves import Branch

    ReadPlace: TypeAlias = Callable[[Leaves, Sequence[Branch], Span], ast.Place]
    ReadExpression: TypeAlias = Callable[[Leaves, Sequence[Branch], Span, int], ast.Expression]

__all__ = ["EXPRESSIONS", "PLACES", "effect", "event", "expression", "place", "places", "settings"]


# ---- places


def places(leaves: Leaves, branch: Branch) -> tuple[ast.Place, ...]:
    """A list of places."""
    return tuple(place(leaves, child) for child in children(branch))


def place(leaves: Leaves, branch: Branch) -> ast.Place:
    """One place."""
    return PLACES[kind(branch)](leaves, children(branch), leaves.span(branch))


def _section(leaves: Leaves, branches: Sequence[Branch], span: Span) -> ast.Place:
    image, section = branches
    return ast.SectionPlace(leaves.word(image), leaves.word_or_text(section), span)


def _module(leaves: Leaves, branches: Sequence[Branch], span: Span) -> ast.Place:
    module, section = branches
    return ast.ModulePlace(leaves.word_or_text(module), leaves.word_or_text(section), span)


def _symbol(leaves: Leaves, branches: Sequence[Branch], span: Span) -> ast.Place:
    token, *rest = branches
    parts = {kind(part): part for part in rest}
    start, end = leaves.place(token)
    image, _, symbol = str(token).partition(":")
    middle = start + len(image)
    return ast.SymbolPlace(
        image=ast.Word(image, Span(leaves.source, start, middle)),
        symbol=ast.Word(symbol, Span(leaves.source, middle + 1, end)),
        offset=_offset(leaves, parts["offset"]) if "offset" in parts else None,
        size=leaves.number(children(parts["size"])[0]) if "size" in parts else None,
        span=span,
    )


def _offset(leaves: Leaves, branch: Branch) -> ast.Number:
    sign, digits = children(branch)
    number = leaves.number(digits)
    return ast.Number(-number.value if sign == "-" else number.value, number.text, leaves.span(branch))


def _physical(leaves: Leaves, branches: Sequence[Branch], span: Span) -> ast.Place:
    return ast.PhysicalPlace(*_extent(leaves, branches), span)


def _virtual(leaves: Leaves, branches: Sequence[Branch], span: Span) -> ast.Place:
    return ast.VirtualPlace(*_extent(leaves, branches), span)


def _extent(leaves: Leaves, branches: Sequence[Branch]) -> tuple[ast.Number, ast.Number | None, ast.Number | None]:
    """Start, end and size of a range; one of the last two is None."""
    start, bound = branches
    number = leaves.number(children(bound)[0])
    return leaves.number(start), *((number, None) if kind(bound) == "end" else (None, number))


def _literal(leaves: Leaves, branches: Sequence[Branch], span: Span) -> ast.Place:
    return ast.LiteralPlace(leaves.number(branches[0]), span)


def _name(leaves: Leaves, branches: Sequence[Branch], span: Span) -> ast.Place:
    return ast.NamePlace(leaves.word(branches[0]), span)


PLACES: Final[Mapping[str, ReadPlace]] = {
    "section_place": _section,
    "module_place": _module,
    "symbol_place": _symbol,
    "physical_place": _physical,
    "virtual_place": _virtual,
    "literal_place": _literal,
    "name_place": _name,
}


# ---- conditions


def expression(leaves: Leaves, branch: Branch, depth: int = 0) -> ast.Expression:
    """A condition, or a part of one at this depth."""
    span = leaves.span(branch)
    match kind(branch):
        case "name":
            return leaves.word(branch)
        case "number":
            return leaves.number(children(branch)[0])
        case operation:
            if leaves.too_deep(depth, span):
                return ast.Word("", span)
            return EXPRESSIONS[operation](leaves, children(branch), span, depth + 1)


def _operands(leaves: Leaves, branches: Sequence[Branch], depth: int) -> tuple[ast.Expression, ...]:
    return tuple(expression(leaves, branch, depth) for branch in branches)


def _or(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    return ast.Or(_operands(leaves, branches, depth), span)


def _and(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    return ast.And(_operands(leaves, branches, depth), span)


def _negation(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    return ast.Not(expression(leaves, branches[0], depth), span)


def _compare(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    left, operator, right = branches
    return ast.Compare(expression(leaves, left, depth), leaves.word(operator), expression(leaves, right, depth), span)


def _in_place(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    value, where = branches
    return ast.InPlace(expression(leaves, value, depth), place(leaves, where), span)


def _bit_or(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    return ast.BitOp("|", _operands(leaves, branches, depth), span)


def _bit_and(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    return ast.BitOp("&", _operands(leaves, branches, depth), span)


def _complement(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    return ast.Complement(expression(leaves, branches[0], depth), span)


def _call(leaves: Leaves, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
    function, argument = branches
    return ast.Call(leaves.word(function), expression(leaves, argument, depth), span)


EXPRESSIONS: Final[Mapping[str, ReadExpression]] = {
    "or": _or,
    "and": _and,
    "negation": _negation,
    "compare": _compare,
    "in_place": _in_place,
    "bit_or": _bit_or,
    "bit_and": _bit_and,
    "complement": _complement,
    "call": _call,
}


# ---- effects and events


def effect(leaves: Leaves, branch: Branch, depth: int = 0) -> ast.Effect:
    """An effect, or the one that a `retry` at this depth leads to."""
    span = leaves.span(branch)
    keyword, *arguments = children(branch)
    word = leaves.word(keyword)
    match kind(branch):
        case "inject_effect":
            return ast.InjectEffect(word, leaves.word_or_number(arguments[0]), span)
        case "pin_effect":
            return ast.PinEffect(word, tuple(leaves.word(bit) for bit in arguments), span)
        case "retry_effect" if not leaves.too_deep(depth, span):
            count, then = arguments
            return ast.RetryEffect(word, leaves.number(count), effect(leaves, then, depth + 1), span)
        case _:
            return ast.PlainEffect(word, span)


def event(leaves: Leaves, branch: Branch) -> ast.EventPattern:
    """The name of an event and its arguments."""
    name, *arguments = children(branch)
    return ast.EventPattern(
        leaves.word(name), tuple(_event_argument(leaves, argument) for argument in arguments), leaves.span(branch)
    )


def _event_argument(leaves: Leaves, branch: Branch) -> ast.Word | ast.Number | ast.Pair:
    if kind(branch) != "pair":
        return leaves.word_or_number(branch)
    first, second = children(branch)
    return ast.Pair(leaves.number(first), leaves.number(second), leaves.span(branch))


def settings(leaves: Leaves, branch: Branch | None) -> tuple[ast.Setting, ...]:
    """The `with` of a test case; of none, no settings."""
    if branch is None:
        return ()
    return tuple(
        ast.Setting(leaves.word(name), expression(leaves, value), leaves.span(setting))
        for setting in children(branch)
        for name, value in [children(setting)]
    )
