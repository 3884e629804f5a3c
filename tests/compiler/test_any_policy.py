"""What holds for policies of every shape: compiling ends in a plan or in diagnostics, and a further file only adds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.catalog import Access
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import CompileResult, compile_policies
from policyc.diagnostics import CODES, Source, has_errors, render_text
from policyc.plan.accesses import MemoryAccess, Origin
from policyc.plan.model import Effect, Plan
from policyc.plan.places import Base
from policyc.plan.tables import link_time_table
from policyc.plan.verdicts import Verdict, decide
from tests.support.compilable_texts import compilable_policies
from tests.support.decided import small_profile
from tests.support.lang_texts import any_words, laid_out, policies
from tests.support.plans import strictness

SCHEDULE = 0xFFFF_FFFF_8100_1000
MEMCPY = 0xFFFF_FFFF_8100_1880
CALL_TABLE = 0xFFFF_FFFF_81A0_0180
INIT_TASK = 0xFFFF_FFFF_8200_1000
MODULE = 0xFFFF_FFFF_C040_1000

accesses = st.builds(
    MemoryAccess,
    st.sampled_from([Access.W, Access.X]),
    st.just(Base.VIRTUAL),
    st.builds(int.__add__, st.sampled_from([SCHEDULE, CALL_TABLE, INIT_TASK]), st.integers(-1, 9)),
    st.sampled_from([1, 8, 16]),
    st.sampled_from([SCHEDULE, MEMCPY, MODULE]).map(lambda rip: Origin(rip, rip_genuine=True)),
)


def compiled(*texts: str) -> CompileResult:
    sources = [Source(f"{name}.policy", text) for name, text in zip("ab", texts, strict=False)]
    return compile_policies(sources, small_profile(), CheckOptions(accept_hot_pages=True))


@given(laid_out(policies | any_words), laid_out(policies))
@settings(deadline=None)
def test_files_of_any_shape__end_in_a_plan_or_in_diagnostics(first: str, second: str) -> None:
    result = compiled(first, second)
    assert (result.plan is None) == has_errors(result.diagnostics)
    assert all(found.code in CODES for found in result.diagnostics)
    assert all(char.isprintable() or char == "\n" for char in render_text(result.diagnostics))


def reply(plan: Plan, access: MemoryAccess) -> Effect | None:
    answer = decide(link_time_table(plan), access)
    assert isinstance(answer, Verdict)
    return answer.effect


@given(laid_out(compilable_policies()), laid_out(compilable_policies()), accesses)
@settings(deadline=None)
def test_a_further_file__never_weakens_a_reply(first: str, second: str, access: MemoryAccess) -> None:
    """No file here overrides another by its name, which is the one way there is."""
    alone, both = compiled(first), compiled(first, second.replace('"p"', '"q"'))
    assert alone.plan
    assert both.plan
    assert strictness(reply(both.plan, access)) >= strictness(reply(alone.plan, access))
