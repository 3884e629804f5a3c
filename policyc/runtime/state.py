"""What the enforcer knows of one connection: how far it has come, what is in force, what has happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from policyc.kvmi import (
    Dialect,
    Hello,
)
from policyc.plan.model import Plan
from policyc.runtime.bound import UNBOUND, BoundPlan
from policyc.runtime.locate import ArmingOptions, Refusal
from policyc.runtime.records import StateRecord
from policyc.runtime.stepping_state import Stepping
from policyc.runtime.steps import (
    Output,
    Write,
)
from policyc.runtime.tasks import Scheduler
from policyc.runtime.thinning import Thinner

__all__ = ["GUARDING", "Counters", "Phase", "State", "enter"]


class Phase(Enum):
    """How far the enforcement of a guest has come."""

    HANDSHAKE = "HANDSHAKE"
    NEGOTIATING = "NEGOTIATING"
    BINDING = "BINDING"
    ARMED = "ARMED"
    DEGRADED = "DEGRADED"
    REFUSED = "REFUSED"
    UNHOOKING = "UNHOOKING"
    LOST = "LOST"


GUARDING = frozenset({Phase.ARMED, Phase.DEGRADED})
"""The phases in which the plan is in force."""


@dataclass(slots=True)
class Counters:
    """What has happened on the connection.

    Attributes:
        events: answered events of all kinds.
        collateral: page faults that no rule is about.
        exempted: accesses that an exception let through, by index of the rule that has the exception.
        acted: events by what the policy did to them, in its own words.
    """

    events: int = 0
    collateral: int = 0
    exempted: dict[int, int] = field(default_factory=dict)
    acted: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class State:
    """Everything the enforcer knows of one connection.

    Attributes:
        plan: what is to be enforced.
        monitor: a ceiling: every event is let through, whatever the plan says; records say what would have been done.
        phase: how far enforcement has come.
        bound: the plan in this guest's memory; one without rules until it is armed.
        hello: how the VMM introduced the guest.
        dialect: what the kernel speaks.
        outcome: why the guest was refused, if it was.
        left: whether the restrictions have been lifted, so that nothing but open events keeps us here.
        thinner: leaves out records of rules that have `at most`.
        stepping: accesses that CONTINUE can't perform.
        unmended: DEGRADED for a reason that nothing here takes back.
    """

    plan: Plan
    arming: ArmingOptions = field(default_factory=ArmingOptions)
    monitor: bool = False
    phase: Phase = Phase.HANDSHAKE
    bound: BoundPlan = UNBOUND
    hello: Hello | None = None
    dialect: Dialect | None = None
    outcome: Refusal | None = None
    left: bool = False
    counters: Counters = field(default_factory=Counters)
    thinner: Thinner = field(init=False)
    scheduler: Scheduler = field(default_factory=Scheduler)
    stepping: Stepping = field(default_factory=Stepping)
    unmended: bool = False
    phase_deadline: float | None = None

    def __post_init__(self) -> None:
        self.thinner = Thinner(self.plan.rules)

    @property
    def deadline(self) -> float | None:
        """When `step` wants to be called with `TimePassed` at the latest."""
        moments = [moment for moment in (self.phase_deadline, self.scheduler.deadline) if moment is not None]
        return min(moments, default=None)

    @property
    def is_guarding(self) -> bool:
        """Whether the plan is in force."""
        return self.phase in GUARDING

    def degrade(self, *, mended: bool = False) -> None:
        """Note that the guest is guarded less than the plan asks; `mended` where `mend` will be called some time."""
        self.unmended |= not mended
        if self.phase is Phase.ARMED:
            self.phase = Phase.DEGRADED

    def mend(self) -> None:
        """Note that what was degraded is whole again."""
        if self.phase is Phase.DEGRADED and not self.unmended:
            self.phase = Phase.ARMED


def enter(state: State, phase: Phase, fact: str, out: list[Output], severity: str = "info", **details: object) -> None:
    """Note that another phase has begun, with a record that says why."""
    state.phase = phase
    out.append(Write(StateRecord(phase.value, fact, severity, details)))
