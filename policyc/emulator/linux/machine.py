"""The machine that continues a real Linux kernel from a snapshot.

The guest's clock counts a nanosecond an instruction, and jumps ahead at each tick if the guest was slower than that or
slept: `tick` lets a fixed time pass. So the same calls give the same run, and with a tick in real time the guest's
clock is real time too.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from policyc.emulator.fpu import XSAVE_BYTES, write_xsave
from policyc.emulator.linux.attacker import AttackerPages
from policyc.emulator.linux.attacks import ROUTINES, LinuxRoutine, LinuxRun
from policyc.emulator.linux.devices import Devices
from policyc.emulator.linux.state import MSRS
from policyc.emulator.linux.symbols import read_symbols
from policyc.emulator.machine import SLICE, Machine, MachineError
from policyc.emulator.memory import Memory
from policyc.emulator.unicorn_setup import MSR_EFER
from policyc.emulator.vcpu import Vcpu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.addresses import Gpa, Gva
    from policyc.emulator.deliver import Delivery
    from policyc.emulator.engine import Engine
    from policyc.emulator.linux.snapshot import Snapshot
    from policyc.emulator.linux.state import CpuState
    from policyc.emulator.routines import Routine, RoutineResult
    from policyc.emulator.startup import Startup

__all__ = ["TICK_NS", "LinuxMachine"]

TICK_NS: Final = 4_000_000
"""A tick of a Debian kernel: CONFIG_HZ is 250."""

SYSTEM_RUNNING: Final = 3
"""`system_state` (enum system_states in include/linux/kernel.h) since Linux 5.16."""

_TAINT_DIE: Final = 1 << 7
_NO_CPU: Final = 0xFFFF_FFFF
_EXCEPTIONS: Final = 32
_SLICE_MIN: Final = 100
_XSTATE_AT: Final = 512
_X87_AND_SSE: Final = b"\x03"


class LinuxMachine(Machine):
    """A machine with a Linux kernel that goes on where the snapshot was taken.

    Args:
        tick_ns: what `tick` lets pass, in nanoseconds.

    Attributes:
        snapshot: what it was made from.
        ticks: so far.
        tick_ns: what one lets pass, in nanoseconds.
        devices: its bus.
        attacker: the pages that attacks run from.
    """

    def __init__(self, snapshot: Snapshot, *, tick_ns: int = TICK_NS) -> None:
        super().__init__(Memory(len(snapshot.memory)), "intel", snapshot.origin.slide)
        self.snapshot = snapshot
        self.ticks = 0
        self.tick_ns = tick_ns
        self._symbols: Mapping[str, Gva] = read_symbols(snapshot.symbols)
        self._by_address: list[tuple[int, str]] = []
        self._slept = self._started = snapshot.state.cpu.time_stamp
        self.memory.write_all(snapshot.memory)
        self.devices = Devices(
            snapshot.state.devices, self._time_inside, lambda vector: self.vcpus[0].interrupt(vector)
        )
        self.vcpus.append(Vcpu(0, self.memory, self.cpu, self, bus=self.devices))
        _restore(self.vcpus[0].engine, snapshot.state.cpu)
        self.attacker = AttackerPages(self.memory, snapshot.state.cpu.registers["cr3"], snapshot.origin.reserved)
        self._attack: LinuxRun | None = None
        self._last_exception: int | None = None
        self._panic_words: tuple[Gpa, Gpa] | None = None
        self.vcpus[0].takes_exception = self._takes_exception

    @property
    def now(self) -> int:
        """The guest's clock in nanoseconds, between two runs."""
        return self._slept + self.vcpus[0].engine.instructions

    def power_on(self) -> None:
        """The kernel runs already."""

    def tick(self) -> None:
        """Let the time of one tick pass: what the guest hasn't used of it, it has slept."""
        self.ticks += 1
        self._slept += max(self._started + self.ticks * self.tick_ns - self.now, 0)
        self.devices.lapic.expire(self.now)

    def run(self, budget: int = SLICE) -> None:
        """See `Machine`; the timer's interrupt comes when it is due, not when the slice ends."""
        lapic = self.devices.lapic
        lapic.expire(self.now)
        due = budget if lapic.deadline is None else max(lapic.deadline - self.now, _SLICE_MIN)
        super().run(min(budget, due))
        if self._attack is not None:
            self._attack.leave()
            self._lend()

    def add_vcpu(self, startup: Startup) -> Vcpu:
        """See `Machine`: the snapshot's kernel was told of one processor when it booted.

        Raises:
            ValueError: always.
        """
        raise ValueError("a Linux guest has one vCPU")

    def symbol(self, name: str) -> Gva:
        """Where a symbol of the running kernel is, slide included.

        Raises:
            KeyError: there is no such symbol.
        """
        return self._symbols[name]

    def function_at(self, gva: int) -> str:
        """The symbol at or below an address of the kernel's; empty below the first."""
        if not self._by_address:
            self._by_address = sorted((address, name) for name, address in self._symbols.items())
        at = bisect_right(self._by_address, (gva, "\x7f"))
        return self._by_address[at - 1][1] if at else ""

    @property
    def booted(self) -> bool:
        """Whether the kernel says that it runs."""
        return self.failure is None and self.read_int("system_state", 4) == SYSTEM_RUNNING

    @property
    def panicked(self) -> int | None:
        """The last exception in the kernel, if the kernel has oopsed or panicked since.

        It is asked for after every slice, so the kernel's variables are found once: they never move.
        """
        if self._panic_words is None:
            self._panic_words = self.gpa(self.symbol("tainted_mask")), self.gpa(self.symbol("panic_cpu"))
        taint, processor = (int.from_bytes(self.memory.read(at, 4), "little") for at in self._panic_words)
        return self._last_exception if taint & _TAINT_DIE or processor != _NO_CPU else None

    @property
    def taint(self) -> int:
        """The kernel's own record of what went wrong with it (Linux, Documentation/admin-guide/tainted-kernels.rst)."""
        return self.read_int("tainted_mask")

    @property
    def routines(self) -> Mapping[str, Routine]:
        """See `Machine`."""
        return ROUTINES

    def begin(self, routine: Routine) -> LinuxRun:
        """See `Machine`: it is entered when the kernel idles."""
        if self._attack is not None and not self._attack.finished:
            raise ValueError("the guest is busy with another routine")
        if routine.vcpu >= len(self.vcpus):
            raise ValueError(f"vCPU {routine.vcpu} isn't online")
        if not isinstance(routine, LinuxRoutine):
            raise ValueError(f"{routine.name} is no routine of a Linux machine")
        self._attack = LinuxRun(self, routine)
        self._lend()
        return self._attack

    def run_routine(self, name: str, ticks: int = 1000) -> RoutineResult:
        """Let the attacker do something and wait until it is through; for a machine whose events nobody has to answer.

        Args:
            name: as in `ROUTINES`.
            ticks: how long it waits for the kernel to idle.

        Raises:
            KeyError: there is no such routine.
            MachineError: the guest waits for an answer, is dead, or never idles.
        """
        run = self.begin(ROUTINES[name])
        for _ in range(ticks):
            self.run_until_idle()
            if run.finished:
                return run.result()
            self.tick()
        raise MachineError(f"{name} isn't finished: {self.failure or 'a vCPU waits, or the kernel is never idle'}")

    def type_line(self, line: str) -> None:
        """Give the guest's shell a line to obey."""
        self.devices.uart.type(line.encode() + b"\n")

    def _lend(self) -> None:
        """Let an attack have the processor if the kernel idles, as it does between two interrupts."""
        run, vcpu = self._attack, self.vcpus[0]
        if run is None or run.entered or vcpu.stands() or not vcpu.halted or vcpu.engine.cpl:
            return
        if vcpu.interruptible and not vcpu.runnable:
            run.enter()

    def _takes_exception(self, delivery: Delivery) -> bool:
        if self._attack is not None and self._attack.take_exception(delivery):
            return True
        if delivery.vector < _EXCEPTIONS and not self.vcpus[0].engine.cpl:
            self._last_exception = delivery.vector
        return False

    def _time_inside(self) -> int:
        """The guest's clock while it runs."""
        return self._slept + self.vcpus[0].engine.instructions_now if self.vcpus else self._started


def _restore(engine: Engine, state: CpuState) -> None:
    registers = state.registers
    engine.msr_write(MSR_EFER, registers["efer"])
    for name in ("cr3", "cr4", "cr0", "cr2", "cr8"):
        engine.set(name, registers[name])
    for name, index in MSRS.items():
        engine.msr_write(index, state.msrs[name])
    engine.context.load()
    for name, (selector, base, limit, flags) in state.segments.items():
        engine.context.set_segment(name, selector, base, limit, flags)
    engine.context.set_privilege(state.segments["cs"][0] & 3)
    engine.context.store()
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip"):
        engine.set(name, registers[name])
    engine.set("rflags", registers["rflags"])
    fxsave = bytes.fromhex(state.fxsave)
    write_xsave(engine, (fxsave.ljust(_XSTATE_AT, b"\0") + _X87_AND_SSE).ljust(XSAVE_BYTES, b"\0"))
