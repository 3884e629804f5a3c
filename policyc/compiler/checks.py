"""What a resolved policy may not say, and what it had better not: a list of checks, each a function.

A check gets all policies and the options, and yields diagnostics. To add one, write it and append it to `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from policyc.compiler.exceptions import (
    excepted_code_is_guarded,
    excepted_code_is_named,
    excepted_code_is_one,
    exceptions_end,
)
from policyc.compiler.futile import conditions_decide
from policyc.compiler.legality import (
    code_can_run_there,
    code_causes_event,
    denial_cant_be_lifted,
    effect_fits_event,
    event_exists_in_target,
    field_exists_in_target,
    host_reports_event,
    one_policy_a_name,
    overriding_is_enforced,
    texts_fit_a_plan,
)
from policyc.compiler.options import CheckOptions
from policyc.compiler.resolved import ResolvedPolicy
from policyc.diagnostics import Diagnostic

__all__ = ["CHECKS", "Check", "CheckOptions", "run_checks"]

Check = Callable[[Sequence[ResolvedPolicy], CheckOptions], Iterator[Diagnostic]]

CHECKS: tuple[Check, ...] = (
    one_policy_a_name,
    effect_fits_event,
    event_exists_in_target,
    field_exists_in_target,
    host_reports_event,
    code_causes_event,
    code_can_run_there,
    denial_cant_be_lifted,
    overriding_is_enforced,
    conditions_decide,
    excepted_code_is_one,
    excepted_code_is_guarded,
    excepted_code_is_named,
    texts_fit_a_plan,
    exceptions_end,
)


def run_checks(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> list[Diagnostic]:
    """Everything that the checks have to say."""
    return [found for check in CHECKS for found in check(policies, options)]
