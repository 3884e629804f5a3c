"""The real enforcer against the real emulator, one instruction at a time, in a laboratory of the small guest.

They exchange the bytes of real connections, in memory and without time. What another vCPU would do between an event and
its answer, a test does when a command is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

from policyc.addresses import Gpa
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.image import small_system_map
from policyc.emulator.introspection import Introspection
from policyc.guest.readers import build_profile
from policyc.kvmi import V12, Command, Dialect, Hello, HelloForm, ToolConnection
from policyc.plan.model import Plan
from policyc.runtime.enforcer import step
from policyc.runtime.records import VerdictRecord
from policyc.runtime.state import GUARDING, State
from policyc.runtime.steps import Connected, Input, Output, TimePassed
from tests.support.laboratory import POLICY, RAM, SLOT, SLOTS, Laboratory, Outcome
from tests.support.tool_side import ToolSide

__all__ = ["Guarded", "StuckError"]

LONGEST_WAIT = 1.0
"""Seconds that the enforcer may let a vCPU stand."""

STILL_MAX = 40
"""Rounds without a register changed, after which nothing more is expected."""


class StuckError(AssertionError):
    """The guest made no end: every answer brought the next event."""


class Guarded(ToolSide):
    """The machine that the enforcer guards, armed.

    Attributes:
        records: what the enforcer wrote down since the last run began.
        state: the enforcer's.
        meanwhile: is called with every command before the kernel gets it: time for another vCPU.
    """

    def __init__(self, dialect: Dialect, cpu: str, policy: str = POLICY) -> None:
        self.lab = Laboratory(cpu)
        newer = dialect is V12
        hello = Hello(
            bytes(range(16)),
            "laboratory",
            1_700_000_000,
            Gpa(RAM) if newer else None,
            form=HelloForm.V12 if newer else HelloForm.V7,
        )
        self.session = Introspection(self.lab.machine, dialect, hello)
        self.state = State(_compiled(policy))
        self.meanwhile: Callable[[Command], None] = lambda command: None
        self._begin(ToolConnection())
        self._slots = iter(range(SLOTS))
        self.now = 100.0
        self.feed(Connected())
        self.pump(limit=200)
        assert self.state.phase in GUARDING, self.state.outcome
        self._armed = (self.state.phase, self.lab.machine.memory.restrictions())

    @property
    def intact(self) -> bool:
        """Whether everything is guarded as it was when it had just been armed, and nothing is under way."""
        now = (self.state.phase, self.lab.machine.memory.restrictions())
        return now == self._armed and self.lab.vcpu.waiting is None

    def slot(self) -> int | None:
        """Where the next instruction goes, from the start of either kind of code; None when there is no more room."""
        number = next(self._slots, None)
        return None if number is None else number * SLOT

    def run(
        self,
        at: int,
        code: bytes,
        registers: Mapping[str, int],
        fill: int | None = None,
        *,
        handled: int | None = None,
        content: Mapping[int, bytes] = MappingProxyType({}),
    ) -> Outcome:
        """What becomes of the instruction; see `Laboratory.prepare`.

        Raises:
            StuckError: nothing does, however often its events are answered.
        """
        self.lab.prepare(at, code, registers, fill, handled=handled, content=content)
        self.records.clear()
        self.now += 1.0
        self.pump(limit=5000)
        return self.lab.outcome()

    @property
    def done(self) -> list[str]:
        """What was done to the accesses that a rule was about."""
        return [record.done for record in self.records if isinstance(record, VerdictRecord)]

    def pump(self, limit: int) -> None:
        """Carry bytes both ways and run the guest until neither has anything to say or do.

        Raises:
            StuckError: they never stop within `limit` rounds.
        """
        where, still = None, 0
        for _ in range(limit):
            talked = self._exchange()
            self.lab.machine.run_until_idle()
            if not talked and not self._exchange() and not self._wait():
                return
            self.lab.engine.context.load()
            now = self.lab.engine.context.gprs_and_rip()
            still = still + 1 if now == where else 0
            if still > STILL_MAX:
                raise StuckError(f"the guest is where it was {STILL_MAX} answers ago")
            where = now
        raise StuckError(f"the guest has come to no end after {limit} answers")

    def _wait(self) -> bool:
        """Let the time pass that the enforcer wants to pass while the guest stands still; whether it did."""
        deadline = self.state.deadline
        if self.lab.vcpu.waiting is None or deadline is None or deadline > self.now + LONGEST_WAIT:
            return False
        self.now = max(self.now, deadline)
        self.feed(TimePassed())
        return True

    def feed(self, input: Input) -> None:
        """Hand the enforcer something that doesn't come over the wire."""
        self._take(input)

    def _step(self, input: Input) -> list[Output]:
        return step(self.state, self.now, input)

    def _exchange(self) -> bool:
        said = b"".join(self.tool.data_to_send())
        if said:
            self.session.receive(said)
        answer = self.session.outgoing()
        if answer:
            self._tool_reads(answer)
        return bool(said or answer)

    def _send(self, ticket: int, command: Command) -> None:
        self.meanwhile(command)
        super()._send(ticket, command)


@lru_cache
def _compiled(policy: str) -> Plan:
    result = compile_policies(
        [Source("laboratory.policy", policy)],
        build_profile(small_system_map().encode()),
        CheckOptions(accept_hot_pages=True),
    )
    assert result.plan is not None, [diagnostic.message for diagnostic in result.diagnostics]
    return result.plan
