"""The canonical spelling of what statements are made of, each on one line and without comments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyc.lang import ast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = [
    "condition_atoms",
    "spell_effect",
    "spell_event",
    "spell_expression",
    "spell_number",
    "spell_place",
    "spell_preposition",
    "spell_setting",
]

PREPOSITIONS: Final = {"read": "of", "execute": "of"}
"""The preposition behind an access, where it isn't `to`."""

OR, AND, NOT, COMPARE, BIT_OR, BIT_AND, BITS = range(7)
"""The rungs of the ladder of expressions, as the grammar has them: the higher, the tighter."""

Atom = tuple[str, int]
"""A text that isn't broken over lines, and the offset at which what it says begins in the source."""


def spell_preposition(accesses: Sequence[ast.Word]) -> str:
    """The preposition behind a list of accesses: that of the last."""
    return PREPOSITIONS.get(accesses[-1].text, "to")


def spell_number(number: ast.Number) -> str:
    """A number as its author wrote it, but for its letters: hexadecimal digits small, K, M and G large."""
    digits, suffix = (number.text[:-1], number.text[-1]) if number.text[-1] in "KMG" else (number.text, "")
    return digits.lower() + suffix


def spell_place(place: ast.Place) -> str:
    """A place."""
    match place:
        case ast.SectionPlace():
            return f"{place.image.text} {_word_or_text(place.section)}"
        case ast.ModulePlace():
            return f"module {_word_or_text(place.module)} {_word_or_text(place.section)}"
        case ast.SymbolPlace():
            return f"{place.image.text}:{place.symbol.text}{_offset(place.offset)}{_size(place.size)}"
        case ast.PhysicalPlace():
            return f"physical {_extent(place)}"
        case ast.VirtualPlace():
            return f"virtual {_extent(place)}"
        case ast.LiteralPlace():
            return spell_number(place.address)
        case ast.NamePlace():
            return place.name.text


def spell_effect(effect: ast.Effect) -> str:
    """An effect with its argument."""
    match effect:
        case ast.InjectEffect():
            return f"{effect.word.text} {_word_or_number(effect.vector)}"
        case ast.PinEffect():
            return f"{effect.word.text} {' | '.join(bit.text for bit in effect.bits)}"
        case ast.RetryEffect():
            return f"{effect.word.text} {spell_number(effect.count)} then {spell_effect(effect.then)}"
        case ast.PlainEffect():
            return effect.word.text


def spell_event(event: ast.EventPattern) -> str:
    """The name of an event and its arguments."""
    return " ".join([event.name.text, *map(_event_argument, event.arguments)])


def spell_setting(setting: ast.Setting) -> str:
    """A field of a test case and its value."""
    return f"{setting.name.text} = {spell_expression(setting.value, BIT_OR)}"


def spell_expression(expression: ast.Expression, rung: int = OR) -> str:
    """An expression, in brackets if it binds less tightly than `rung`."""
    return " ".join(text for text, _ in condition_atoms(expression, rung))


def condition_atoms(expression: ast.Expression, rung: int = OR) -> list[Atom]:
    """An expression in atoms that begin with its operators, such as `a`, `and b`, `or c`.

    It stands in brackets if it binds less tightly than `rung`.
    """
    atoms = list(_atoms(expression))
    if _rung(expression) >= rung:
        return atoms
    atoms[0] = (f"({atoms[0][0]}", atoms[0][1])
    atoms[-1] = (f"{atoms[-1][0]})", atoms[-1][1])
    return atoms


def _rung(expression: ast.Expression) -> int:
    if isinstance(expression, ast.BitOp):
        return BIT_OR if expression.operator == "|" else BIT_AND
    return _RUNGS.get(type(expression), BITS)


_RUNGS: Final[Mapping[type, int]] = {
    ast.Or: OR,
    ast.And: AND,
    ast.Not: NOT,
    ast.Compare: COMPARE,
    ast.InPlace: COMPARE,
}


def _atoms(expression: ast.Expression) -> Iterator[Atom]:
    match expression:
        case ast.Or():
            yield from _joined(expression.operands, "or", AND)
        case ast.And():
            yield from _joined(expression.operands, "and", NOT)
        case ast.Not():
            yield from _led("not ", condition_atoms(expression.operand, NOT))
        case _:
            yield _spell_one(expression), expression.span.start


def _joined(operands: Sequence[ast.Expression], operator: str, rung: int) -> Iterator[Atom]:
    for index, operand in enumerate(operands):
        atoms = condition_atoms(operand, rung)
        yield from _led(f"{operator} ", atoms) if index else atoms


def _led(lead: str, atoms: list[Atom]) -> Iterator[Atom]:
    """The atoms with a text before the first."""
    (first, start), *others = atoms
    yield lead + first, start
    yield from others


def _spell_one(
    expression: ast.Compare | ast.InPlace | ast.BitOp | ast.Complement | ast.Call | ast.Word | ast.Number,
) -> str:
    """An expression that is one atom."""
    match expression:
        case ast.Compare():
            left, right = spell_expression(expression.left, BIT_OR), spell_expression(expression.right, BIT_OR)
            return f"{left} {expression.operator.text} {right}"
        case ast.InPlace():
            return f"{spell_expression(expression.value, BIT_OR)} in {spell_place(expression.place)}"
        case ast.BitOp():
            rung = BIT_AND if expression.operator == "|" else BITS
            return f" {expression.operator} ".join(spell_expression(operand, rung) for operand in expression.operands)
        case ast.Complement():
            return f"~{spell_expression(expression.operand, BITS)}"
        case ast.Call():
            return f"{expression.function.text}({spell_expression(expression.argument)})"
        case ast.Word():
            return expression.text
        case ast.Number():
            return spell_number(expression)


def _event_argument(argument: ast.Word | ast.Number | ast.Pair) -> str:
    if isinstance(argument, ast.Pair):
        return f"{spell_number(argument.first)}/{spell_number(argument.second)}"
    return _word_or_number(argument)


def _word_or_text(part: ast.Word | ast.Text) -> str:
    return part.text if isinstance(part, ast.Word) else f'"{part.text}"'


def _word_or_number(part: ast.Word | ast.Number) -> str:
    return part.text if isinstance(part, ast.Word) else spell_number(part)


def _offset(offset: ast.Number | None) -> str:
    if offset is None:
        return ""
    return f" {'-' if offset.value < 0 else '+'} {spell_number(offset)}"


def _size(size: ast.Number | None) -> str:
    return "" if size is None else f" size {spell_number(size)}"


def _extent(place: ast.PhysicalPlace | ast.VirtualPlace) -> str:
    end = "" if place.end is None else f"..{spell_number(place.end)}"
    return f"{spell_number(place.start)}{end}{_size(place.size)}"
