"""`policyc explain`: says how a plan decides, and why."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from policyc.cli.artifact_files import load_plan, load_profile, shown_name
from policyc.cli.color import wants_color
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.cli.policy_options import compile_inputs, plan_options, read_inputs, report

if TYPE_CHECKING:
    from policyc.cli.explain_printer import Printer
    from policyc.guest.profile import Profile
    from policyc.plan.model import Plan

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is explained: a plan, and the profile if there is one."""

    plan: Plan
    profile: Profile | None


@click.command(
    "explain",
    epilog=examples(
        "policyc explain 'write kernel:schedule + 5 from 0xffffffffc0401000' --plan plan.json --profile kernel.profile",
        "policyc explain 'on hypercall 34/24' policies/ --profile kernel.profile",
        "policyc explain --pages --plan plan.json",
        "policyc explain --rules policies/ --profile kernel.profile --format json",
    ),
)
@click.argument("arguments", nargs=-1, metavar="[QUESTION] [FILE]...")
@click.option("--plan", metavar="PLAN", help="A plan that `policyc compile` made, in the place of policy files.")
@plan_options(profile_required=False, files=False)
@click.option("--pages", is_flag=True, help="List the pages that are guarded, and what else lies on them.")
@click.option("--rules", is_flag=True, help="List the rules, and what each comes to.")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For whom.")
def command(
    arguments: tuple[str, ...],
    plan: str | None,
    profile: str | None,
    target: str,
    cpu: str,
    pages: bool,
    rules: bool,
    format: str,
) -> ExitCode:
    """Say how a plan decides, and why.

    QUESTION is an access or event as a test has it, `ACCESS PLACE from PLACE with FIELD = VALUE` or `on EVENT with
    FIELD = VALUE`; what is left out counts as code that no rule names. The plan is made of FILE, policy files or
    folders of them, or is the one that --plan names. Everything is at the addresses of the profile, where a guest
    without KASLR has it.

    With --plan alone, places have the names that its rules give them; --profile knows all symbols.
    """
    from policyc.cli.explain_formats import PRINTERS

    if pages + rules > 1:
        raise click.UsageError("--pages and --rules are two questions: ask one at a time")
    question, files = (None, arguments) if pages or rules else (arguments[:1], arguments[1:])
    if question == ():
        raise click.UsageError("say what is to be explained: a QUESTION, --pages or --rules")
    subject = _subject(files, plan, profile, target=target, cpu=cpu)
    if subject is None:
        return ExitCode.FINDINGS
    printer = PRINTERS[format](subject.plan, subject.profile, wants_color(sys.stdout))
    if question is not None:
        return _answer(question[0], subject, printer)
    click.echo(printer.pages() if pages else printer.rules(), nl=False)
    return ExitCode.OK


def _subject(
    files: tuple[str, ...], plan: str | None, profile: str | None, *, target: str, cpu: str
) -> _Subject | None:
    """The plan that the user named; None where the policies have errors, which have been said then.

    Raises:
        OSError: a file can't be read.
        CommandError: the plan or the profile is refused, or they aren't about the same kernel.
    """
    from policyc.compiler.options import CheckOptions

    if plan is not None:
        if files:
            raise click.UsageError("give policy files or --plan, not both (a QUESTION is one argument, in quotes)")
        if plan == "-" == profile:
            raise click.UsageError("standard input can't be both the plan and the profile")
        loaded, known = load_plan(plan), load_profile(profile) if profile is not None else None
        if known is not None and known.digest != loaded.guest.profile_digest:
            fact = f"`{shown_name(plan)}` was compiled for another kernel than `{shown_name(str(profile))}` describes"
            help = "give the profile that the plan was compiled with"
            raise CommandError(ExitCode.ARTIFACT_REFUSED, fact, help=help)
        return _Subject(loaded, known)
    if not files:
        raise click.UsageError("say of what: policy FILEs behind the QUESTION, or --plan")
    if profile is None:
        raise click.UsageError("policy files need --profile, which says where their places lie")
    policies, known = read_inputs(files, profile)
    compiled, findings = compile_inputs(policies, known, CheckOptions(target=target, cpu=cpu, accept_hot_pages=True))
    if compiled is None:
        report(findings, sys.stderr, format="text", deny=None)
        return None
    return _Subject(compiled, known)


def _answer(question: str, subject: _Subject, printer: Printer) -> ExitCode:
    from policyc.analysis.explanation import explain
    from policyc.analysis.plan_lookup import PlanLookup
    from policyc.analysis.probes import TooManyProbesError
    from policyc.analysis.question import ask
    from policyc.compiler.profile_lookup import ProfileLookup

    lookup = PlanLookup(subject.plan) if subject.profile is None else ProfileLookup(subject.profile)
    case, findings = ask(question, lookup)
    if case is None:
        return report(findings, sys.stderr, format="text", deny=None)
    try:
        explained = explain(case, subject.plan)
    except TooManyProbesError as error:
        raise CommandError(ExitCode.FINDINGS, str(error), help="ask about fewer places") from error
    click.echo(printer.answer(case, explained), nl=False)
    return ExitCode.OK
