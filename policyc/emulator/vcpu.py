"""One vCPU: its processor, what keeps it from running, and the events it sends.

A vCPU runs in slices. Between two of them it stands where KVM would be before a guest entry, and the order there is
KVM's: an injected exception and its TRAP event, queued commands, one PAUSE event, interrupts, then the guest. A vCPU
that waits for an event reply does nothing but commands.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from policyc.addresses import gfn_of
from policyc.emulator.bus import EMPTY_BUS
from policyc.emulator.deliver import Delivery, deliver
from policyc.emulator.engine import VECTORS_WITH_CODE, Engine
from policyc.emulator.exits import leave
from policyc.emulator.hooks import Hooks, Injection, Tool, Waiting
from policyc.emulator.registers import write_registers
from policyc.emulator.startup import Board, Signals, Startup
from policyc.emulator.stops import BudgetSpent, PageViolation, Shutdown, Stop
from policyc.kvmi import Action, EventData, EventKind, EventReplyData, PageAccess, PfData, SinglestepData, TrapData

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyc.emulator.bus import Bus
    from policyc.emulator.image import BootState
    from policyc.emulator.memory import Memory

__all__ = ["HALTED", "Vcpu"]

HALTED: Final = "halted"
"""The `Vcpu.state` after HLT, until an interrupt comes."""

_PAGE_FAULT: Final = 14
_EXCEPTIONS: Final = 32
_KERNEL_CS: Final = 0x10
_KERNEL_DS: Final = 0x18


class Vcpu:
    """A vCPU on the machine's memory.

    Args:
        board: the machine; None for a vCPU whose guest talks to no other.
        bus: the machine's devices.

    Attributes:
        index: as KVMI numbers it.
        cpu: "intel" or "amd".
        engine: its processor.
        startup: whether it has been started.
        signals: INIT and start-up interrupts that it hasn't taken yet.
        halted: in HLT, until an interrupt.
        dead: why it will never run again, if so.
        xcr0: extended control register 0.
        hooks: what the tool asked for.
        tool: who gets the events; None without a connection.
        waiting: the event that isn't answered yet.
        random: what RDRAND gives.
        takes_exception: is asked before an exception goes to the guest; what it takes, the guest never sees.
    """

    def __init__(
        self,
        index: int,
        memory: Memory,
        cpu: str,
        board: Board | None = None,
        startup: Startup = Startup.RUNNING,
        bus: Bus = EMPTY_BUS,
    ) -> None:
        self.index = index
        self.cpu = cpu
        self.engine = Engine(memory, cpu, bus)
        self.startup = startup
        self.signals = Signals()
        self.random = Random(index)
        self.takes_exception: Callable[[Delivery], bool] | None = None
        self.halted = False
        self.dead: Shutdown | None = None
        self.xcr0 = 1
        self.hooks = Hooks()
        self.tool: Tool | None = None
        self.waiting: Waiting | None = None
        self._board = board
        self._interrupts: set[int] = set()
        self._undelivered: Delivery | None = None

    def start(self, state: BootState) -> None:
        """Put the registers where the loader leaves them."""
        engine = self.engine
        engine.reset()
        engine.set("cr3", state.cr3)
        engine.set_table("gdtr", *state.gdt)
        engine.enter(0, _KERNEL_CS, _KERNEL_DS)
        engine.set("rip", state.rip)
        engine.set("rsp", state.rsp)
        engine.set("rsi", state.rsi)
        engine.set("rflags", 2)

    def interrupt(self, vector: int) -> None:
        """Raise an external interrupt; it stays pending until the guest takes it, and is lost on a vCPU not started."""
        if self.startup is Startup.RUNNING:
            self._interrupts.add(vector)

    def send_ipi(self, value: int) -> None:
        """The guest wrote to the interrupt command register."""
        if self._board is not None:
            self._board.send_ipi(self.index, value)

    @property
    def started(self) -> bool:
        """Whether KVM counts it as started: it has had its INIT."""
        return self.startup is not Startup.UNINITIALIZED

    @property
    def runnable(self) -> bool:
        """Whether `run` would do something."""
        if self.stands():
            return bool(self.hooks.jobs)
        if self.signals.pending(self.startup):
            return True
        if self.startup is not Startup.RUNNING:
            return False
        if self.hooks.jobs or self.hooks.pauses or self.hooks.injection or self._undelivered:
            return True
        return not self.halted or (bool(self._interrupts) and self.interruptible)

    @property
    def state(self) -> str:
        """What it is at, in words."""
        if self.dead is not None:
            return "dead"
        if self.waiting is not None:
            return f"at {self.waiting.kind.value}"
        if self.startup is not Startup.RUNNING:
            return "not started"
        if self.halted:
            return HALTED
        return "in user mode" if self.engine.cpl else "in the kernel"

    def stands(self) -> bool:
        """Whether it can't be run: it waits for an answer, or is dead."""
        return self.dead is not None or self.waiting is not None

    @property
    def interruptible(self) -> bool:
        """Whether an external interrupt may come now."""
        return self.engine.interruptible

    def run(self, budget: int) -> None:
        """Run for at most about `budget` instructions, until the vCPU halts, waits for an answer, or dies."""
        limit = self.engine.instructions + budget
        while self._enter() and self.engine.instructions < limit:
            self._run_guest(limit - self.engine.instructions)
        outputs = self.engine.outputs
        if outputs:
            self.engine.outputs = []
            for port, size, value in outputs:
                if self._board is not None:
                    self._board.output(port, size, value)

    def serve(self) -> None:
        """Carry out the commands that were queued; a vCPU between INIT and its start-up interrupt does nothing."""
        while self.hooks.jobs and self.startup is Startup.RUNNING:
            self.hooks.jobs.popleft()()

    def wants(self, kind: EventKind) -> bool:
        """Whether the tool is there and has switched this event on."""
        return self.tool is not None and kind in self.hooks.events and kind not in self.hooks.unavailable

    def report(
        self,
        kind: EventKind,
        data: EventData | None,
        resume: Callable[[Action | None, EventReplyData | None], None],
    ) -> None:
        """Send an event and stand still until it is answered."""
        if self.tool is None:
            resume(Action.CONTINUE, None)
            return
        self.waiting = Waiting(kind, resume)
        self.tool.report(self, kind, data)

    def answer(self, action: Action | None, data: EventReplyData | None) -> None:
        """The tool's answer: registers that it set are applied before its action is."""
        waiting = self.waiting
        if waiting is None:
            return
        self.waiting = None
        registers, self.hooks.registers = self.hooks.registers, None
        if registers is not None:
            write_registers(self.engine, registers)
        if action is Action.CRASH and self.tool is not None:
            self.tool.crash(self)
        else:
            waiting.resume(action, data)

    def attach(self, tool: Tool) -> None:
        """A connection begins: nothing is asked for yet."""
        self.hooks = Hooks()
        self.tool = tool
        self.hooks.jobs.append(partial(tool.created, self))
        self.update_enforcement()

    def detach(self) -> None:
        """The connection has ended: an unanswered event counts as CONTINUE with the guest's own values."""
        self.tool = None
        self.hooks = Hooks()
        self.engine.view = 0
        self.update_enforcement()
        self.answer(Action.CONTINUE, None)

    def update_enforcement(self) -> None:
        """Rights count only for a vCPU whose page-fault events are on: without them KVM lets accesses pass."""
        self.engine.enforcing = self.wants(EventKind.PF)

    def deliver(self, delivery: Delivery) -> None:
        """Enter a handler of the guest, which is an event if its stack lies in a restricted frame."""
        if self.takes_exception is None or not self.takes_exception(delivery):
            self._store_frame(delivery, frozenset())

    def _store_frame(self, delivery: Delivery, lifted: frozenset[int]) -> None:
        outcome = deliver(self.engine, delivery, lifted=lifted)
        if not isinstance(outcome, PageViolation):
            self.die(outcome)
            return

        def resume(action: Action | None, _: EventReplyData | None) -> None:
            if action is not Action.CONTINUE:
                self._undelivered = delivery
            else:
                self._store_frame(delivery, lifted | {gfn_of(outcome.gpa)})

        self.report(EventKind.PF, PfData(outcome.gva, outcome.gpa, PageAccess.W), resume)

    def fault(self, vector: int, error_code: int | None = None, cr2: int | None = None) -> None:
        """Raise an exception in the guest."""
        self.deliver(Delivery(vector, error_code, cr2))

    def die(self, reason: Shutdown | None) -> None:
        """Stop for good, unless there is no reason to."""
        if reason is not None:
            self.dead = reason

    def exit(self, stop: Stop) -> None:
        """Do what KVM does when the guest was left for this reason."""
        leave(self, stop)

    def go_on(self, _action: Action | None, _data: EventReplyData | None) -> None:
        """How events are resumed that have nothing to resume."""

    def _run_guest(self, budget: int) -> None:
        self.halted = False
        if not self.hooks.singlestep:
            shadow = bool(self._interrupts) and self.engine.context.in_shadow
            leave(self, self.engine.run(1 if shadow else budget))
            return
        stop = self.engine.run(1)
        leave(self, stop)
        if not self.stands() and self.wants(EventKind.SINGLESTEP):
            failed = not isinstance(stop, BudgetSpent)
            self.report(EventKind.SINGLESTEP, SinglestepData(failed), self.go_on)

    def _enter(self) -> bool:
        """Whether the guest can be entered now; everything that comes before is done."""
        if not self.stands():
            self._start_up()
        self.serve()
        if self.stands() or self.startup is not Startup.RUNNING:
            return False
        if self.hooks.injection is not None and not self.hooks.singlestep:
            self._inject(self.hooks.injection)
            return False
        if self._undelivered is not None:
            delivery, self._undelivered = self._undelivered, None
            self.deliver(delivery)
            return False
        if self.hooks.pauses:
            self.hooks.pauses -= 1
            self.report(EventKind.PAUSE, None, self.go_on)
            return False
        if self._interrupts and not self.hooks.singlestep and self.interruptible:
            vector = max(self._interrupts)
            self._interrupts.remove(vector)
            self.halted = False
            self.deliver(Delivery(vector))
        return not self.stands() and not self.halted

    def _start_up(self) -> None:
        """INIT and SIPI come before all else (kvm_apic_accept_events); what the tool asked for of the vCPU stays."""
        if self.signals.take_init():
            self.engine.reset()
            self.halted = False
            self._interrupts.clear()
            self._undelivered = None
            self.startup = Startup.WAITING_FOR_SIPI
        vector = self.signals.take_startup()
        if vector is not None:
            state = self._board.startup_state(vector) if self._board is not None else None
            if self.startup is Startup.WAITING_FOR_SIPI and state is not None:
                self.start(state)
                self.startup = Startup.RUNNING

    def _inject(self, injection: Injection) -> None:
        """The TRAP event comes first and says what will be delivered; RIP is where the guest was."""
        self.hooks.injection = None
        self.halted = False
        if injection.vector >= _EXCEPTIONS:
            self.die(Shutdown(f"exception {injection.vector} was injected, and there is no such exception"))
            return
        code = injection.error_code if injection.vector in VECTORS_WITH_CODE else None
        delivery = Delivery(injection.vector, code, injection.address if injection.vector == _PAGE_FAULT else None)
        if self._undelivered is not None:  # what was interrupted has to be done again, and the injection is lost
            delivery, self._undelivered = self._undelivered, None
        if delivery.cr2 is not None:
            self.engine.set("cr2", delivery.cr2)
        data = TrapData(delivery.vector, delivery.error_code or 0, self.engine.get("cr2"))
        self.report(EventKind.TRAP, data, lambda _action, _data: self.deliver(delivery))
