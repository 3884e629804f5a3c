"""Plans made by hand, for tests that are about what is done with one."""

from __future__ import annotations

from collections.abc import Sequence

from policyc.catalog import Access, EffectKind
from policyc.plan.conditions import Condition
from policyc.plan.model import (
    BoundPlace,
    Effect,
    EventKey,
    Exemption,
    GuestFacts,
    Plan,
    PolicyRef,
    Rule,
    SourceFile,
    SourceSpan,
)
from policyc.plan.places import Absolute, Base, Extent

__all__ = ["DENY", "LOG", "guest_facts", "make_plan", "place", "rule", "strictness"]

DENY = Effect(EffectKind.DENY)
LOG = Effect(EffectKind.LOG)
NO_DIGEST = "sha256:" + "0" * 64


def guest_facts(
    image_base: int = 0xFFFFFFFF81000000,
    copy_routines: tuple[Extent, ...] = (),
    code: tuple[Extent, ...] | None = None,
) -> GuestFacts:
    return GuestFacts("linux", "x86_64", image_base, {}, copy_routines, NO_DIGEST, code=code)


def place(start: int, end: int, base: Base = Base.VIRTUAL) -> BoundPlace:
    extent = Extent(base, start, end)
    return BoundPlace(Absolute(extent), (extent,))


def rule(
    effect: Effect = DENY,
    places: tuple[int, ...] = (),
    access: Access = Access.W,
    *,
    policy: int = 0,
    enforce: bool = True,
    origin: tuple[int, ...] = (),
    exempt: tuple[int, ...] = (),
    event: EventKey | None = None,
    overriding: tuple[str, ...] = (),
    when: Condition | None = None,
    exemptions: tuple[Exemption, ...] = (),
) -> Rule:
    return Rule(
        id="",
        policy=policy,
        effect=effect,
        enforce=enforce,
        access=Access.NONE if event else access,
        places=places,
        event=event,
        origin=origin,
        exemptions=((Exemption(exempt, "because"),) if exempt else ()) + exemptions,
        overriding=overriding,
        when=when,
    )


def make_plan(
    places: Sequence[BoundPlace], rules: Sequence[Rule], policies: Sequence[str] = ("p",), **changes: object
) -> Plan:
    from dataclasses import replace

    named = tuple(replace(each, id=each.id or f"r{number}") for number, each in enumerate(rules))
    plan = Plan(
        target="any",
        cpu="any",
        guest=guest_facts(),
        policies=tuple(PolicyRef(name) for name in policies),
        places=tuple(places),
        rules=named,
        sources=(SourceFile("test.policy", NO_DIGEST),),
        spans=tuple(SourceSpan(0, 0, 1, 1) for _ in named),
    )
    return replace(plan, **changes)  # type: ignore[arg-type]  # the caller names fields of Plan


def strictness(effect: Effect | None) -> tuple[int, int]:
    """The order of effects, written down once more: tests compare with it what the plan's own order gave."""
    return (-1, 0) if effect is None else (effect.kind, -effect.argument)
