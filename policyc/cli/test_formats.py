"""What came of a run of tests, for people and for machines.

The JUnit XML that CI systems read has no standard; elements and attributes are those of the `xunit1` family of pytest's
`--junit-xml` (pytest documentation, `junit_family`), which says in which file and line a case stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import click

from policyc.analysis.report import BlockReport, CaseReport, PartText, Report
from policyc.analysis.wording import count, effect_text
from policyc.cli.diagnostic_formats import render
from policyc.cli.policy_files import PolicyFiles
from policyc.diagnostics import Diagnostic, Span, printable

if TYPE_CHECKING:
    from policyc.analysis.report import Run

__all__ = ["FORMATS", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What there is to say: what came of the tests, or why they couldn't be run.

    Attributes:
        policies: the files, for the names that the user knows them by.
        findings: errors in the policies; then there is no report.
    """

    policies: PolicyFiles
    report: Report | None = None
    findings: Sequence[Diagnostic] = field(default=())


Renderer = Callable[[Outcome, bool], str]


# ---- text


def _text(outcome: Outcome, color: bool) -> str:
    report = outcome.report
    if report is None:
        return render(outcome.findings, format="text", color=color)
    failures = render(outcome.policies.as_typed(report.failures), format="text", color=color)
    lines = [_summary(report, color), *_coverage_lines(outcome, report), *_mutation_lines(outcome, report)]
    return failures + "".join(f"{line}\n" for line in lines)


def _summary(report: Report, color: bool) -> str:
    cases = [case for test in report.tests for case in test.cases]
    failed = sum(case.failure is not None for case in cases)
    text = f"{count(len(report.tests), 'test')}, {count(len(cases), 'case')}: "
    return text + (_styled(f"{failed} failed", "red", color) if failed else _styled("all passed", "green", color))


def _styled(text: str, style: str, color: bool) -> str:
    return click.style(text, fg=style, bold=True) if color else text


def _coverage_lines(outcome: Outcome, report: Report) -> Iterator[str]:
    if report.coverage is None:
        return
    done = report.coverage.total - len(report.coverage.missed)
    yield f"{done} of {report.coverage.total} rules and exceptions exercised: {report.coverage.percent} %"
    yield from _part_lines(outcome, "not exercised", report.coverage.missed)


def _mutation_lines(outcome: Outcome, report: Report) -> Iterator[str]:
    if report.unnoticed is None:
        return
    if not report.unnoticed:
        yield "take any rule or exception away, and a test fails"
    yield from _part_lines(outcome, "take away one of these, and no test fails", report.unnoticed)


def _part_lines(outcome: Outcome, heading: str, parts: Sequence[PartText]) -> Iterator[str]:
    if not parts:
        return
    yield f"{heading}:"
    places = [_place(outcome, part.span) for part in parts]
    width = max(map(len, places))
    for part, place in zip(parts, places, strict=True):
        yield f"  {place.ljust(width)}  {printable(part.rule)}: {printable(part.text)}"


def _place(outcome: Outcome, span: Span | None) -> str:
    return "" if span is None else str(outcome.policies.span_as_typed(span))


# ---- JSON


def _json(outcome: Outcome, color: bool) -> str:
    document: dict[str, object] = {
        "version": 1,
        "diagnostics": [finding.to_json() for finding in outcome.findings],
        "tests": [],
        "coverage": None,
        "unnoticed": None,
    }
    if outcome.report is not None:
        report = outcome.report
        document["tests"] = [_test_json(outcome, run, test) for run in report.runs for test in run.tests]
        if report.coverage is not None:
            document["coverage"] = {
                "total": report.coverage.total,
                "percent": report.coverage.percent,
                "missed": [_part_json(outcome, part) for part in report.coverage.missed],
            }
        if report.unnoticed is not None:
            document["unnoticed"] = [_part_json(outcome, part) for part in report.unnoticed]
    return json.dumps(document, indent=2) + "\n"


def _test_json(outcome: Outcome, run: Run, test: BlockReport) -> dict[str, object]:
    return {
        "name": test.test.name,
        "passed": test.passed,
        "span": outcome.policies.span_as_typed(test.test.span).to_json(),
        "cases": [_case_json(outcome, run, case) for case in test.cases],
    }


def _case_json(outcome: Outcome, run: Run, case: CaseReport) -> dict[str, object]:
    resolved, failing = case.result.case, case.result.failing
    event = resolved.event.key if resolved.event is not None else None
    said = failing or (case.result.answers[0] if case.result.answers else None)
    document: dict[str, object] = {
        "case": " ".join(resolved.span.text.split()),
        "span": outcome.policies.span_as_typed(resolved.span).to_json(),
        "passed": case.failure is None,
        "expected": effect_text(resolved.effect, event),
        "failure": None if case.failure is None else outcome.policies.as_typed([case.failure])[0].to_json(),
    }
    if said is not None:
        verdict, plan = said.verdict, run.unit.plan

        def named(indices: Sequence[int]) -> list[dict[str, str]]:
            rules = (plan.rules[index] for index in indices)
            return [{"policy": plan.policies[rule.policy].name, "rule": rule.id} for rule in rules]

        document |= {
            "got": effect_text(verdict.would, event),
            "reply": effect_text(verdict.effect, event),
            "rules": named(verdict.rules),
            "set_aside": named(verdict.set_aside),
            "exempted": named(verdict.exempted),
        }
    return document


def _part_json(outcome: Outcome, part: PartText) -> dict[str, object]:
    return {
        "policy": part.part.policy,
        "rule": part.part.rule,
        "exception": part.part.exception,
        "text": part.text,
        "span": None if part.span is None else outcome.policies.span_as_typed(part.span).to_json(),
    }


# ---- JUnit


def _junit(outcome: Outcome, color: bool) -> str:
    suites = ElementTree.Element("testsuites", name="policyc")
    if outcome.report is None:
        suite = _suite(suites, "policies", tests=1, errors=1)
        case = ElementTree.SubElement(suite, "testcase", classname="policies", name="compile")
        error = ElementTree.SubElement(case, "error", message="the policies have errors", type="diagnostic")
        error.text = render(outcome.findings, format="text")
    else:
        for run in outcome.report.runs:
            if run.tests:
                _junit_suite(suites, outcome, run)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _suite(suites: ElementTree.Element, name: str, **counts: int) -> ElementTree.Element:
    numbers = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0} | counts
    return ElementTree.SubElement(suites, "testsuite", {"name": name} | {key: str(n) for key, n in numbers.items()})


def _junit_suite(suites: ElementTree.Element, outcome: Outcome, run: Run) -> None:
    cases = [(test, case) for test in run.tests for case in test.cases]
    file = printable(outcome.policies.span_as_typed(run.tests[0].test.span).source.name)
    suite = _suite(suites, file, tests=len(cases), failures=sum(case.failure is not None for _, case in cases))
    for test, case in cases:
        span = case.result.case.span
        attributes = {
            "classname": printable(test.test.name),
            "name": printable(" ".join(span.text.split())),
            "file": file,
            "line": str(span.source.position(span.start)[0]),
        }
        element = ElementTree.SubElement(suite, "testcase", attributes)
        if case.failure is not None:
            message = printable(case.failure.message)
            failure = ElementTree.SubElement(element, "failure", message=message, type=case.failure.code)
            failure.text = render(outcome.policies.as_typed([case.failure]), format="text")


# ---- what other commands' findings can be too


def _as_findings(format: str) -> Renderer:
    def rendered(outcome: Outcome, color: bool) -> str:
        failures = outcome.report.failures if outcome.report is not None else ()
        return render([*outcome.findings, *outcome.policies.as_typed(failures)], format=format, color=color)

    return rendered


FORMATS: Mapping[str, Renderer] = MappingProxyType(
    {
        "text": _text,
        "json": _json,
        "junit": _junit,
        "sarif": _as_findings("sarif"),
        "github": _as_findings("github"),
    }
)
"""Each form by the name that `--format` takes; the renderers get whether to colour."""
