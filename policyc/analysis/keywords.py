"""The words that are part of the grammar, and what each does in a sentence.

The grammar decides which words there are; a test holds this table against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

__all__ = ["FUNCTIONS", "KEYWORDS", "Role"]


class Role(Enum):
    """What a keyword does, for those who colour or sort them."""

    STATEMENT = "statement"
    CLAUSE = "clause"
    EFFECT = "effect"
    PLACE = "place"
    OPERATOR = "operator"
    JOINT = "joint"
    """Holds two parts of a sentence together."""


KEYWORDS: Mapping[str, tuple[Role, str]] = MappingProxyType(
    {
        "policy": (Role.STATEMENT, 'Begins the header, which names the policy: `policy "name"`.'),
        "version": (Role.CLAUSE, "The version of the policy, a number in its header."),
        "for": (Role.CLAUSE, "Which guests the policy is about, in its header: `for linux x86_64`."),
        "mode": (
            Role.CLAUSE,
            "`mode enforce` carries verdicts out; `mode monitor` lets everything through and records.",
        ),
        "import": (Role.STATEMENT, "Takes in another policy file, which stays a policy of its own."),
        "let": (Role.STATEMENT, "Gives places a name: `let tables = idt, kernel:sys_call_table`."),
        "on": (Role.STATEMENT, "Begins a rule, or a case of a test, about an event: `on hypercall 34/24 log`."),
        "watch": (Role.STATEMENT, "Compares places with what they were, again and again: `watch idt every 1s`."),
        "test": (Role.STATEMENT, "Begins a block of cases, each with the verdict that is expected."),
        "to": (Role.JOINT, "Stands between an access and its place. It means the same as `of`."),
        "of": (Role.JOINT, "Stands between an access and its place. It means the same as `to`."),
        "then": (Role.JOINT, "Stands before the effect that follows the last `retry`."),
        "with": (Role.JOINT, "Gives fields of the event values, in a case of a test: `with old = smep, new = 0`."),
        "every": (Role.JOINT, "How often a `watch` looks: `every 500ms`, `every 5s`."),
        "when": (Role.CLAUSE, "The condition under which a rule or an exception applies."),
        "from": (Role.CLAUSE, "The code that an access or event comes from."),
        "except": (Role.CLAUSE, "An exception: code, a condition or both, and the reason behind `because`."),
        "because": (Role.CLAUSE, "The reason, in quotes. An exception must give one."),
        "owner": (Role.CLAUSE, "Who answers for an exception, in quotes."),
        "until": (Role.CLAUSE, "The last day that an exception is meant for. It never changes a verdict."),
        "by": (Role.CLAUSE, "How a `deny` is carried out: `by skip` or `by fault`."),
        "severity": (Role.CLAUSE, "How much a record of the rule weighs. Without it, `medium`."),
        "tag": (Role.CLAUSE, "A text for the record, in quotes. It may stand several times."),
        "at": (Role.CLAUSE, "Begins `at most N per UNIT`."),
        "most": (Role.CLAUSE, "Continues `at most N per UNIT`, which thins a rule's records and never its verdicts."),
        "per": (Role.CLAUSE, "Stands before the unit of `at most N per UNIT`."),
        "overriding": (Role.CLAUSE, "Another policy whose rules an `allow` sets aside too, by its name in quotes."),
        "inject": (Role.EFFECT, "Stands before an exception: keep it from happening and raise that in the guest."),
        "pin": (Role.EFFECT, "Stands before bits: let the register be written, with these bits kept where set."),
        "retry": (Role.EFFECT, "`retry N then EFFECT`: let the guest try the same again, N times at most."),
        "restore": (Role.EFFECT, "Behind a `watch`: write back what was there."),
        "module": (Role.PLACE, "A section of a loadable module: `module ext4 .text`."),
        "physical": (Role.PLACE, "Guest physical addresses: `physical 0x100000 size 4K`."),
        "virtual": (Role.PLACE, "Guest virtual addresses: `virtual 0xffffffff81000000..0xffffffff81001000`."),
        "size": (Role.PLACE, "How many bytes, behind a place: `kernel:x + 16 size 8`. In conditions, a field."),
        "and": (Role.OPERATOR, "Both conditions hold. It binds tighter than `or`."),
        "or": (Role.OPERATOR, "One of the conditions holds."),
        "not": (Role.OPERATOR, "The condition behind it doesn't hold. It binds tighter than `and`."),
        "in": (Role.OPERATOR, "An address lies in a place: `rip in kernel .text`."),
    }
)

FUNCTIONS: Mapping[str, str] = MappingProxyType(
    {
        "clears": "Whether any of these bits goes from 1 to 0: `clears(smep | smap)`.",
        "sets": "Whether any of these bits goes from 0 to 1: `sets(wp)`.",
    }
)
"""The functions of conditions. Each is about the change that an event with `old` and `new` tells of."""
