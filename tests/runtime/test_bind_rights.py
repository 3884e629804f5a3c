"""Rights that no page can be given, bound to a guest: what is widened there, and what is refused."""

from __future__ import annotations

import pytest

from policyc.addresses import Gfn, Gpa, gfn_of
from policyc.compiler.checks import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.guest.readers import build_profile
from policyc.kvmi import V12
from policyc.plan.model import Plan
from policyc.runtime.needs import unsupported_rules
from policyc.runtime.state import Phase
from tests.support.scripted_kernel import IMAGE_BASE, SYSTEM_MAP, Conversation, ScriptedKernel, gpa_of


def plan_of(text: str, cpu: str = "any") -> Plan:
    options = CheckOptions(cpu=cpu, accept_hot_pages=True)
    result = compile_policies([Source("a", text)], build_profile(SYSTEM_MAP), options)
    assert result.plan is not None, [d.message for d in result.diagnostics]
    return result.plan


def rights(plan: Plan) -> dict[Gfn, int]:
    """What the kernel was asked to keep of each frame."""
    talk = Conversation(plan, ScriptedKernel(V12))
    talk.connect()
    assert talk.state.phase is Phase.ARMED, talk.disconnected
    return talk.peer.rights


def frame(offset: int) -> Gfn:
    return gfn_of(Gpa(gpa_of(IMAGE_BASE) + offset))


@pytest.mark.parametrize(
    ("text", "cpu", "offset", "allowed"),
    [
        ("deny read of kernel .data", "any", 0x6000, 0),
        ("deny read of kernel .rodata", "amd", 0x4000, 0),
        ("deny read, write, execute to kernel .text", "any", 0x1000, 0),
        ("deny execute of kernel .data", "any", 0x6000, 3),
    ],
)
def test_rights__of_pages_that_are_not_to_be_read(text: str, cpu: str, offset: int, allowed: int) -> None:
    assert rights(plan_of(text, cpu))[frame(offset)] == allowed


def test_rights__a_data_frame_that_is_code_under_another_address_keeps_its_execution() -> None:
    """Nothing is known of what runs at a physical address, so the frame may not lose more than was asked for."""
    start = gpa_of(IMAGE_BASE + 0x6000)
    plan = plan_of(f"deny read of kernel .data log write to physical {start:#x} size 4K")
    talk = Conversation(plan, ScriptedKernel(V12))
    talk.connect()
    assert talk.state.phase is Phase.REFUSED
    assert talk.disconnected == "the plan needs execute-only pages, and this guest's processor has none"


def test_rights__execute_only_code_is_kept_where_the_guest_has_intels_processor() -> None:
    assert rights(plan_of("deny read, write to kernel .text", "intel"))[frame(0x1000)] == 4


@pytest.mark.parametrize("maker", [b"AuthenticAMD", b"HygonGenuine", b"SomebodyElse"])
def test_rights__execute_only_code_is_refused_on_any_other(maker: bytes) -> None:
    plan = plan_of("deny read, write to kernel .text", "intel")
    talk = Conversation(plan, ScriptedKernel(V12, maker=maker))
    talk.connect()
    assert talk.state.phase is Phase.REFUSED
    assert talk.disconnected == "the plan needs execute-only pages, and this guest's processor has none"


def test_watch__is_refused_by_name_until_it_can_be_carried_out() -> None:
    plan = plan_of("tables: watch idt every 5s watch gdt every 1m\nguard: deny write to kernel .text")
    named = [watch.id for watch in plan.watches]
    assert "tables" in named
    assert sorted(unsupported_rules(plan)) == sorted(f"`{name}`: `watch`" for name in named)
