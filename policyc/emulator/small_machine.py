"""The machine that runs the small guest: it boots in a few milliseconds and does what it is asked for.

Everything here happens when it is called for, so the same calls give the same run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from policyc.addresses import PAGE_SHIFT, Gva
from policyc.emulator.image import (
    DEFAULT_LOAD_GPA,
    KERNEL_BASE,
    Image,
    check_place,
    install_firmware,
    load,
    small_image,
)
from policyc.emulator.machine import DEFAULT_RAM, VCPUS_MAX, Machine, MachineError
from policyc.emulator.memory import Memory
from policyc.emulator.routines import PROCESSOR_ROUTINES, ROUTINES, RoutineResult, Run
from policyc.emulator.startup import Startup
from policyc.emulator.vcpu import HALTED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.image import BootState
    from policyc.emulator.routines import Routine
    from policyc.emulator.vcpu import Vcpu

__all__ = ["SmallMachine"]

TIMER_VECTOR: Final = 0xEC
CALL_FUNCTION_VECTOR: Final = 0xFB
SYSTEM_RUNNING: Final = 3
_BOOT_SLICES: Final = 1000
_LAST_ENTRY: Final = 511


class SmallMachine(Machine):
    """A machine with the small guest: until `power_on` its firmware waits in HLT, and there is no kernel in RAM.

    Args:
        vcpus: how many there are, 1 to `VCPUS_MAX`.
        online: how many the kernel starts, the first included; the others wait to be started. None is all.
        seed: see `Machine`.
        kpti: whether the guest's user mode has page tables of its own.

    Attributes:
        image: the guest's image.
        ticks: timer interrupts so far.

    Raises:
        ValueError: a machine can't be like that.
    """

    def __init__(
        self,
        *,
        slide: int = 0,
        load_gpa: int = DEFAULT_LOAD_GPA,
        ram: int = DEFAULT_RAM,
        cpu: str = "intel",
        vcpus: int = 1,
        online: int | None = None,
        seed: int = 0,
        kpti: bool = False,
    ) -> None:
        super().__init__(Memory(ram), cpu, slide, seed)
        if not 0 < vcpus <= VCPUS_MAX:
            raise ValueError(f"a machine can't have {vcpus} vCPUs: it has 1 to {VCPUS_MAX}")
        if online is not None and not 0 < online <= vcpus:
            raise ValueError(f"{online} of {vcpus} vCPUs can't be online")
        check_place(self.memory, slide, load_gpa)
        self.image: Image = small_image()
        self.ticks = 0
        self._load_gpa = load_gpa
        self._online = vcpus if online is None else online
        self._kpti = kpti
        self._loaded = False
        self._firmware = install_firmware(self.memory)
        for index in range(vcpus):
            self.add_vcpu(Startup.UNINITIALIZED if index else Startup.RUNNING)
        self.vcpus[0].start(self._firmware)
        self.vcpus[0].halted = True

    @classmethod
    def boot(
        cls,
        *,
        slide: int = 0,
        load_gpa: int = DEFAULT_LOAD_GPA,
        ram: int = DEFAULT_RAM,
        cpu: str = "intel",
        vcpus: int = 1,
        online: int | None = None,
        seed: int = 0,
        kpti: bool = False,
    ) -> SmallMachine:
        """A machine whose guest has booted and idles.

        Raises:
            ValueError: a machine can't be like that.
            MachineError: it didn't get there.
        """
        machine = cls(
            slide=slide, load_gpa=load_gpa, ram=ram, cpu=cpu, vcpus=vcpus, online=online, seed=seed, kpti=kpti
        )
        machine.power_on()
        for _ in range(_BOOT_SLICES):
            machine.run()
            if machine.idle:
                break
        if not machine.booted:
            raise MachineError(f"the guest didn't boot: {machine.failure or 'it never came to its idle loop'}")
        return machine

    def power_on(self) -> None:
        """Let the boot loader load the kernel, whose first instruction is next."""
        state = load(self.image, self.memory, self.slide, self._load_gpa, cpus=self._online, kpti=self._kpti)
        self._loaded = True
        self.vcpus[0].start(state)
        self.vcpus[0].halted = False

    def startup_state(self, vector: int) -> BootState | None:
        """See `Board`: a processor begins at the page that the vector names, on the loader's page tables."""
        return replace(self._firmware, rip=Gva(vector << PAGE_SHIFT))

    def _loaded_int(self, name: str) -> int:
        """A quadword of the kernel's, from where the loader put it."""
        return self.memory.quadwords[(self._load_gpa + self.image.symbols[name] - KERNEL_BASE) >> 3]

    @property
    def kernel_root(self) -> int:
        """See `Machine`: the kernel's own root once it has one; a vCPU in user mode may have another in CR3."""
        root = self._load_gpa + self.image.symbols["init_top_pgt"] - KERNEL_BASE
        ready = self._loaded and self.memory.quadwords[(root >> 3) + _LAST_ENTRY]
        return root if ready else super().kernel_root

    @property
    def booted(self) -> bool:
        """Whether the guest's kernel says that it runs."""
        return self._loaded and self.failure is None and self.read_int("system_state", 4) == SYSTEM_RUNNING

    @property
    def panicked(self) -> int | None:
        """See `Machine`; read without the guest's page tables, since it is asked for after every slice."""
        return self._loaded_int("panic_vector") if self._loaded and self._loaded_int("panics") else None

    @property
    def routines(self) -> Mapping[str, Routine]:
        """See `Machine`."""
        return ROUTINES

    @property
    def processor_routines(self) -> Mapping[str, Routine]:
        """See `Machine`."""
        return PROCESSOR_ROUTINES

    def vcpu_state(self, vcpu: Vcpu) -> str:
        """See `Machine`: one that the kernel has taken down halts as one that idles does, but not for interrupts."""
        state = vcpu.state
        taken_down = state == HALTED and self.booted and not self.read_int("cpu_online", offset=8 * vcpu.index)
        return "offline" if taken_down else state

    def begin(self, routine: Routine) -> Run:
        """See `Machine`: each vCPU's idle loop looks into a mailbox."""
        return Run(self, routine)

    def tick(self) -> None:
        """Raise the timer interrupt on every vCPU."""
        self.ticks += 1
        for vcpu in self.vcpus:
            vcpu.interrupt(TIMER_VECTOR)

    def kick(self, vcpu: int) -> None:
        """Wake the idle loop of a vCPU, as an interrupt from a device does."""
        self.vcpus[vcpu].interrupt(CALL_FUNCTION_VECTOR)

    def run_routine(self, name: str, vcpu: int = 0) -> RoutineResult:
        """Let the guest do something and wait until it is through; for a machine whose events nobody has to answer.

        Args:
            name: as in `ROUTINES`.
            vcpu: which is to do it.

        Raises:
            KeyError: there is no such routine.
            MachineError: the guest waits for an answer, or is dead.
        """
        run = self.begin(ROUTINES[name].on(vcpu))
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
