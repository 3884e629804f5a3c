"""The machine: RAM, vCPUs, and a clock that somebody else turns; what kind of guest is in it, a subclass says.

Everything here happens when it is called for: `run` gives every vCPU that can run a slice, `tick` lets time pass for
the guest. One vCPU executes at a time, so what is atomic on a processor is atomic here. Several take their turns in an
order and in slices that a seed decides: another seed tries other races, and the same calls give the same run.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from policyc.addresses import Gpa, Gva
from policyc.emulator.devices import DMA_PORT, transfer
from policyc.emulator.interrupts import Delivers, command_of, destinations
from policyc.emulator.vcpu import Vcpu
from policyc.emulator.walk import translate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.hooks import Tool
    from policyc.emulator.image import BootState
    from policyc.emulator.memory import Memory
    from policyc.emulator.routines import Routine, RoutineRun
    from policyc.emulator.startup import Startup

__all__ = ["DEFAULT_RAM", "SLICE", "VCPUS_MAX", "Machine", "MachineError"]

DEFAULT_RAM: Final = 64 << 20
SLICE: Final = 50_000
"""Instructions a vCPU runs before another, or the tool, gets a turn: well under a millisecond."""

VCPUS_MAX: Final = 8
"""vCPUs of one machine."""

_SHORTEST_SLICE: Final = 7
"""Powers of two by which a slice may be shorter than its budget, where several vCPUs take turns."""


class MachineError(Exception):
    """The machine didn't do what its guest is made for."""


class Machine(ABC):
    """A machine with a guest in it.

    Args:
        seed: of the order in which several vCPUs take their turns.

    Attributes:
        memory: RAM.
        vcpus: each has its own processor on the shared memory.
        cpu: "intel" or "amd".
        slide: by how much the guest's kernel addresses are moved.
        stopped: the VMM doesn't run the vCPUs; their commands wait.
        crashed: why the machine stands still for good, if it does.
        events_sent: events that tools were sent so far.
        was_hooked: whether a tool has been here before.
    """

    def __init__(self, memory: Memory, cpu: str, slide: int, seed: int = 0) -> None:
        self.memory = memory
        self.vcpus: list[Vcpu] = []
        self.cpu = cpu
        self.slide = slide
        self.crashed: str | None = None
        self.stopped = False
        self.events_sent = 0
        self.was_hooked = False
        self._turns = random.Random(seed)
        self._tool: Tool | None = None

    @abstractmethod
    def power_on(self) -> None:
        """Let the kernel's first instruction be next."""

    @abstractmethod
    def tick(self) -> None:
        """Let the timer of the guest tick once."""

    @abstractmethod
    def symbol(self, name: str) -> Gva:
        """Where a symbol of the guest's kernel is.

        Raises:
            KeyError: there is no such symbol.
        """

    @property
    @abstractmethod
    def booted(self) -> bool:
        """Whether the guest's kernel runs, and can be asked for something."""

    @property
    @abstractmethod
    def panicked(self) -> int | None:
        """The exception that the guest's kernel gave up at, or None."""

    @property
    @abstractmethod
    def routines(self) -> Mapping[str, Routine]:
        """What the guest can be asked to do, by name, in the order of a tour."""

    @property
    def processor_routines(self) -> Mapping[str, Routine]:
        """How the guest brings a vCPU up and takes one down: `online` and `offline`, if it can."""
        return {}

    def vcpu_state(self, vcpu: Vcpu) -> str:
        """What a vCPU is at, in words."""
        return vcpu.state

    @abstractmethod
    def begin(self, routine: Routine) -> RoutineRun:
        """Have the guest do something.

        Raises:
            ValueError: it is busy with something else.
        """

    @property
    def idle(self) -> bool:
        """Whether no vCPU can do anything until something happens outside."""
        return self.crashed is not None or self.stopped or not any(vcpu.runnable for vcpu in self.vcpus)

    @property
    def all_started(self) -> bool:
        """Whether no vCPU waits to be started."""
        return all(vcpu.started for vcpu in self.vcpus)

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
        """Give each vCPU one slice of at most `budget` instructions."""
        vcpus = self.vcpus
        if len(vcpus) > 1:
            vcpus = self._turns.sample(vcpus, len(vcpus))
        for vcpu in vcpus:
            shorter = self._turns.randrange(_SHORTEST_SLICE) if len(vcpus) > 1 else 0
            if self.crashed is None and not self.stopped:
                vcpu.run(max(budget >> shorter, 1))

    def add_vcpu(self, startup: Startup) -> Vcpu:
        """One more vCPU; with UNINITIALIZED it waits for the guest to start it.

        Raises:
            ValueError: there are as many as there can be.
        """
        if len(self.vcpus) >= VCPUS_MAX:
            raise ValueError(f"a machine has at most {VCPUS_MAX} vCPUs")
        vcpu = Vcpu(len(self.vcpus), self.memory, self.cpu, self, startup)
        self.vcpus.append(vcpu)
        if self._tool is not None:
            vcpu.attach(self._tool)
        return vcpu

    def send_ipi(self, sender: int, value: int) -> None:
        """See `Board`."""
        command = command_of(value)
        if command is None:
            return
        for index in destinations(command, sender, range(len(self.vcpus))):
            vcpu = self.vcpus[index]
            match command.delivers:
                case Delivers.FIXED:
                    vcpu.interrupt(command.vector)
                case Delivers.INIT if index:  # nothing comes after INIT for the processor that boots: no firmware
                    vcpu.signals.init()
                case Delivers.STARTUP if index:
                    vcpu.signals.startup(command.vector)

    def startup_state(self, vector: int) -> BootState | None:
        """See `Board`: a guest that starts no processors has no place for them to begin at."""
        return None

    def output(self, port: int, size: int, value: int) -> None:
        """See `Board`: there is one device, which copies memory."""
        if (port, size) == (DMA_PORT, 4):
            transfer(self.memory, value)

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

    def crash(self, reason: str) -> None:
        """Stop the machine for good."""
        self.crashed = reason

    def attach(self, tool: Tool) -> None:
        """A tool is connected."""
        self._tool = tool
        self.was_hooked = True
        for vcpu in self.vcpus:
            vcpu.attach(tool)
            if not self.stopped:
                vcpu.serve()

    def detach(self) -> None:
        """The tool is gone: all restrictions are lifted, and events without answer are answered by CONTINUE."""
        self._tool = None
        self.memory.lift_all()
        for vcpu in self.vcpus:
            vcpu.detach()

    @property
    def kernel_root(self) -> int:
        """The root of page tables that map the whole kernel, as CR3 holds it."""
        return self.vcpus[0].engine.get("cr3")

    def gpa(self, gva: int) -> Gpa:
        """Where a virtual address leads in the guest's kernel page tables.

        Raises:
            MachineError: nowhere.
        """
        gpa = translate(self.memory, self.kernel_root, gva)
        if gpa is None:
            raise MachineError(f"{gva:#x} isn't mapped")
        return gpa

    def read(self, name: str, size: int, offset: int = 0) -> bytes:
        """Bytes at a symbol, from the machine's own RAM; within one page."""
        return self.memory.read(self.gpa(self.symbol(name) + offset), size)

    def read_int(self, name: str, size: int = 8, offset: int = 0) -> int:
        """A little-endian integer at a symbol."""
        return int.from_bytes(self.read(name, size, offset), "little")

    def write_int(self, name: str, value: int, size: int = 8, offset: int = 0) -> None:
        """Store a little-endian integer at a symbol, as a device would."""
        self.memory.write(self.gpa(self.symbol(name) + offset), value.to_bytes(size, "little"))
