"""Conditions as written to conditions of the plan: words looked up, and operands checked to go together.

Every mistake of a condition is found in one go; one that has any comes to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from policyc.catalog import AddressSpace
from policyc.compiler.operands import REGISTER_OF_BIT, Kind, OperandReader, Scene, register_of
from policyc.compiler.places import PlaceResolver
from policyc.compiler.resolved import ResolvedCondition, ResolvedPlace
from policyc.diagnostics import Diagnostic, Span, did_you_mean
from policyc.lang import ast
from policyc.plan.canonical import bit_and, compare, complement, every, negate, some, within
from policyc.plan.condition_steps import MAX_STEPS, encode_condition
from policyc.plan.conditions import Condition, Field, Number, Value
from policyc.plan.places import Absolute, Base, DescriptorTable, Place

__all__ = ["resolve_condition"]

_CHANGES: Mapping[str, tuple[Value, Value]] = {
    "clears": (Field("old"), complement(Field("new"))),
    "sets": (complement(Field("old")), Field("new")),
}
"""The functions: what is joined with the bits that they are given, of which one must then be left."""

_OTHER_SPACE = {
    AddressSpace.VIRTUAL: "ask for `gpa`, or name a place in virtual memory",
    AddressSpace.PHYSICAL: "ask for `gva`, or name a `physical` place",
}


def resolve_condition(
    written: ast.Expression, scene: Scene, places: PlaceResolver, diagnostics: list[Diagnostic]
) -> ResolvedCondition | None:
    """The condition, or None where it has a mistake; what is found is appended to `diagnostics`."""
    checker = _Checker(scene, places, diagnostics)
    condition = checker.condition(written)
    if condition is None:
        return None
    if len(encode_condition(condition)) > MAX_STEPS:
        fact = f"the condition comes to more than {MAX_STEPS} steps"
        diagnostics.append(Diagnostic("P309", fact, written.span, "make several rules of it, or name fewer places"))
        return None
    return ResolvedCondition(condition, tuple(checker.places), checker.used, written.span)


class _Checker:
    """Checks one condition.

    Attributes:
        places: the places that it names, by their numbers in the condition.
    """

    def __init__(self, scene: Scene, places: PlaceResolver, diagnostics: list[Diagnostic]) -> None:
        self.places: dict[ResolvedPlace, int] = {}
        self._scene = scene
        self._resolver = places
        self._operands = OperandReader(scene, diagnostics)
        self._diagnostics = diagnostics

    @property
    def used(self) -> tuple[tuple[str, Span], ...]:
        """The fields that it reads, and where they are written."""
        return tuple(self._operands.used)

    def condition(self, written: ast.Expression) -> Condition | None:
        """What is written as a truth value. Nesting is bounded by the parser."""
        match written:
            case ast.Or(operands):
                return self._joined(some, operands)
            case ast.And(operands):
                return self._joined(every, operands)
            case ast.Not(operand):
                positive = self.condition(operand)
                return None if positive is None else negate(positive)
            case ast.Compare():
                return self._compare(written)
            case ast.InPlace():
                return self._within(written)
            case ast.Call():
                return self._call(written)
            case _:
                return self._bits_as_condition(written)

    def _joined(
        self, join: Callable[[Iterable[Condition]], Condition], written: Sequence[ast.Expression]
    ) -> Condition | None:
        parts = [self.condition(operand) for operand in written]
        whole = [part for part in parts if part is not None]
        return join(whole) if len(whole) == len(parts) else None

    def _bits_as_condition(self, written: ast.Expression) -> Condition | None:
        operand = self._operands.read(written)
        if operand is None:
            return None
        text = written.span.text
        if operand.kind is not Kind.NUMBER:
            self._mismatch(f"`{text}` alone is no condition", written.span, "write `access == write`")
            return None
        if operand.bits:
            register = REGISTER_OF_BIT[operand.bits[0].text]
            asked = "new" if register == register_of(self._scene.event) else register
            fact = f"`{text}` says which bit is meant, and not of what"
            self._mismatch(fact, written.span, f"write `{asked} & {operand.bits[0].text}`")
            return None
        if operand.field is None:
            self._mismatch(f"`{text}` is a number, not a condition", written.span, "compare a field with it")
            return None
        if isinstance(written, ast.Word):
            fact = f"`{text}` is a value, not a condition"
            self._mismatch(fact, written.span, f"compare it, as in `{text} != 0`")
            return None
        return compare(operand.value, "!=", Number(0))

    def _compare(self, written: ast.Compare) -> Condition | None:
        left, right = self._operands.read(written.left), self._operands.read(written.right)
        if left is None or right is None:
            return None
        kinds = {left.kind, right.kind}
        if kinds == {Kind.ACCESS, Kind.ACCESS_WORD}:
            if written.operator.text not in ("==", "!="):
                fact = f"accesses have no order, so `{written.operator.text}` means nothing between them"
                self._mismatch(fact, written.operator.span, "use `==` or `!=`")
                return None
        elif kinds != {Kind.NUMBER}:
            fact = f"`{left.span.text}` is {left.kind.value} and `{right.span.text}` {right.kind.value}"
            self._mismatch(fact, written.span, "compare `access` with `read`, `write` or `execute`")
            return None
        elif not self._operands.bits_fit((left, right)):
            return None
        return compare(left.value, written.operator.text, right.value)

    def _within(self, written: ast.InPlace) -> Condition | None:
        operand, found = self._operands.read(written.value), self._resolver.resolve((written.place,))
        if operand is None or not found or not self._operands.bits_fit((operand,)):
            return None
        text = written.value.span.text
        if operand.space is None:
            help = "ask for an address, such as `rip`, `gva` or `gpa`"
            self._mismatch(f"`{text}` is no address", written.value.span, help)
            return None
        for one in found:
            space = _space_of(one.place)
            if space is None:
                fact = f"where the {one.place} lies is known only once the plan is armed, too late for a condition"
                self._mismatch(fact, written.place.span, "give addresses, as `virtual START..END`")
                return None
            if space is not operand.space:
                fact = f"`{text}` is a {operand.space.value} address, and `{one.place}` lies in {space.value} memory"
                self._mismatch(fact, written.span, _OTHER_SPACE[operand.space])
                return None
        return within(operand.value, [self.places.setdefault(one, len(self.places)) for one in found])

    def _call(self, written: ast.Call) -> Condition | None:
        name = written.function
        if name.text not in _CHANGES:
            near = did_you_mean(name.text, _CHANGES)
            help = f"did you mean `{near}`?" if near else f"there are {' and '.join(f'`{f}(BITS)`' for f in _CHANGES)}"
            self._report("P209", f"there is no function `{name.text}`", name.span, help)
            return None
        change, mask = self._operands.change(name.text, name.span), self._operands.read(written.argument)
        if change is None or mask is None:
            return None
        if mask.field is not None or mask.kind is not Kind.NUMBER:
            fact = f"`{name.text}` is given bits, and `{written.argument.span.text}` aren't any that are fixed"
            self._mismatch(fact, written.argument.span, f"name bits, as in `{name.text}(smep | smap)`")
            return None
        if not self._operands.bits_fit((change, mask)):
            return None
        return compare(bit_and([*_CHANGES[name.text], mask.value]), "!=", Number(0))

    def _mismatch(self, fact: str, span: Span, help: str | None = None) -> None:
        self._report("P308", fact, span, help)

    def _report(self, code: str, fact: str, span: Span, help: str | None = None) -> None:
        self._diagnostics.append(Diagnostic(code, fact, span, help))


def _space_of(place: Place) -> AddressSpace | None:
    """The memory that a place lies in; None where only the armed guest can say where."""
    match place:
        case DescriptorTable():
            return None
        case Absolute(extent):
            return AddressSpace.PHYSICAL if extent.base is Base.PHYSICAL else AddressSpace.VIRTUAL
        case _:
            return AddressSpace.VIRTUAL
