"""The enforcer and the emulated machine in one thread: real code on one side, real decisions on the other, no socket.

Time passes only when a test says so.
"""

from __future__ import annotations

from policyc.addresses import Gpa
from policyc.emulator.image import small_system_map
from policyc.emulator.introspection import Introspection
from policyc.emulator.routines import ROUTINES, RoutineResult, Run
from policyc.emulator.small_machine import SmallMachine
from policyc.kvmi import V12, Dialect, Hello, HelloForm, ToolConnection
from policyc.runtime.enforcer import step
from policyc.runtime.state import State
from policyc.runtime.steps import (
    Connected,
    Input,
    Lost,
    Output,
    TimePassed,
)
from tests.support.audit_schema import check_records
from tests.support.scripted_kernel import compile_plan
from tests.support.tool_side import ToolSide

__all__ = ["EnforcedMachine"]

UUID = bytes(range(16))


class EnforcedMachine(ToolSide):
    """A small guest that is armed with a policy.

    Attributes:
        records: what the enforcer wrote down since it was armed.
    """

    def __init__(self, dialect: Dialect, policy: str, *, cpu: str = "intel") -> None:
        self.machine = SmallMachine.boot(cpu=cpu, slide=0x1240_0000)
        newer = dialect is V12
        hello = Hello(
            UUID,
            "small",
            1_700_000_000,
            Gpa(self.machine.memory.size) if newer else None,
            form=HelloForm.V12 if newer else HelloForm.V7,
        )
        self.session = Introspection(self.machine, dialect, hello)
        self.state = State(compile_plan(policy, system_map=small_system_map().encode()))
        self._begin(ToolConnection())
        self._now = 0.0
        self.feed(Connected())
        assert self.state.is_guarding, self.state.outcome
        self.records.clear()

    def feed(self, input: Input) -> None:
        """Hand the enforcer something, and run everything until nobody has anything to do."""
        self._take(input)
        while self._exchange():
            self.machine.run_until_idle()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, waking the enforcer at each of its deadlines."""
        end = self._now + seconds
        while (deadline := self.state.deadline) is not None and deadline <= end:
            self._now = max(self._now, deadline)
            self.feed(TimePassed())
        self._now = end

    def run(self, name: str) -> RoutineResult:
        """Let the guest carry out a routine to its end."""
        run = Run(self.machine, ROUTINES[name])
        self.machine.run_until_idle()
        self.feed(TimePassed())
        assert run.finished
        return run.result()

    def patch(self, symbol: str, old: str, new: str) -> None:
        """Put another instruction in the place of one in a routine, filled up with NOPs."""
        gva = self.machine.symbol(symbol)
        code = self.machine.read(symbol, 64)
        before = bytes.fromhex(old)
        assert code.count(before) == 1
        at = self.machine.gpa(gva + code.index(before))
        self.machine.memory.write(at, bytes.fromhex(new).ljust(len(before), b"\x90"))

    def rights(self, symbol: str) -> int:
        """What the frame of a symbol allows now."""
        gfn = self.machine.gpa(self.machine.symbol(symbol)) >> 12
        return self.machine.memory.restrictions().get(gfn, 7)

    def facts(self) -> list[str]:
        """What was recorded, in words; all of it keeps to the schema."""
        documents = [record.to_json(self.state.plan) for record in self.records]
        check_records(documents)
        return [str(document.get("fact", document.get("done"))) for document in documents]

    def hang_up(self) -> None:
        """End the connection."""
        self._take(Lost("the test is over"))
        self.session.receive(b"")

    def _step(self, input: Input) -> list[Output]:
        return step(self.state, self._now, input)

    def _close(self, reason: str) -> None:
        raise AssertionError(reason)

    def _exchange(self) -> bool:
        said = self.tool.data_to_send()
        for data in said:
            self.session.receive(data)
        self.machine.run_until_idle()
        answer = self.session.outgoing()
        if answer:
            self._tool_reads(answer)
        assert not self.told, "nobody has asked for anything"
        return bool(said or answer)
