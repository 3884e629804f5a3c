"""The compiler from end to end: parse, resolve, check, lower.

Each stage reports everything it finds; a stage that finds errors is the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policyc.compiler.checks import CheckOptions, run_checks
from policyc.compiler.compiled import Compiled
from policyc.compiler.imports import Loader, read_files
from policyc.compiler.lower import lower
from policyc.compiler.plan_checks import run_plan_checks
from policyc.compiler.profile_lookup import ProfileLookup
from policyc.compiler.resolve import resolve_file
from policyc.compiler.resolved import ResolvedPolicy
from policyc.diagnostics import Diagnostic, Source, has_errors, sort_diagnostics
from policyc.guest.profile import Profile
from policyc.lang.collector import collector_paused
from policyc.plan.model import Plan
from policyc.plan.sweep import OverlapLimitError

__all__ = ["CompileResult", "compile_policies"]


@dataclass(frozen=True, slots=True)
class CompileResult:
    """What came of a compilation.

    Attributes:
        plan: the plan; None after an error, or where no profile was given to say where places lie.
        diagnostics: everything found, in the order of files and places.
        policies: the policies behind the plan, with the tests that stand in their files; empty where there is no plan.
    """

    plan: Plan | None
    diagnostics: tuple[Diagnostic, ...]
    policies: tuple[ResolvedPolicy, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no error was found."""
        return not has_errors(self.diagnostics)


def compile_policies(
    sources: Sequence[Source],
    profile: Profile | None,
    options: CheckOptions | None = None,
    load: Loader | None = None,
) -> CompileResult:
    """Compile policy files, and what they import, into one plan.

    Args:
        sources: the files; their names become the plan's source paths.
        profile: of the guest's kernel. Without one, names are checked but not places, and there is no plan.
        options: the dialect and processor that everything must be legal on; any by default.
        load: reads what is imported; without it, an import is an error.
    """
    with collector_paused():
        return _compile(sources, profile, options or CheckOptions(), load)


def _compile(
    sources: Sequence[Source], profile: Profile | None, options: CheckOptions, load: Loader | None
) -> CompileResult:
    """The stages that look at one file after another: parse, resolve."""
    files, found = read_files(sources, load)
    if has_errors(found):
        return _result(None, found)

    lookup = ProfileLookup(profile) if profile is not None else None
    resolved = [resolve_file(file, lookup) for file in files]
    found.extend(diagnostic for _, diagnostics in resolved for diagnostic in diagnostics)
    if has_errors(found):
        return _result(None, found)

    try:
        return _checked([policy for policy, _ in resolved], found, profile, options)
    except OverlapLimitError as error:
        help = "name the bytes once, in one rule, instead of nesting ranges"
        return _result(None, [*found, Diagnostic("P504", str(error), None, help)])


def _checked(
    policies: Sequence[ResolvedPolicy], found: list[Diagnostic], profile: Profile | None, options: CheckOptions
) -> CompileResult:
    """The stages that look at all policies together: checks, lowering, and what only the plan can tell."""
    found.extend(run_checks(policies, options))
    if has_errors(found) or profile is None:
        return _result(None, found)

    # Imported here: checking without a profile needs nothing of what finds a kernel.
    from policyc.compiler.image_map import ImageMap
    from policyc.compiler.landmarks import guest_facts

    lowered = lower(policies, guest_facts(profile), target=options.target, cpu=options.cpu)
    found.extend(lowered.diagnostics)
    found.extend(run_plan_checks(Compiled(lowered, ImageMap(profile), options)))
    return _result(None if has_errors(found) else lowered.plan, found, policies)


def _result(plan: Plan | None, found: Sequence[Diagnostic], policies: Sequence[ResolvedPolicy] = ()) -> CompileResult:
    return CompileResult(plan, tuple(sort_diagnostics(found)), tuple(policies))
