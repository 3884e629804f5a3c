"""Which mechanisms the runtime of this version carries out: it is asked about a rule that needs each."""

from __future__ import annotations

from collections.abc import Iterator

from policyc.catalog import (
    ACCESS_WORDS,
    EVENTS,
    LEGALITY,
    RETRYABLE,
    Access,
    Column,
    EffectKind,
    Mechanism,
    column_of_access,
)
from policyc.plan.model import Effect, EventKey, GuestFacts, Plan, Rule
from policyc.runtime.needs import unsupported_rules

__all__ = ["carried_out"]

_NO_GUEST = GuestFacts(os="", arch="", image_base=0, landmarks={}, copy_routines=(), profile_digest="")


def carried_out() -> frozenset[Mechanism]:
    """The mechanisms that `policyc run` doesn't refuse."""
    return frozenset(how for how, rule in _rules() if not unsupported_rules(_plan_of(rule)))


def _rules() -> Iterator[tuple[Mechanism, Rule]]:
    """One rule for each way that an effect is brought about."""
    for kind, row in LEGALITY.items():
        if kind is not EffectKind.ALLOW:
            yield from ((how, _rule(Effect(kind), column)) for column, how in row.items())
    yield from ((Mechanism.RETRY, _rule(Effect(EffectKind.CRASH, retries=1), column)) for column in RETRYABLE)


def _rule(effect: Effect, column: Column) -> Rule:
    access = next((bit for bit in ACCESS_WORDS.values() if column in column_of_access(bit)), Access.NONE)
    event = next((EventKey(spec.word) for spec in EVENTS.values() if spec.column is column), None)
    return Rule(id="", policy=0, effect=effect, access=access, event=event)


def _plan_of(rule: Rule) -> Plan:
    return Plan(target="any", cpu="any", guest=_NO_GUEST, policies=(), places=(), rules=(rule,))
