"""What a plan may not be, and what it had better not be: checks that need bytes, run once it is there.

A check gets the plan with the rules as written, and yields diagnostics. To add one, write it and append it to
`PLAN_CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from policyc.compiler.compiled import Compiled
from policyc.compiler.excepted_code import exceptions_fit_their_rule
from policyc.compiler.overlap import allow_sets_something_aside, rules_decide
from policyc.compiler.page_costs import (
    executed_pages_hold_no_foreign_code,
    pages_are_quiet,
    rights_are_exact,
    rights_can_be_held,
)
from policyc.compiler.places_in_use import memory_stays, restored_is_no_code, sizes_are_known
from policyc.diagnostics import Diagnostic
from policyc.plan.model import MAX_PLACES, MAX_POLICIES, MAX_RULES

__all__ = ["PLAN_CHECKS", "PlanCheck", "run_plan_checks"]

PlanCheck = Callable[[Compiled], Iterator[Diagnostic]]


def plan_fits_its_file(compiled: Compiled) -> Iterator[Diagnostic]:
    """A plan file's own limits: what is larger would be refused when it is read."""
    plan = compiled.plan
    limits: Mapping[str, tuple[int, int]] = {
        "policies": (len(plan.policies), MAX_POLICIES),
        "files": (len(plan.sources), MAX_POLICIES),
        "places": (len(plan.places), MAX_PLACES),
        "rules": (len(plan.rules), MAX_RULES),
        "watches": (len(plan.watches), MAX_RULES),
    }
    for word, (count, most) in limits.items():
        if count > most:
            yield Diagnostic("P504", f"there are {count} {word}, and a plan holds {most}", None, "make several plans")


PLAN_CHECKS: tuple[PlanCheck, ...] = (
    plan_fits_its_file,
    rights_can_be_held,
    rights_are_exact,
    executed_pages_hold_no_foreign_code,
    pages_are_quiet,
    rules_decide,
    allow_sets_something_aside,
    exceptions_fit_their_rule,
    memory_stays,
    sizes_are_known,
    restored_is_no_code,
)


def run_plan_checks(compiled: Compiled) -> list[Diagnostic]:
    """Everything that the checks have to say."""
    return [found for check in PLAN_CHECKS for found in check(compiled)]
