"""Formatting a policy changes nothing of what is enforced: the plan's core stays the same, byte for byte."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.image import small_system_map
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.lang.format import format_policy
from policyc.lang.parse import parse
from policyc.plan.store import core_bytes
from tests.support.compilable_texts import compilable_policies, words_of
from tests.support.decided import small_profile
from tests.support.lang_texts import laid_out

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    [*ROOT.glob("policies/**/*.policy"), *ROOT.glob("examples/**/*.policy"), *ROOT.glob("policyc/**/*.policy")]
)


def formatted(text: str) -> str:
    file, diagnostics = parse(Source("a.policy", text), PLAIN_EFFECT_WORDS)
    assert file is not None, diagnostics
    return format_policy(file)


@cache
def guest_profile() -> Profile:
    """The profile of the guest that is shipped, whose symbols the shipped policies name."""
    return build_profile(small_system_map().encode())


def core_of(text: str, profile: Profile) -> tuple[bytes, list[str]]:
    """The core that a policy compiles to, and the codes of what is said about it."""
    result = compile_policies([Source("a.policy", text)], profile, CheckOptions(accept_hot_pages=True))
    assert result.plan is not None, [(found.code, found.message) for found in result.diagnostics]
    return core_bytes(result.plan), sorted(found.code for found in result.diagnostics)


@given(laid_out(compilable_policies()))
def test_format__keeps_the_core(text: str) -> None:
    assert core_of(formatted(text), small_profile()) == core_of(text, small_profile())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_policy__is_in_canonical_form(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert formatted(text) == text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
@given(st.data())
@settings(max_examples=10)
def test_shipped_policy__keeps_its_core_however_it_is_laid_out(path: Path, data: st.DataObject) -> None:
    text = path.read_text(encoding="utf-8")
    messy = data.draw(laid_out(st.just(words_of(text))))
    wanted = core_of(text, guest_profile())
    assert core_of(messy, guest_profile()) == wanted
    assert core_of(formatted(messy), guest_profile()) == wanted
