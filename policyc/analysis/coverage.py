"""Which rules and exceptions the cases of tests exercise, and which nobody would miss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from policyc.analysis.cases import Answer, CaseResult, Tables, Unit, answer, meets
from policyc.analysis.reasons import lifting, table_with, table_without
from policyc.plan.model import Plan
from policyc.plan.verdict_table import VerdictTable

__all__ = ["Part", "exercised", "noticed", "parts_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """A rule, or one of its exceptions: what a test may exercise, and what may be taken away.

    Two plans that hold the same policy have the same parts of it.

    Attributes:
        policy: the name of its policy.
        rule: the rule's id.
        exception: the number of the exception within its rule; None for the rule itself.
    """

    policy: str
    rule: str
    exception: int | None = None


def parts_of(plan: Plan) -> Mapping[Part, int]:
    """Every rule and every exception of the plan, with the index of the rule; a rule comes before its exceptions."""
    parts: dict[Part, int] = {}
    for index, rule in enumerate(plan.rules):
        policy = plan.policies[rule.policy].name
        parts[Part(policy, rule.id)] = index
        for number in range(len(rule.exemptions)):
            parts[Part(policy, rule.id, number)] = index
    return parts


def exercised(unit: Unit, results: Iterable[CaseResult]) -> frozenset[Part]:
    """The rules that applied in one case at least, and the exceptions that lifted their rule there."""
    rules: set[int] = set()
    lifted: set[tuple[int, int]] = set()
    for said in (said for result in results for said in result.answers):
        for mild, parts in ((False, said.parts), (True, said.milder_parts)):
            for asked, verdict in parts:
                rules.update(verdict.rules, verdict.set_aside)
                for index in verdict.exempted:
                    numbers = lifting(unit.tables.verdicts, asked, index, mild=mild)
                    lifted.update((index, number) for number in numbers)
    return frozenset(
        part
        for part, index in parts_of(unit.plan).items()
        if (index in rules if part.exception is None else (index, part.exception) in lifted)
    )


def noticed(unit: Unit, results: Iterable[CaseResult]) -> Iterator[tuple[Part, bool]]:
    """For each rule and exception, whether a case of the unit fails when it is taken away.

    The cases must have passed with it.
    """
    touching: dict[int, list[tuple[CaseResult, Answer]]] = {}
    for result in results:
        for said in result.answers:
            for index in said.mentioned:
                touching.setdefault(index, []).append((result, said))
    for part, index in parts_of(unit.plan).items():
        yield part, index in touching and _is_missed(unit, part.exception, index, touching[index])


def _is_missed(unit: Unit, exception: int | None, index: int, touching: Iterable[tuple[CaseResult, Answer]]) -> bool:
    tables = Tables(_without(unit.tables.verdicts, index, exception))
    return any(not meets(result.case.effect, answer(said.probe, tables)) for result, said in touching)


def _without(table: VerdictTable, index: int, exception: int | None) -> VerdictTable:
    if exception is None:
        return table_without(table, index)
    rule = table.rules[index]
    left = (*rule.exemptions[:exception], *rule.exemptions[exception + 1 :])
    return table_with(table, index, replace(rule, exemptions=left))
