"""Runs the cases of test blocks against a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from policyc.analysis.probes import Asked, Probe, TooManyProbesError, probes_of
from policyc.analysis.reasons import mildest, missing_fields
from policyc.catalog import EffectKind
from policyc.compiler.resolved import ResolvedCase, ResolvedTest
from policyc.diagnostics import Source
from policyc.plan.model import Effect, Plan
from policyc.plan.tables import link_time_table
from policyc.plan.verdict_table import VerdictTable
from policyc.plan.verdicts import Verdict, decide

__all__ = [
    "Answer",
    "CaseResult",
    "Tables",
    "Unit",
    "answer",
    "meets",
    "run_case",
    "run_test",
    "strictness",
    "unit_of",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the policy says to one probe. A field that isn't given counts as what is stricter.

    Attributes:
        asked: the part of the probe that decided: the one that the strictest verdict is about.
        verdict: on that part.
        parts: every part of the probe, with the verdict on it.
        mildest: what would come of it if fields that aren't given counted as what is milder.
        milder_parts: every part of the probe with the verdict on it then; empty where no field was asked for in vain.
        missing: the fields that weren't given, where that makes a difference.
    """

    probe: Probe
    asked: Asked
    verdict: Verdict
    parts: tuple[tuple[Asked, Verdict], ...]
    mildest: Effect | None
    milder_parts: tuple[tuple[Asked, Verdict], ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def mentioned(self) -> frozenset[int]:
        """Every rule that has to do with one of the verdicts."""
        verdicts = [verdict for _, verdict in (*self.parts, *self.milder_parts)]
        return frozenset(index for v in verdicts for index in (*v.rules, *v.set_aside, *v.exempted))


@dataclass(frozen=True)
class Tables:
    """One plan's verdicts, and, made when it is first asked for, those where what isn't given makes them milder."""

    verdicts: VerdictTable

    @cached_property
    def mildest(self) -> VerdictTable:
        """The table where a field that isn't given counts as what is milder."""
        return mildest(self.verdicts)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How one case went.

    Attributes:
        answers: to all of its probes; those that the case expected otherwise make it fail.
        failing: the first of those.
        too_many: whether the case comes to more probes than are asked, and failed for it.
    """

    case: ResolvedCase
    answers: tuple[Answer, ...]
    failing: Answer | None = None
    too_many: bool = False

    @property
    def passed(self) -> bool:
        """Whether the policy decides as the case expects."""
        return self.failing is None and not self.too_many


@dataclass(frozen=True)
class Unit:
    """The tests of one file and the plan of that file and its imports.

    Attributes:
        source: the file that the tests stand in.
        tables: the plan's verdicts at slide 0.
        sources: the files of the plan's rules, by the names that the plan has for them.
    """

    source: Source
    plan: Plan
    tables: Tables
    tests: tuple[ResolvedTest, ...]
    sources: Mapping[str, Source]


def unit_of(source: Source, plan: Plan, tests: tuple[ResolvedTest, ...], sources: Mapping[str, Source]) -> Unit:
    """The unit, with its tables."""
    return Unit(source, plan, Tables(link_time_table(plan)), tests, sources)


def run_test(test: ResolvedTest, unit: Unit) -> tuple[CaseResult, ...]:
    """Run the cases of one of the unit's tests, in the order written."""
    return tuple(run_case(case, unit.tables, unit.plan.guest.image_base) for case in test.cases)


def run_case(case: ResolvedCase, tables: Tables, image_base: int) -> CaseResult:
    """Run one case."""
    answers: list[Answer] = []
    too_many = False
    try:
        for probe in probes_of(case, tables.verdicts, image_base):
            answers.append(answer(probe, tables))
    except TooManyProbesError:
        too_many = True
    failing = next((said for said in answers if not meets(case.effect, said)), None)
    return CaseResult(case, tuple(answers), failing, too_many)


def answer(probe: Probe, tables: Tables) -> Answer:
    """Ask `decide` about the probe; of the two parts of one access, the stricter verdict is what comes of it."""
    probe.fields.missed.clear()
    parts = tuple((asked, _decided(tables.verdicts, asked)) for asked in probe.parts)
    asked, verdict = max(parts, key=lambda part: strictness(part[1].would))
    if not probe.fields.missed:
        return Answer(probe, asked, verdict, parts, verdict.would)
    milder = tuple((asked, _decided(tables.mildest, asked)) for asked in probe.parts)
    mild = max((verdict.would for _, verdict in milder), key=strictness)
    if mild == verdict.would:
        return Answer(probe, asked, verdict, parts, mild, milder)
    missed = frozenset(probe.fields.missed)
    missing = {word for part in probe.parts for word in missing_fields(tables.verdicts, part, missed)}
    return Answer(probe, asked, verdict, parts, mild, milder, tuple(sorted(missing)))


def meets(expected: Effect, said: Answer) -> bool:
    """Whether the policy says what a case expects, whatever value a field has that the case doesn't give.

    What counts is `would`, so that a policy in monitor mode is tested like one that is enforced.
    """
    return _is(expected, said.verdict.would) and _is(expected, said.mildest)


def strictness(effect: Effect | None) -> tuple[int, int, int]:
    """Sorts effects as overlapping rules are, with no effect below any but `allow`."""
    return (0, 0, 0) if effect is None else effect.strictness


def _is(expected: Effect, effect: Effect | None) -> bool:
    """Whether the effect is the expected one, in the words of a case.

    `deny` is met in whichever way it is carried out, `by skip` and `by fault` too; `inject gp` is the same as `deny by
    fault`.
    """
    got = effect or Effect(EffectKind.ALLOW)
    if got.retries != expected.retries:
        return False
    if expected.kind is EffectKind.DENY:
        return got.kind in (EffectKind.SKIP, EffectKind.DENY, EffectKind.FAULT)
    if expected.kind is EffectKind.INJECT and got.kind is EffectKind.FAULT:
        return got.argument == expected.argument
    return got == expected


def _decided(table: VerdictTable, asked: Asked) -> Verdict:
    """The verdict, which every probe gives all the facts for.

    Raises:
        AssertionError: `decide` asks for a fact all the same.
    """
    said = decide(table, asked)
    assert isinstance(said, Verdict), f"a case can't give {said.value}"
    return said
