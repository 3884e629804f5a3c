"""Policies compiled and asked: what tests of questions put to a plan begin with."""

from __future__ import annotations

from functools import cache

from policyc.analysis.cases import CaseResult, Unit, run_test, unit_of
from policyc.analysis.explanation import Explanation, explain
from policyc.analysis.question import ask
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.compiler.profile_lookup import ProfileLookup
from policyc.diagnostics import Source
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.plan.model import Plan
from tests.support.small_kernel import BANNER, SYSTEM_MAP

__all__ = ["asked", "case_results", "plan_of", "small_profile", "unit"]


@cache
def small_profile() -> Profile:
    """The profile of the small kernel."""
    return build_profile(SYSTEM_MAP.encode(), banner=BANNER)


def unit(text: str, name: str = "a.policy") -> Unit:
    """The tests of a policy, ready to run; the policy has no mistake."""
    source = Source(name, text)
    result = compile_policies([source], small_profile(), CheckOptions(accept_hot_pages=True))
    assert result.plan is not None, [(d.code, d.message) for d in result.diagnostics]
    return unit_of(source, result.plan, result.policies[0].tests, {name: source})


def plan_of(text: str) -> Plan:
    return unit(text).plan


def case_results(rules: str, *cases: str) -> list[CaseResult]:
    """How each case goes, as the only one of a test."""
    tests = "".join(f'\ntest "{number}" {{ {case} }}' for number, case in enumerate(cases))
    made = unit(rules + tests)
    return [result for test in made.tests for result in run_test(test, made)]


def asked(rules: str, question: str) -> tuple[Explanation, ...]:
    """The answers to a question about a policy."""
    case, found = ask(question, ProfileLookup(small_profile()))
    assert case is not None, [(d.code, d.message) for d in found]
    return explain(case, plan_of(rules))
