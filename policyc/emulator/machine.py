"""The machine: RAM, vCPUs, the small guest in it, and a clock that somebody else turns.

Everything here happens when it is called for: `run` gives every vCPU that can run a slice, `tick` raises the timer
interrupt. One vCPU executes at a time, so what is atomic on a processor is atomic here, and the same calls give the
same run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyc.addresses import Gpa, Gva
from policyc.emulator.image import DEFAULT_LOAD_GPA, Image, load, small_image
from policyc.emulator.memory import Memory
from policyc.emulator.routines import ROUTINES, RoutineResult, Run
from policyc.emulator.vcpu import Vcpu
from policyc.emulator.walk import translate

if TYPE_CHECKING:
    from policyc.emulator.hooks import Tool

__all__ = ["DEFAULT_RAM", "SLICE", "Machine", "MachineError"]

DEFAULT_RAM: Final = 64 << 20
SLICE: Final = 50_000
"""Instructions a vCPU runs before another, or the tool, gets a turn: well under a millisecond."""

TIMER_VECTOR: Final = 0xEC
CALL_FUNCTION_VECTOR: Final = 0xFB
SYSTEM_RUNNING: Final = 3
_BOOT_SLICES: Final = 1000


class MachineError(Exception):
    """The machine didn't do what its guest is made for."""


class Machine:
    """A machine with the small guest loaded, and its firmware waiting in HLT until `power_on`.

    Attributes:
        memory: RAM.
        vcpus: one for now; each has its own processor on the shared memory.
        image: the guest's image.
        slide: by how much its kernel addresses are moved.
        stopped: the VMM doesn't run the vCPUs; their commands wait.
        crashed: why the machine stands still for good, if it does.
        ticks: timer interrupts so far.
        events_sent: events that tools were sent so far.
    """

    def __init__(
        self,
        *,
        slide: int = 0,
        load_gpa: int = DEFAULT_LOAD_GPA,
        ram: int = DEFAULT_RAM,
        cpu: str = "intel",
    ) -> None:
        self.memory = Memory(ram)
        self.image: Image = small_image()
        self.slide = slide
        self.cpu = cpu
        state = load(self.image, self.memory, slide, load_gpa)
        self.vcpus = [Vcpu(0, self.memory, cpu)]
        self.vcpus[0].start(state)
        self.vcpus[0].halted = True
        self.crashed: str | None = None
        self.stopped = False
        self.ticks = 0
        self.events_sent = 0

    @classmethod
    def boot(
        cls,
        *,
        slide: int = 0,
        load_gpa: int = DEFAULT_LOAD_GPA,
        ram: int = DEFAULT_RAM,
        cpu: str = "intel",
    ) -> Machine:
        """A machine whose guest has booted and idles.

        Raises:
            MachineError: it didn't get there.
        """
        machine = cls(slide=slide, load_gpa=load_gpa, ram=ram, cpu=cpu)
        machine.power_on()
        for _ in range(_BOOT_SLICES):
            machine.run()
            if machine.idle:
                break
        if not machine.booted:
            raise MachineError(f"the guest didn't boot: {machine.failure or 'it never came to its idle loop'}")
        return machine

    def power_on(self) -> None:
        """Let the kernel's first instruction be next."""
        self.vcpus[0].halted = False

    @property
    def booted(self) -> bool:
        """Whether the guest's kernel says that it runs; only to be asked once it has page tables of its own."""
        return self.failure is None and self.read_int("system_state", 4) == SYSTEM_RUNNING

    @property
    def panicked(self) -> int | None:
        """The exception that the guest's kernel gave up at, or None."""
        return self.read_int("panic_vector") if self.booted and self.read_int("panics") else None

    @property
    def idle(self) -> bool:
        """Whether no vCPU can do anything until something happens outside."""
        return self.crashed is not None or self.stopped or not any(vcpu.runnable for vcpu in self.vcpus)

    @property
    def failure(self) -> str | None:
        """Why a vCPU will never run again, or None."""
        if self.crashed is not None:
            return self.crashed
        return next((vcpu.dead.reason for vcpu in self.vcpus if vcpu.dead is not None), None)

    @property
    def instructions(self) -> int:
        """Instructions executed so far by all vCPUs."""
        return sum(vcpu.engine.instructions for vcpu in self.vcpus)

    def run(self, budget: int = SLICE) -> None:
        """Give each vCPU one slice."""
        for vcpu in self.vcpus:
            if self.crashed is None and not self.stopped:
                vcpu.run(budget)

    def run_until_idle(self, limit: int = 10_000) -> None:
        """Run until every vCPU halts, waits for an answer, or is dead.

        Raises:
            MachineError: the guest is still busy after `limit` slices.
        """
        for _ in range(limit):
            if self.idle:
                return
            self.run()
        raise MachineError(f"the guest is still busy after {limit} slices of {SLICE} instructions")

    def tick(self) -> None:
        """Raise the timer interrupt on every vCPU."""
        self.ticks += 1
        for vcpu in self.vcpus:
            vcpu.interrupt(TIMER_VECTOR)

    def kick(self) -> None:
        """Wake the guest's idle loop, as an interrupt from another processor does."""
        self.vcpus[0].interrupt(CALL_FUNCTION_VECTOR)

    def crash(self, reason: str) -> None:
        """Stop the machine for good."""
        self.crashed = reason

    def attach(self, tool: Tool) -> None:
        """A tool is connected."""
        for vcpu in self.vcpus:
            vcpu.attach(tool)

    def detach(self) -> None:
        """The tool is gone: all restrictions are lifted, and events without answer are answered by CONTINUE."""
        self.memory.lift_all()
        for vcpu in self.vcpus:
            vcpu.detach()

    def run_routine(self, name: str) -> RoutineResult:
        """Let the guest do something and wait until it is through; for a machine whose events nobody has to answer.

        Args:
            name: as in `ROUTINES`.

        Raises:
            KeyError: there is no such routine.
            MachineError: the guest waits for an answer, or is dead.
        """
        run = Run(self, ROUTINES[name])
        self.run_until_idle()
        if not run.finished:
            raise MachineError(f"{name} isn't finished: {self.failure or 'a vCPU waits for the answer to an event'}")
        return run.result()

    def symbol(self, name: str) -> Gva:
        """Where a symbol of the guest is.

        Raises:
            KeyError: there is no such symbol.
        """
        return self.image.address(name, self.slide)

    def gpa(self, gva: int) -> Gpa:
        """Where a virtual address leads in the guest's kernel page tables.

        Raises:
            MachineError: nowhere.
        """
        gpa = translate(self.memory, self.vcpus[0].engine.get("cr3"), gva)
        if gpa is None:
            raise MachineError(f"{gva:#x} isn't mapped")
        return gpa

    def read(self, name: str, size: int, offset: int = 0) -> bytes:
        """Bytes at a symbol, from the machine's own RAM; within one page."""
        return self.memory.read(self.gpa(self.symbol(name) + offset), size)

    def read_int(self, name: str, size: int = 8, offset: int = 0) -> int:
        """A little-endian integer at a symbol."""
        return int.from_bytes(self.read(name, size, offset), "little")

    def write_int(self, name: str, value: int, size: int = 8) -> None:
        """Store a little-endian integer at a symbol, as a device would."""
        self.memory.write(self.gpa(self.symbol(name)), value.to_bytes(size, "little"))
