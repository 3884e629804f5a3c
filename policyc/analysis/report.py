"""Everything that came of a run of tests: how each case went, what was exercised, what nobody would miss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from policyc.analysis.cases import CaseResult, Unit, run_test
from policyc.analysis.coverage import Part, exercised, noticed, parts_of
from policyc.analysis.failures import failure, span_of_rule
from policyc.analysis.wording import exemption_text, rule_text
from policyc.compiler.resolved import ResolvedTest
from policyc.diagnostics import Diagnostic, Span
from policyc.guest.profile import Profile

__all__ = [
    "BlockReport",
    "CaseReport",
    "Coverage",
    "PartText",
    "Report",
    "Run",
    "coverage_of",
    "run_unit",
    "text_of_parts",
    "unnoticed_of",
]


@dataclass(frozen=True, slots=True)
class CaseReport:
    """How a case went, and, where it failed, what is said about it."""

    result: CaseResult
    failure: Diagnostic | None


@dataclass(frozen=True, slots=True)
class BlockReport:
    """How the cases of one test went."""

    test: ResolvedTest
    cases: tuple[CaseReport, ...]

    @property
    def passed(self) -> bool:
        """Whether all of them passed."""
        return all(case.failure is None for case in self.cases)


@dataclass(frozen=True)
class Run:
    """The tests of one unit that were run."""

    unit: Unit
    tests: tuple[BlockReport, ...]

    @property
    def results(self) -> Iterator[CaseResult]:
        """How each case went."""
        return (case.result for test in self.tests for case in test.cases)


@dataclass(frozen=True, slots=True)
class PartText:
    """A rule or exception, for people: where it was written and what it says.

    Attributes:
        span: where the rule was written.
        rule: the rule's id in its policy.
    """

    part: Part
    span: Span | None
    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which rules and exceptions were exercised.

    Attributes:
        missed: those that weren't, an exception behind its rule.
    """

    total: int
    missed: tuple[PartText, ...]

    @property
    def percent(self) -> int:
        """The exercised share, rounded down; all of nothing is 100."""
        return 100 * (self.total - len(self.missed)) // self.total if self.total else 100


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        coverage: None where it wasn't asked for.
        unnoticed: the rules and exceptions that can be taken away without a test failing; None where that wasn't asked
            for, or wasn't tried because a test fails anyway.
    """

    runs: tuple[Run, ...]
    coverage: Coverage | None = None
    unnoticed: tuple[PartText, ...] | None = None

    @property
    def tests(self) -> tuple[BlockReport, ...]:
        """Every test that was run."""
        return tuple(test for run in self.runs for test in run.tests)

    @property
    def failures(self) -> tuple[Diagnostic, ...]:
        """What is said about each case that failed."""
        return tuple(case.failure for test in self.tests for case in test.cases if case.failure is not None)


def run_unit(unit: Unit, profile: Profile, wanted: Callable[[str], bool]) -> Run:
    """Run those of the unit's tests whose names are wanted."""

    def reported(test: ResolvedTest) -> BlockReport:
        results = run_test(test, unit)
        said = (None if result.passed else failure(result, test.name, unit, profile) for result in results)
        return BlockReport(test, tuple(map(CaseReport, results, said)))

    return Run(unit, tuple(reported(test) for test in unit.tests if wanted(test.name)))


def coverage_of(runs: Sequence[Run]) -> Coverage:
    """What the runs exercised, of the rules and exceptions of all their plans."""
    seen = frozenset[Part]().union(*(exercised(run.unit, run.results) for run in runs))
    parts = text_of_parts(run.unit for run in runs)
    return Coverage(len(parts), tuple(text for part, text in parts.items() if part not in seen))


def unnoticed_of(runs: Sequence[Run], tick: Callable[[], None]) -> tuple[PartText, ...]:
    """The rules and exceptions that can be taken away, one at a time, without a case failing; all must have passed.

    `tick` is called after each.
    """
    missed = set()
    for run in runs:
        for part, is_missed in noticed(run.unit, run.results):
            if is_missed:
                missed.add(part)
            tick()
    return tuple(text for part, text in text_of_parts(run.unit for run in runs).items() if part not in missed)


def text_of_parts(units: Iterable[Unit]) -> Mapping[Part, PartText]:
    """The rules and exceptions of all the units' plans, each once."""
    found: dict[Part, PartText] = {}
    for unit in units:
        plan = unit.plan
        for part, index in parts_of(plan).items():
            if part.exception is None:
                text = rule_text(plan, index)
            else:
                text = exemption_text(plan, plan.rules[index].exemptions[part.exception])
            found.setdefault(part, PartText(part, span_of_rule(plan, index, unit.sources), part.rule, text))
    return found
