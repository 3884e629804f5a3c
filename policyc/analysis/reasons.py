"""Why a verdict is what it is: asked of `decide` itself, with the table changed where a reason is suspected.

Nothing here decides anything. Which exception lifted a rule, for instance, is found by asking again about the rule with
one exception at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from enum import Enum

from policyc.analysis.probes import Asked
from policyc.catalog import Access, EffectKind
from policyc.plan.accesses import MemoryAccess
from policyc.plan.conditions import fields_of
from policyc.plan.evaluation import Fields, Test
from policyc.plan.model import Exemption, Plan, Rule
from policyc.plan.tables import guards_of
from policyc.plan.verdict_table import VerdictTable
from policyc.plan.verdicts import Verdict, decide

__all__ = [
    "WhyNot",
    "bystanders",
    "holes_over",
    "lifting",
    "mildest",
    "missing_fields",
    "strictest_first",
    "table_with",
    "table_without",
    "why_not",
]


class WhyNot(Enum):
    """Why a rule about these very bytes, or this very event, has no say."""

    ACCESS = "it is about another kind of access"
    ORIGIN = "its `from` names other code"
    CONDITION = "its condition doesn't hold"
    BOTH = "its `from` names other code, and its condition doesn't hold"


def lifting(table: VerdictTable, asked: Asked, index: int, *, mild: bool = False) -> tuple[int, ...]:
    """The exceptions of the rule, by number, each of which alone lifts it.

    Args:
        mild: whether a field without value counts as what makes the verdict milder.
    """
    rule = table.rules[index]

    def lifts(exemption: Exemption) -> bool:
        alone = table_with(table, index, replace(rule, exemptions=(exemption,)))
        return _is_lifted(mildest(alone) if mild else alone, asked, index)

    return tuple(number for number, exemption in enumerate(rule.exemptions) if lifts(exemption))


def strictest_first(plan: Plan, verdict: Verdict) -> tuple[int, ...]:
    """The rules that the verdict rests on, in the order of what each would do if it were enforced."""
    by_number = sorted(verdict.rules)
    return tuple(sorted(by_number, key=lambda index: plan.rules[index].effect.strictness, reverse=True))


def holes_over(table: VerdictTable, verdict: Verdict, index: int) -> tuple[int, ...]:
    """The `allow` rules that set the rule aside."""
    policy = table.rules[index].policy
    return tuple(
        hole
        for hole in verdict.rules
        if table.rules[hole].effect.kind is EffectKind.ALLOW
        and (table.rules[hole].policy == policy or table.policies[policy] in table.rules[hole].overriding)
    )


def bystanders(table: VerdictTable, asked: Asked, verdict: Verdict) -> tuple[int, ...]:
    """The rules about these bytes or this event that the verdict doesn't mention."""
    mentioned = {*verdict.rules, *verdict.set_aside, *verdict.exempted}
    return tuple(sorted(set(_rules_over(table, asked)) - mentioned))


def why_not(table: VerdictTable, asked: Asked, index: int) -> WhyNot:
    """Why the rule, a bystander, doesn't apply."""
    rule = table.rules[index]
    if isinstance(asked, MemoryAccess) and not rule.access & asked.access:
        return WhyNot.ACCESS
    if _has_say(table_with(table, index, replace(rule, origin=())), asked, index):
        return WhyNot.ORIGIN
    if _has_say(table_with(table, index, replace(rule, when=None)), asked, index):
        return WhyNot.CONDITION
    return WhyNot.BOTH


def table_with(table: VerdictTable, index: int, rule: Rule) -> VerdictTable:
    """The table with another rule in the place of one: with other clauses, over the same bytes."""
    guards = dict(table.guards)
    guards.pop(index, None)
    guards.update((index, guard) for guard in guards_of((rule,), table.code).values())
    return replace(table, rules=(*table.rules[:index], rule, *table.rules[index + 1 :]), guards=guards)


def mildest(table: VerdictTable) -> VerdictTable:
    """The table of the same rules, where a condition that turns on a field without value makes the verdict milder.

    `decide` counts it as what makes the verdict stricter. Where both tables agree, the field doesn't matter.
    """
    guards = {}
    for index, guard in table.guards.items():
        weakens = table.rules[index].effect.kind is EffectKind.ALLOW
        exemptions = tuple(_settled(test, True) for test in guard.exemptions)
        guards[index] = replace(guard, when=_settled(guard.when, weakens), exemptions=exemptions)
    return replace(table, guards=guards)


def table_without(table: VerdictTable, index: int) -> VerdictTable:
    """The table of the plan without the rule."""
    rule = table.rules[index]
    if rule.event is None:
        # A rule about no access applies to none.
        return table_with(table, index, replace(rule, access=Access.NONE))
    left = tuple(other for other in table.events[rule.event] if other != index)
    return replace(table, events={**table.events, rule.event: left})


def _settled(test: Test | None, unknown: bool) -> Test | None:
    """The condition, with `unknown` where it has no answer."""
    if test is None:
        return None

    def settled(fields: Fields) -> bool:
        answer = test(fields)
        return unknown if answer is None else answer

    return settled


def missing_fields(table: VerdictTable, asked: Asked, missed: Collection[str]) -> tuple[str, ...]:
    """The fields that the conditions which read one of `missed` want and don't get; one unknown hides the next."""
    conditions = (
        condition
        for index in _rules_over(table, asked)
        for condition in (table.rules[index].when, *(e.when for e in table.rules[index].exemptions))
        if condition is not None
    )
    wanted = {word for fields in map(fields_of, conditions) if fields & set(missed) for word in fields}
    return tuple(sorted(word for word in wanted if asked.field(word) is None))


def _is_lifted(table: VerdictTable, asked: Asked, index: int) -> bool:
    answer = decide(table, asked)
    return isinstance(answer, Verdict) and index in answer.exempted


def _has_say(table: VerdictTable, asked: Asked, index: int) -> bool:
    answer = decide(table, asked)
    return isinstance(answer, Verdict) and index in (*answer.rules, *answer.set_aside, *answer.exempted)


def _rules_over(table: VerdictTable, asked: Asked) -> Iterator[int]:
    if not isinstance(asked, MemoryAccess):
        yield from table.events.get(asked.event, ())
        return
    space = table.spaces.get(asked.base)
    if space is None or asked.size is None:
        return
    for cell in space.touched(asked.start, asked.start + asked.size):
        if cell >= 0:
            for group in table.cells[cell]:
                yield from group
