"""`policyc test`: runs the tests that stand in policy files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from policyc.cli.color import wants_color
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.cli.policy_files import PolicyFiles
from policyc.cli.policy_options import plan_options, read_inputs
from policyc.cli.progress import progress
from policyc.cli.test_formats import FORMATS, Outcome
from policyc.diagnostics import Diagnostic, Severity, has_errors

if TYPE_CHECKING:
    from policyc.analysis.cases import Unit
    from policyc.analysis.report import Report, Run
    from policyc.compiler.options import CheckOptions
    from policyc.guest.profile import Profile

__all__ = ["command"]


@click.command(
    "test",
    epilog=examples(
        "policyc test policies/ --profile kernel.profile",
        "policyc test policies/ --profile kernel.profile --filter 'system call' --format junit",
        "policyc test policies/ --profile kernel.profile --coverage --mutate",
    ),
)
@plan_options(profile_required=True)
@click.option("--filter", metavar="TEXT", help="Run the tests whose name contains TEXT, in any case of letters.")
@click.option("--format", type=click.Choice([*FORMATS]), default="text", show_default=True, help="For whom.")
@click.option("--coverage", is_flag=True, help="Say which rules and exceptions no case exercises.")
@click.option(
    "--coverage-min",
    type=click.IntRange(0, 100),
    metavar="PERCENT",
    help="Fail if less of the rules and exceptions is exercised; implies --coverage.",
)
@click.option(
    "--mutate", is_flag=True, help="Take each rule and exception away in turn, and say without which no test fails."
)
def command(
    files: tuple[str, ...],
    profile: str,
    target: str,
    cpu: str,
    filter: str | None,
    format: str,
    coverage: bool,
    coverage_min: int | None,
    mutate: bool,
) -> ExitCode:
    """Run the tests in policies.

    FILE is a policy file, a folder whose *.policy files are meant, or - for standard input. The tests of a file are
    about that file and what it imports, at the addresses of the profile. A case passes if the policy decides as it
    says, in monitor mode too; `=> allow` says that no rule stops or logs it.

    A case about one address is one access of one byte, or of `size` bytes. A case about a section, a whole symbol or a
    range is about each byte of it. `from` puts the instruction at the first byte of its place; whoever calls a copy
    routine such as memcpy is code that no rule names. A verdict that turns on a field which the case doesn't give
    fails.

    Exit code 1 means that a case failed, that a policy has errors, that less is exercised than --coverage-min asks
    for, or that --mutate found what can be taken away without a test failing.
    """
    from policyc.compiler.options import CheckOptions

    policies, known = read_inputs(files, profile)
    assert known is not None  # the option is required
    units, findings = _compiled(policies, known, CheckOptions(target=target, cpu=cpu, accept_hot_pages=True))
    if has_errors(findings):
        outcome = Outcome(policies, findings=findings)
    else:
        runs = _run(units, known, _wanted(filter))
        outcome = Outcome(policies, report=_report(runs, coverage or coverage_min is not None, mutate))
    click.echo(FORMATS[format](outcome, wants_color(sys.stdout)), nl=False)
    return _code(outcome.report, coverage_min)


def _compiled(policies: PolicyFiles, profile: Profile, options: CheckOptions) -> tuple[list[Unit], list[Diagnostic]]:
    """Each file with its imports as a plan of its own, and the errors."""
    from policyc.analysis.cases import unit_of
    from policyc.compiler.pipeline import compile_policies

    units: list[Unit] = []
    found = [*policies.unreadable]
    with progress("compiling", len(policies.sources)) as tick:
        for source in policies.sources:
            result = compile_policies([source], profile, options, policies.load)
            found += (error for error in result.diagnostics if error.severity is Severity.ERROR)
            if result.plan is not None:
                tests = next(policy.tests for policy in result.policies if policy.source.name == source.name)
                sources = {policy.source.name: policy.source for policy in result.policies}
                units.append(unit_of(source, result.plan, tests, sources))
            tick()
    # What several files import has its mistakes in the plan of each.
    return units, list(dict.fromkeys(policies.as_typed(found)))


def _wanted(text: str | None) -> Callable[[str], bool]:
    return lambda name: text is None or text.casefold() in name.casefold()


def _run(units: list[Unit], profile: Profile, wanted: Callable[[str], bool]) -> list[Run]:
    """Run the tests that are wanted.

    Raises:
        CommandError: there are none.
    """
    from policyc.analysis.report import run_unit
    from policyc.analysis.wording import count

    names = [test.name for unit in units for test in unit.tests]
    if not names:
        fact = "there is no test in these files"
        raise CommandError(ExitCode.USAGE, fact, help='write one: `test "NAME" { write kernel .text => deny }`')
    if not any(map(wanted, names)):
        fact = f"none of the {count(len(names), 'test')} has a name that contains the text of --filter"
        raise CommandError(ExitCode.USAGE, fact, help=f"the first one is called `{names[0]}`")
    runs = []
    with progress("testing", len(units)) as tick:
        for unit in units:
            runs.append(run_unit(unit, profile, wanted))
            tick()
    return runs


def _report(runs: list[Run], coverage: bool, mutate: bool) -> Report:
    from policyc.analysis.coverage import parts_of
    from policyc.analysis.report import Report, coverage_of, unnoticed_of

    report = Report(tuple(runs), coverage_of(runs) if coverage else None)
    if mutate and report.failures:
        click.echo("--mutate takes nothing away while a case fails anyway", err=True)
    if not mutate or report.failures:
        return report
    with progress("mutating", sum(len(parts_of(run.unit.plan)) for run in runs)) as tick:
        return replace(report, unnoticed=unnoticed_of(runs, tick))


def _code(report: Report | None, coverage_min: int | None) -> ExitCode:
    if report is None or report.failures or report.unnoticed:
        return ExitCode.FINDINGS
    if coverage_min is not None and report.coverage is not None and report.coverage.percent < coverage_min:
        return ExitCode.FINDINGS
    return ExitCode.OK
