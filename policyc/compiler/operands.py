"""The values in a condition: fields, numbers, named bits and what joins them, each checked to be there and to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from policyc.catalog import (
    ACCESS_WORDS,
    CONTROL_BITS,
    FIELDS,
    MSRS,
    AddressSpace,
    Column,
    carries,
)
from policyc.diagnostics import Diagnostic, Span, did_you_mean
from policyc.lang import ast
from policyc.plan.canonical import ALL_ONES, bit_and, bit_or, complement
from policyc.plan.conditions import Field, Number, Value
from policyc.plan.model import EventKey

__all__ = ["REGISTER_OF_BIT", "Kind", "Operand", "OperandReader", "Scene", "register_of"]

REGISTER_OF_BIT: Mapping[str, str] = {word: register for register, bits in CONTROL_BITS.items() for word in bits}
"""No word stands in two registers, so a bit's word alone names its register."""

CHANGE_WORDS = ("old", "new")
"""The fields whose meaning is that of the register which the event is about."""

_REGISTER_OF_MSR = {MSRS[register]: register for register in CONTROL_BITS if register in MSRS}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a condition is about: the columns of its rule, and the event of an event rule."""

    columns: frozenset[Column]
    event: EventKey | None = None

    @property
    def ordered_columns(self) -> list[Column]:
        """The columns in an order that doesn't change from run to run."""
        return sorted(self.columns, key=lambda column: column.value)


class Kind(Enum):
    """What operands can be compared with each other: those of one kind, and a kind of access with its words."""

    NUMBER = "a number"
    ACCESS = "the kind of access"
    ACCESS_WORD = "a word for a kind of access"


@dataclass(frozen=True, slots=True)
class Operand:
    """A value and what is known of it.

    Attributes:
        field: the word of a field in it; None for a constant.
        register: whose named bits the field has.
        space: what it is an address of.
        bits: words of bits in it that no field has been seen with yet.
    """

    value: Value
    span: Span
    kind: Kind = Kind.NUMBER
    field: str | None = None
    register: str | None = None
    space: AddressSpace | None = None
    bits: tuple[ast.Word, ...] = ()


def register_of(event: EventKey | None) -> str | None:
    """The register whose bits `old` and `new` of this event have; None where those have no names."""
    if event is None:
        return None
    if event.word == "msr":
        return _REGISTER_OF_MSR.get(event.numbers[0])
    return event.word if event.word in CONTROL_BITS else None


class OperandReader:
    """Reads the values of one condition; mistakes are appended to `diagnostics`, and what has one comes to None.

    Attributes:
        used: the fields that were read, with the places where they are written.
    """

    def __init__(self, scene: Scene, diagnostics: list[Diagnostic]) -> None:
        self.used: list[tuple[str, Span]] = []
        self._scene = scene
        self._diagnostics = diagnostics

    def read(self, written: ast.Expression) -> Operand | None:
        """What is written as a value. Nesting is bounded by the parser."""
        match written:
            case ast.Number(value):
                if value <= ALL_ONES:
                    return Operand(Number(value), written.span)
                self._report("P302", f"`{written.text}` doesn't fit into 64 bits", written.span)
                return None
            case ast.Word(text) if text in FIELDS:
                return self._field(written)
            case ast.Word(text) if text in REGISTER_OF_BIT:
                mask = CONTROL_BITS[REGISTER_OF_BIT[text]][text]
                return Operand(Number(mask), written.span, bits=(written,))
            case ast.Word(text) if text in ACCESS_WORDS:
                return Operand(Number(int(ACCESS_WORDS[text])), written.span, Kind.ACCESS_WORD)
            case ast.Word():
                self._unknown(written)
                return None
            case ast.Complement(operand):
                return self._complement(written, self.read(operand))
            case ast.BitOp():
                return self._bit_op(written)
            case _:
                fact = f"`{written.span.text}` is a condition, where a value is wanted"
                self._report("P308", fact, written.span, "join conditions with `and`, `or` and `not`")
                return None

    def change(self, word: str, span: Span) -> Operand | None:
        """`old` or `new`, which `word`, a function written at `span`, asks about."""
        if not all(self._is_carried(field, span, word) for field in CHANGE_WORDS):
            return None
        return Operand(Field("new"), span, field="new", register=register_of(self._scene.event))

    def bits_fit(self, operands: Sequence[Operand]) -> bool:
        """Whether every bit that is named is one of the registers that the operands hold."""
        asking = [operand for operand in operands if operand.field is not None]
        named = [bit for operand in operands for bit in operand.bits]
        for bit in named:
            register = REGISTER_OF_BIT[bit.text]
            other = next((one for one in asking if one.register != register), None)
            if other is not None:
                self._report("P308", *_bit_of_other_register(bit, str(other.field), other.register))
                return False
            if not asking and REGISTER_OF_BIT[named[0].text] != register:
                first = named[0]
                fact = f"`{first.text}` is a bit of {REGISTER_OF_BIT[first.text]} and `{bit.text}` one of {register}"
                self._report("P308", fact, bit.span, "ask each register by itself")
                return False
        return True

    def _field(self, word: ast.Word) -> Operand | None:
        if not self._is_carried(word.text, word.span):
            return None
        spec, event = FIELDS[word.text], self._scene.event
        if word.text not in CHANGE_WORDS or event is None:
            kind = Kind.ACCESS if word.text == "access" else Kind.NUMBER
            return Operand(Field(word.text), word.span, kind, word.text, spec.bits_of, spec.space)
        if event.word == "msr":
            space: AddressSpace | None = AddressSpace.VIRTUAL
        else:
            space = FIELDS[event.word].space if event.word in FIELDS else None
        return Operand(Field(word.text), word.span, Kind.NUMBER, word.text, register_of(event), space)

    def _is_carried(self, word: str, span: Span, asked_by: str | None = None) -> bool:
        columns = self._scene.ordered_columns
        lacking = [column.value for column in columns if not carries(column, FIELDS[word])]
        if not lacking:
            self.used.append((word, span))
            return True
        own = [f"`{f.word}`" for f in FIELDS.values() if f.columns and all(carries(column, f) for column in columns)]
        if not all(carries(column, FIELDS["rip"]) for column in columns):
            help = "leave the condition out"
        else:
            help = f"it has {', '.join([*own, 'the registers'])}" if own else "ask for a register, such as `rip`"
        fact = f"{' and '.join(lacking)} has no field `{word}`" + (f", which `{asked_by}` needs" if asked_by else "")
        self._report("P307", fact, span, help)
        return False

    def _unknown(self, word: ast.Word) -> None:
        known = [f.word for f in FIELDS.values() if all(carries(column, f) for column in self._scene.columns)]
        near = did_you_mean(word.text, [*known, *REGISTER_OF_BIT, *ACCESS_WORDS])
        help = f"did you mean `{near}`?" if near else f"the fields are {', '.join(f'`{field}`' for field in known)}"
        self._report("P209", f"there is no field and no bit `{word.text}`", word.span, help)

    def _complement(self, written: ast.Complement, operand: Operand | None) -> Operand | None:
        if operand is None or not self._has_bits(operand):
            return None
        value = complement(operand.value)
        return Operand(value, written.span, field=operand.field, register=operand.register, bits=operand.bits)

    def _bit_op(self, written: ast.BitOp) -> Operand | None:
        operands = [self.read(operand) for operand in written.operands]
        whole = [operand for operand in operands if operand is not None]
        if len(whole) < len(operands) or not all(map(self._has_bits, whole)) or not self.bits_fit(whole):
            return None
        asking = [operand for operand in whole if operand.field is not None]
        masks_one = written.operator == "&" and len(asking) == 1
        return Operand(
            (bit_and if written.operator == "&" else bit_or)(operand.value for operand in whole),
            written.span,
            field=asking[0].field if asking else None,
            register=asking[0].register if asking else None,
            space=asking[0].space if masks_one else None,
            bits=() if asking else tuple(bit for operand in whole for bit in operand.bits),
        )

    def _has_bits(self, operand: Operand) -> bool:
        if operand.kind is Kind.NUMBER:
            return True
        self._report("P308", f"`{operand.span.text}` has no bits", operand.span, "write `access == write`")
        return False

    def _report(self, code: str, fact: str, span: Span, help: str | None = None) -> None:
        self._diagnostics.append(Diagnostic(code, fact, span, help))


def _bit_of_other_register(bit: ast.Word, field: str, held: str | None) -> tuple[str, Span, str]:
    """What to say of a bit beside a field that doesn't have it."""
    register = REGISTER_OF_BIT[bit.text]
    ask = f"ask `{register} & {bit.text}`, or "
    if held is None:
        fact = f"`{bit.text}` is a bit of {register}, and the bits of `{field}` have no names"
        return fact, bit.span, ask + "give a number"
    other = f", not of {held}" if field == held else f", and `{field}` a value of {held}"
    return f"`{bit.text}` is a bit of {register}{other}", bit.span, ask + f"name a bit of {held}"
