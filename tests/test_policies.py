"""Every policy that is shipped or shown compiles against the guest that is shipped, without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.image import small_system_map
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile

ROOT = Path(__file__).parent.parent
POLICIES = sorted(
    [*ROOT.glob("policies/**/*.policy"), *ROOT.glob("examples/**/*.policy"), *ROOT.glob("policyc/**/*.policy")]
)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return build_profile(small_system_map().encode())


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_policy__compiles_without_a_word(profile: Profile, path: Path) -> None:
    result = compile_policies([Source(path.name, path.read_text())], profile)
    assert [diagnostic.message for diagnostic in result.diagnostics] == []
    assert result.plan is not None
    assert result.plan.rules


def test_policies__there_are_starters_and_examples() -> None:
    folders = {path.parent.parent.name if "examples" in path.parts else path.parent.name for path in POLICIES}
    assert {"policies", "examples", "cli"} <= folders


def test_policies__the_starters_compile_together(profile: Profile) -> None:
    sources = [Source(path.name, path.read_text()) for path in ROOT.glob("policies/*.policy")]
    result = compile_policies(sources, profile)
    assert result.diagnostics == ()
    assert result.plan is not None
    assert [policy.name for policy in result.plan.policies] == [
        "guest agent",
        "linux cpu state",
        "linux descriptor tables",
        "linux kernel integrity",
    ]
