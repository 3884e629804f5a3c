"""What a policy file says, as frozen data: the tree that the parser builds and the compiler reads.

The tree knows the shape of the language and none of its words. Wherever an effect, an access, an event, a register,
a bit or an image is named, it holds a `Word`: the text as written and its place, to be looked up by others.

Every node carries the `span` it was read from. Spans, and the spelling of numbers, take no part in comparison, so two
trees are equal when the two texts say the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import datetime

    from policyc.diagnostics import Source, Span

__all__ = [
    "AccessCase",
    "AccessRule",
    "And",
    "BitOp",
    "Call",
    "Case",
    "Clauses",
    "Compare",
    "Complement",
    "Date",
    "Duration",
    "Effect",
    "EventCase",
    "EventPattern",
    "EventRule",
    "Exemption",
    "Expression",
    "Header",
    "Import",
    "InPlace",
    "InjectEffect",
    "Let",
    "LiteralPlace",
    "ModulePlace",
    "NamePlace",
    "Node",
    "Not",
    "Number",
    "Or",
    "Pair",
    "PhysicalPlace",
    "PinEffect",
    "Place",
    "PlainEffect",
    "Platform",
    "PolicyFile",
    "RateLimit",
    "RetryEffect",
    "Rule",
    "SectionPlace",
    "Setting",
    "Statement",
    "SymbolPlace",
    "Test",
    "Text",
    "VirtualPlace",
    "Watch",
    "Word",
]


# ---- leaves


@dataclass(frozen=True, slots=True)
class Word:
    """A bare word, to be looked up by whoever knows what it may mean. A section keeps its dot: `.text`."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A quoted text, without its quotes."""

    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Number:
    """An integer of at most 64 bits (2**64 itself is allowed: a range may end there); only an offset is negative.

    `text` is the spelling without sign, such as `0x10_0000` or `4K`.
    """

    value: int
    text: str = field(compare=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Duration:
    """A time such as `500ms`, `5s`, `2m` or `1h`."""

    milliseconds: int
    text: str = field(compare=False)
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Date:
    """A day of the calendar, written `2027-06-30`."""

    value: datetime.date
    span: Span = field(compare=False, repr=False)


# ---- places: some bytes of the guest


@dataclass(frozen=True, slots=True)
class SectionPlace:
    """A section of an image: `kernel .text`, `nt "PAGE"`."""

    image: Word
    section: Word | Text
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ModulePlace:
    """A section of a loaded module: `module ext4 .text`, `module "win32k.sys" "INIT"`."""

    module: Word | Text
    section: Word | Text
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SymbolPlace:
    """A symbol of an image, or all whose names match: `kernel:x`, `kernel:x + 16 size 8`, `kernel:ftrace_*`.

    `offset.value` is signed. Without `size` the symbol's own size counts.
    """

    image: Word
    symbol: Word
    offset: Number | None
    size: Number | None
    span: Span = field(compare=False, repr=False)

    @property
    def is_glob(self) -> bool:
        """Whether the name is a pattern. Only `*` is a wildcard: `?` occurs in decorated C++ names."""
        return "*" in self.symbol.text


@dataclass(frozen=True, slots=True)
class PhysicalPlace:
    """Guest physical addresses: `physical 0x1000..0x2000` (half-open) or `physical 0x1000 size 4K`.

    Exactly one of `end` and `size` is given.
    """

    start: Number
    end: Number | None
    size: Number | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class VirtualPlace:
    """Guest virtual addresses, written as physical ones are; exactly one of `end` and `size` is given."""

    start: Number
    end: Number | None
    size: Number | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class LiteralPlace:
    """One guest virtual address: `0xffffffffc0401000`."""

    address: Number
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NamePlace:
    """A place by name: one that a `let` gives, or `idt`, `gdt`."""

    name: Word
    span: Span = field(compare=False, repr=False)


Place: TypeAlias = SectionPlace | ModulePlace | SymbolPlace | PhysicalPlace | VirtualPlace | LiteralPlace | NamePlace


# ---- expressions: conditions over the fields of an event


@dataclass(frozen=True, slots=True)
class Or:
    """True if one of two or more operands is."""

    operands: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class And:
    """True if all of two or more operands are."""

    operands: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Not:
    """True if its operand isn't."""

    operand: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Compare:
    """`left OP right`, where `operator.text` is one of `==`, `!=`, `<`, `<=`, `>`, `>=`."""

    left: Expression
    operator: Word
    right: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class InPlace:
    """`value in PLACE`: an address lies in a place."""

    value: Expression
    place: Place
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class BitOp:
    """Two or more operands joined bit by bit; `operator` is `|` or `&`."""

    operator: str
    operands: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Complement:
    """All bits of the operand turned over: `~wp`."""

    operand: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of one argument: `clears(smep | smap)`."""

    function: Word
    argument: Expression
    span: Span = field(compare=False, repr=False)


Expression: TypeAlias = Or | And | Not | Compare | InPlace | BitOp | Complement | Call | Word | Number


# ---- effects


@dataclass(frozen=True, slots=True)
class PlainEffect:
    """An effect without argument, such as `deny`."""

    word: Word
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class InjectEffect:
    """`inject V`; `word` is the keyword's own place."""

    word: Word
    vector: Word | Number
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class PinEffect:
    """`pin BIT | BIT`; `word` is the keyword's own place."""

    word: Word
    bits: tuple[Word, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RetryEffect:
    """`retry N then EFFECT`; `word` is the keyword's own place."""

    word: Word
    count: Number
    then: Effect
    span: Span = field(compare=False, repr=False)


Effect: TypeAlias = PlainEffect | InjectEffect | PinEffect | RetryEffect


# ---- clauses


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`at most COUNT per UNIT`."""

    count: Number
    unit: Word
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Exemption:
    """`except from CODE when CONDITION because "…" owner "…" until DATE`: `origin` or `guard` is given, or both."""

    origin: tuple[Place, ...]
    guard: Expression | None
    reason: Text
    owner: Text | None
    until: Date | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Clauses:
    """What follows the sentence of a rule or a watch. The order in which clauses were written doesn't count.

    `guard` is the `when` of either kind of rule, though an event's stands before its effect. `origin` is empty where
    there is no `from`. `span` runs from the first clause to the last, and is empty behind the sentence without any.
    """

    span: Span = field(compare=False, repr=False)
    origin: tuple[Place, ...] = ()
    guard: Expression | None = None
    mechanism: Word | None = None
    reason: Text | None = None
    owner: Text | None = None
    overriding: tuple[Text, ...] = ()
    exemptions: tuple[Exemption, ...] = ()
    severity: Word | None = None
    tags: tuple[Text, ...] = ()
    limit: RateLimit | None = None
    mode: Word | None = None


# ---- statements


@dataclass(frozen=True, slots=True)
class Platform:
    """`for OS ARCH`."""

    os: Word
    arch: Word
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Header:
    """`policy "NAME" version N for OS ARCH mode M`; what follows the name is optional, in any order."""

    name: Text
    version: Number | None
    platform: Platform | None
    mode: Word | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Import:
    """`import "PATH"`."""

    path: Text
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Let:
    """`let NAME = PLACE, PLACE`."""

    name: Word
    places: tuple[Place, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AccessRule:
    """`LABEL: EFFECT ACCESS, ACCESS to PLACE, PLACE CLAUSES`."""

    label: Word | None
    effect: Effect
    accesses: tuple[Word, ...]
    places: tuple[Place, ...]
    clauses: Clauses
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """`N/M`, as in `hypercall 34/24`."""

    first: Number
    second: Number
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EventPattern:
    """The name of an event and what narrows it: `msr lstar`, `idtr write`, `hypercall 34/24`, `vcpu created`."""

    name: Word
    arguments: tuple[Word | Number | Pair, ...]
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EventRule:
    """`LABEL: on EVENT when CONDITION EFFECT CLAUSES`; the condition is `clauses.guard`."""

    label: Word | None
    event: EventPattern
    effect: Effect
    clauses: Clauses
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Watch:
    """`LABEL: watch PLACE, PLACE every TIME restore CLAUSES`; `restore` is the word itself, if written."""

    label: Word | None
    places: tuple[Place, ...]
    period: Duration
    restore: Word | None
    clauses: Clauses
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """`NAME = VALUE` in a test case: a field of the event."""

    name: Word
    value: Expression
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class AccessCase:
    """`ACCESS PLACE from PLACE with FIELD = VALUE => EFFECT`."""

    access: Word
    place: Place
    origin: Place | None
    settings: tuple[Setting, ...]
    expected: Effect
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EventCase:
    """`on EVENT with FIELD = VALUE => EFFECT`."""

    event: EventPattern
    settings: tuple[Setting, ...]
    expected: Effect
    span: Span = field(compare=False, repr=False)


Case: TypeAlias = AccessCase | EventCase


@dataclass(frozen=True, slots=True)
class Test:
    """`test "NAME" { CASES }`."""

    name: Text
    cases: tuple[Case, ...]
    span: Span = field(compare=False, repr=False)


Rule: TypeAlias = AccessRule | EventRule
Statement: TypeAlias = Import | Let | AccessRule | EventRule | Watch | Test


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One file: its header, if it has one, and its statements in the order written."""

    source: Source = field(compare=False, repr=False)
    header: Header | None
    statements: tuple[Statement, ...]
    span: Span = field(compare=False, repr=False)

    @property
    def imports(self) -> tuple[Import, ...]:
        """The imports, in the order written."""
        return tuple(s for s in self.statements if isinstance(s, Import))

    @property
    def lets(self) -> tuple[Let, ...]:
        """The names given to places, in the order written."""
        return tuple(s for s in self.statements if isinstance(s, Let))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of both kinds, in the order written."""
        return tuple(s for s in self.statements if isinstance(s, (AccessRule, EventRule)))

    @property
    def watches(self) -> tuple[Watch, ...]:
        """The watches, in the order written."""
        return tuple(s for s in self.statements if isinstance(s, Watch))

    @property
    def tests(self) -> tuple[Test, ...]:
        """The test blocks, in the order written."""
        return tuple(s for s in self.statements if isinstance(s, Test))


Node: TypeAlias = (
    PolicyFile
    | Header
    | Platform
    | Statement
    | Case
    | Setting
    | EventPattern
    | Pair
    | Clauses
    | Exemption
    | RateLimit
    | Effect
    | Place
    | Expression
    | Text
    | Duration
    | Date
)
