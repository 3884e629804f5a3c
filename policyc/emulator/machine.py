"""The machine: RAM, vCPUs, and a clock that somebody else turns; what kind of guest is in it, a subclass says.

Everything here happens when it is called for: `run` gives every vCPU that can run a slice, `tick` lets time pass for
the guest. One vCPU executes at a time, so what is atomic on a processor is atomic here, and the same calls give the
same run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from policyc.addresses import Gpa, Gva
from policyc.emulator.walk import translate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.hooks import Tool
    from policyc.emulator.memory import Memory
    from policyc.emulator.routines import Routine, RoutineRun
    from policyc.emulator.vcpu import Vcpu

__all__ = ["DEFAULT_RAM", "SLICE", "Machine", "MachineError"]

DEFAULT_RAM: Final = 64 << 20
SLICE: Final = 50_000
"""Instructions a vCPU runs before another, or the tool, gets a turn: well under a millisecond."""


class MachineError(Exception):
    """The machine didn't do what its guest is made for."""


class Machine(ABC):
    """A machine with a guest in it.

    Attributes:
        memory: RAM.
        vcpus: each has its own processor on the shared memory.
        cpu: "intel" or "amd".
        slide: by how much the guest's kernel addresses are moved.
        stopped: the VMM doesn't run the vCPUs; their commands wait.
        crashed: why the machine stands still for good, if it does.
        events_sent: events that tools were sent so far.
    """

    def __init__(self, memory: Memory, cpu: str, slide: int) -> None:
        self.memory = memory
        self.vcpus: list[Vcpu] = []
        self.cpu = cpu
        self.slide = slide
        self.crashed: str | None = None
        self.stopped = False
        self.events_sent = 0

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
