"""The real enforcer against the emulated machine, in memory: real code, and nothing runs but when a test says so."""

from __future__ import annotations

from collections.abc import Collection

from policyc.addresses import Gpa
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.defects import Quirk
from policyc.emulator.image import small_system_map
from policyc.emulator.introspection import Introspection
from policyc.emulator.routines import ROUTINES, RoutineResult, Run
from policyc.emulator.small_machine import SmallMachine
from policyc.guest.readers import build_profile
from policyc.kvmi import Dialect, Event, Hello, HelloForm, ToolConnection
from policyc.runtime.enforcer import step
from policyc.runtime.records import JsonObject, StateRecord, VerdictRecord
from policyc.runtime.state import Phase, State
from policyc.runtime.steps import Connected, Input, Output
from tests.support.audit_schema import check_records
from tests.support.tool_side import Heard, ToolSide

__all__ = ["GuardedMachine"]

MAX_TURNS = 2000
"""Exchanges after which a guest that never comes to rest fails its test."""


class GuardedMachine(ToolSide):
    """A small guest that a policy is enforced on.

    Attributes:
        events: what the guest has sent since it was armed, in order.
        records: what the enforcer has written since.
    """

    def __init__(self, policy: str, dialect: Dialect, *, quirks: Collection[Quirk] = ()) -> None:
        options = CheckOptions(target=dialect.name, cpu="intel", accept_hot_pages=True)
        result = compile_policies([Source("p.policy", policy)], build_profile(small_system_map().encode()), options)
        assert result.plan is not None, [diagnostic.message for diagnostic in result.diagnostics]
        self.machine = SmallMachine.boot(slide=0x1240_0000)
        newer = dialect.name == "kvmi-v12"
        form, end = (HelloForm.V12, Gpa(self.machine.memory.size)) if newer else (HelloForm.V7, None)
        hello = Hello(bytes(range(16)), "small", 1_700_000_000, end, form=form)
        self.session = Introspection(self.machine, dialect, hello, quirks=quirks)
        self.state = State(result.plan)
        self.events: list[Event] = []
        self._now = 100.0
        self._begin(ToolConnection())
        self.feed(Connected())
        assert self.state.phase is Phase.ARMED, self.records
        self.events.clear()
        self.records.clear()

    def run(self, name: str) -> RoutineResult:
        """Let the guest do something, to its end."""
        run = Run(self.machine, ROUTINES[name])
        self.pump()
        assert run.finished, name
        return run.result()

    def begin(self, name: str, turns: int) -> None:
        """Let the guest begin something that has no end."""
        Run(self.machine, ROUTINES[name])
        for _ in range(turns):
            self.turn()

    def feed(self, input: Input) -> None:
        """Hand the enforcer something that doesn't come over the wire."""
        self._take(input)
        self.pump()

    def pump(self) -> None:
        """Carry bytes both ways and run the guest until neither has anything to say or do."""
        for _ in range(MAX_TURNS):
            if not self.turn():
                return
        raise AssertionError("the guest never comes to rest")

    def verdicts(self) -> list[JsonObject]:
        """The verdict records, as the audit log has them."""
        return [record for record in self._described() if record["kind"] == "verdict"]

    def facts(self) -> list[str]:
        """What the state records say."""
        self._described()
        return [record.fact for record in self.records if isinstance(record, StateRecord)]

    def done(self) -> list[str]:
        """What the verdict records say was done."""
        return [record.done for record in self.records if isinstance(record, VerdictRecord)]

    def _described(self) -> list[JsonObject]:
        described = [record.to_json(self.state.plan) for record in self.records]
        check_records(described)
        return described

    def turn(self) -> bool:
        """One exchange; whether anything was said."""
        said = self.tool.data_to_send()
        for data in said:
            self.session.receive(data)
        self.machine.run_until_idle()
        heard = self.session.outgoing()
        if heard:
            self._tool_reads(heard)
        return bool(said or heard)

    def _step(self, input: Input) -> list[Output]:
        return step(self.state, self._now, input)

    def _on_heard(self, event: Heard) -> None:
        if isinstance(event, Event):
            self.events.append(event)
        super()._on_heard(event)
