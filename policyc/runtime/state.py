"""What the enforcer knows of one connection: how far it has come, what is in force, what has happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf

from policyc.addresses import Gfn
from policyc.kvmi import (
    Dialect,
    Hello,
)
from policyc.plan.model import Plan
from policyc.runtime.aftermath import Aftermath
from policyc.runtime.bind import Binding
from policyc.runtime.bound import UNBOUND, BoundPlan
from policyc.runtime.frame_trials import Watch
from policyc.runtime.futile import Futile
from policyc.runtime.locate import ArmingOptions, Refusal
from policyc.runtime.msr_watch import MsrWatch
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
        binding: the plan in this guest's memory, and what that rests on; None until it is armed.
        bound: what the reply loop looks at; a plan without rules until it is armed.
        guarded: vCPUs that have been given the plan's events.
        hello: how the VMM introduced the guest.
        dialect: what the kernel speaks.
        outcome: why the guest was refused, if it was.
        left: whether the restrictions have been lifted, so that nothing but open events keeps us here.
        msr_watch: compares MSRs where the kernel reports no write to them.
        write_watch: counts writes to frames that nothing guards, while the self-test runs.
        looked_at: when it was last made sure that a frame that the guest may free is still what was bound.
        following: somebody is about to follow what the guest has moved.
        rebound_at: when what the guest had moved was last followed.
        aftermath: what has been answered CRASH, and what that effect counts as since.
        thinner: leaves out records of rules that have `at most`.
        futile: denials that change nothing.
        stepping: accesses that CONTINUE can't perform.
        unmended: DEGRADED for a reason that nothing here takes back.
    """

    plan: Plan
    arming: ArmingOptions = field(default_factory=ArmingOptions)
    monitor: bool = False
    phase: Phase = Phase.HANDSHAKE
    binding: Binding | None = None
    bound: BoundPlan = UNBOUND
    guarded: set[int] = field(default_factory=set)
    hello: Hello | None = None
    dialect: Dialect | None = None
    outcome: Refusal | None = None
    left: bool = False
    counters: Counters = field(default_factory=Counters)
    aftermath: Aftermath = field(default_factory=Aftermath)
    thinner: Thinner = field(init=False)
    msr_watch: MsrWatch | None = None
    write_watch: Watch | None = None
    looked_at: dict[Gfn, float] = field(default_factory=dict)
    following: bool = False
    rebound_at: float = -inf
    scheduler: Scheduler = field(default_factory=Scheduler)
    stepping: Stepping = field(default_factory=Stepping)
    futile: Futile = field(default_factory=Futile)
    unmended: bool = False
    phase_deadline: float | None = None

    def __post_init__(self) -> None:
        self.thinner = Thinner(self.plan.rules)

    def put_in_force(self, binding: Binding | None) -> None:
        """Judge events by this binding from now on; None is no plan at all."""
        before = self.bound
        self.binding = binding
        self.bound = UNBOUND if binding is None else binding.plan
        if binding is not None:
            # What is lifted at the moment stays so, whatever is judged by another table.
            self.bound.code_cache.inherit(before.code_cache)
            released = [gfn for gfn in before.rights if gfn not in self.bound.rights]
            if self.stepping.opened.release(released):
                self.mend()
        self.looked_at.clear()

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
