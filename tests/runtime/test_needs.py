"""What a plan needs: of this version, and of a kernel before anything is asked of it."""

from __future__ import annotations

import pytest

from policyc.catalog import EVENTS, LEGALITY, RETRYABLE, Access, Column, EffectKind
from policyc.kvmi import (
    V6,
    V7,
    V12,
    Command,
    ControlSinglestep,
    EventKind,
    Features,
    GetVersion,
    GetVersionReply,
    KernelConnection,
)
from policyc.plan.model import Effect, EventKey, Plan
from policyc.runtime.needs import Needs, check_permissions, unsupported_rules
from policyc.runtime.state import Phase
from tests.support.plans import make_plan, rule
from tests.support.scripted_kernel import Conversation, ScriptedKernel, compile_plan


@pytest.mark.parametrize(
    ("kinds", "lacking"),
    [
        ((), ("kvmi-v6 has no command TranslateGva",)),
        (
            (EventKind.CPUID,),
            ("kvmi-v6 has no event cpuid", "kvmi-v6 has no command TranslateGva"),
        ),
    ],
)
def test_a_generation_without_a_needed_message_is_refused_by_its_name(
    kinds: tuple[EventKind, ...], lacking: tuple[str, ...]
) -> None:
    procedure = check_permissions(V6, Needs(kinds=kinds, crs=(), msrs=()), steps=False)
    with pytest.raises(StopIteration) as stopped:
        next(procedure)
    assert stopped.value.value == lacking


def test_trap__has_to_be_allowed_since_nothing_else_confirms_an_exception() -> None:
    peer = ScriptedKernel(V7)
    peer.kernel = KernelConnection(V7, 1, events=V7.events.keys() - {EventKind.TRAP})
    talk = Conversation(compile_plan("on hypercall 34/24 log"), peer)
    talk.connect()
    talk.pass_time(10)
    assert talk.state.phase is Phase.REFUSED
    assert talk.state.outcome is not None
    assert talk.state.outcome.details == ("CheckEvent: EPERM (-1): the VMM doesn't allow the event",)


@pytest.mark.parametrize("missing", [ControlSinglestep, EventKind.SINGLESTEP], ids=["command", "event"])
@pytest.mark.parametrize(
    ("text", "singlestep", "phase"),
    [
        ("object: deny write to kernel:guarded_object", True, Phase.REFUSED),
        ("object: deny write to kernel:guarded_object", False, Phase.ARMED),
        ("on hypercall 34/24 log", True, Phase.ARMED),
    ],
)
def test_single_step__has_to_be_allowed_where_pages_are_guarded_and_the_host_has_it(
    missing: type[Command] | EventKind, text: str, singlestep: bool, phase: Phase
) -> None:
    version = GetVersionReply(max_message_size=8184, features=Features(singlestep=singlestep))
    peer = ScriptedKernel(V12, override=lambda command: version if isinstance(command, GetVersion) else None)
    commands, events = V12.commands.keys() - {missing}, V12.events.keys() - {missing}
    peer.kernel = KernelConnection(V12, 1, commands=commands, events=events)
    talk = Conversation(compile_plan(text), peer)
    talk.connect()
    talk.pass_time(10)
    assert talk.state.phase is phase
    if phase is Phase.REFUSED:
        assert talk.state.outcome is not None
        what = "event" if missing is EventKind.SINGLESTEP else "command"
        assert talk.state.outcome.details == (f"Check{what.title()}: EPERM (-1): the VMM doesn't allow the {what}",)


def plan_of(column: Column, effect: Effect) -> Plan:
    """One rule about that column, legal or not: a plan file may come from anywhere."""
    event = next((EventKey(spec.word) for spec in EVENTS.values() if spec.column is column), None)
    access = Access.W if column is Column.WRITE else Access.R
    return make_plan((), (rule(effect, access=access, event=event),))


@pytest.mark.parametrize("column", Column, ids=lambda column: column.name.lower())
@pytest.mark.parametrize("kind", EffectKind, ids=lambda kind: kind.name.lower())
def test_plans__with_any_legal_effect_are_carried_out_and_with_no_other(kind: EffectKind, column: Column) -> None:
    once, again = Effect(kind), Effect(kind, retries=3)
    words = f"`r0`: {kind.name.lower()} on {column.value}"
    if column not in LEGALITY[kind]:
        assert unsupported_rules(plan_of(column, once)) == [words]
        return
    assert unsupported_rules(plan_of(column, once)) == []
    refused = [] if column in RETRYABLE else [f"`r0`: `retry` on {column.value}"]
    assert unsupported_rules(plan_of(column, again)) == refused


def test_plans__with_a_watch_are_refused() -> None:
    plan = compile_plan("object: watch kernel:guarded_object every 5s\non hypercall 34/24 inject gp\non unhook log")
    assert unsupported_rules(plan) == ["`object`: `watch`"]
