"""After CRASH: the kernel only tells the VMM, and a VMM may let the guest run on.

It is alive until the connection ends, so what would stop it is kept from happening instead, in the strictest way that
is left. Where KVMI offers none, CRASH is answered again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policyc.catalog import LEGALITY, VECTORS, Column, EffectKind
from policyc.plan.model import Effect

__all__ = ["AFTER_CRASH", "Aftermath"]

AFTER_CRASH: Mapping[Column, EffectKind] = {
    column: next(kind for kind in (EffectKind.DENY, EffectKind.FAULT, EffectKind.CRASH) if column in LEGALITY[kind])
    for column in LEGALITY[EffectKind.CRASH]
}
"""What `crash` counts as once it has been answered: `deny` where that is legal, else what is strictest."""


@dataclass(slots=True)
class Aftermath:
    """What has been answered CRASH on one connection.

    Attributes:
        vcpus: the vCPUs whose events were.
        told: whether it has been recorded that one of them runs on.
        repeated: the columns in which CRASH is answered to every event; only the first of each is recorded.
    """

    vcpus: set[int] = field(default_factory=set)
    told: bool = False
    repeated: set[Column] = field(default_factory=set)

    def temper(self, effect: Effect, column: Column) -> Effect:
        """What the effect amounts to by now."""
        kind = AFTER_CRASH[column] if self.vcpus and effect.kind is EffectKind.CRASH else effect.kind
        if kind is effect.kind:
            return effect
        return Effect(kind, VECTORS["gp"] if kind is EffectKind.FAULT else 0, effect.retries)

    def first_notice(self, vcpu: int) -> bool:
        """Whether an event of this vCPU is the first proof that the guest runs on."""
        if self.told or vcpu not in self.vcpus:
            return False
        self.told = True
        return True

    def note(self, vcpu: int, column: Column) -> bool:
        """CRASH is answered to an event of this vCPU; whether that is worth a record."""
        self.vcpus.add(vcpu)
        known = column in self.repeated
        self.repeated.add(column)
        return not known
