"""The machine that runs the small guest: it boots in a few milliseconds and does what it is asked for.

Everything here happens when it is called for, so the same calls give the same run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyc.emulator.image import DEFAULT_LOAD_GPA, Image, load, small_image
from policyc.emulator.machine import DEFAULT_RAM, Machine, MachineError
from policyc.emulator.memory import Memory
from policyc.emulator.routines import ROUTINES, RoutineResult, Run
from policyc.emulator.vcpu import Vcpu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.addresses import Gva
    from policyc.emulator.routines import Routine

__all__ = ["SmallMachine"]

TIMER_VECTOR: Final = 0xEC
CALL_FUNCTION_VECTOR: Final = 0xFB
SYSTEM_RUNNING: Final = 3
_BOOT_SLICES: Final = 1000


class SmallMachine(Machine):
    """A machine with the small guest loaded, and its firmware waiting in HLT until `power_on`.

    Attributes:
        image: the guest's image.
        ticks: timer interrupts so far.
    """

    def __init__(
        self,
        *,
        slide: int = 0,
        load_gpa: int = DEFAULT_LOAD_GPA,
        ram: int = DEFAULT_RAM,
        cpu: str = "intel",
    ) -> None:
        super().__init__(Memory(ram), cpu, slide)
        self.image: Image = small_image()
        self.ticks = 0
        state = load(self.image, self.memory, slide, load_gpa)
        self.vcpus.append(Vcpu(0, self.memory, cpu))
        self.vcpus[0].start(state)
        self.vcpus[0].halted = True

    @classmethod
    def boot(
        cls,
        *,
        slide: int = 0,
        load_gpa: int = DEFAULT_LOAD_GPA,
        ram: int = DEFAULT_RAM,
        cpu: str = "intel",
    ) -> SmallMachine:
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
    def routines(self) -> Mapping[str, Routine]:
        """See `Machine`."""
        return ROUTINES

    def begin(self, routine: Routine) -> Run:
        """See `Machine`: the guest's idle loop looks into a mailbox."""
        return Run(self, routine)

    def tick(self) -> None:
        """Raise the timer interrupt on every vCPU."""
        self.ticks += 1
        for vcpu in self.vcpus:
            vcpu.interrupt(TIMER_VECTOR)

    def kick(self) -> None:
        """Wake the guest's idle loop, as an interrupt from another processor does."""
        self.vcpus[0].interrupt(CALL_FUNCTION_VECTOR)

    def run_routine(self, name: str) -> RoutineResult:
        """Let the guest do something and wait until it is through; for a machine whose events nobody has to answer.

        Args:
            name: as in `ROUTINES`.

        Raises:
            KeyError: there is no such routine.
            MachineError: the guest waits for an answer, or is dead.
        """
        run = self.begin(ROUTINES[name])
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
