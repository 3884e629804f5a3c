"""What the small guest can be asked to do: attacks that a guarded kernel must not let happen, and acts that it may.

Each is a function of the guest (`small/module.S`, `small/kernel.S`) which its idle loop calls. Whether it did anything
is read from the machine itself, never from the guest's word: the target's bytes, or register, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.machine import Machine
    from policyc.emulator.small_machine import SmallMachine

__all__ = [
    "PROCESSOR_ROUTINES",
    "ROUTINES",
    "Kind",
    "Memory",
    "Register",
    "Routine",
    "RoutineResult",
    "RoutineRun",
    "Run",
]

_NO_FAULT: Final = (1 << 64) - 1


class Kind(Enum):
    """Whether a guard should stop it."""

    ATTACK = "attack"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Memory:
    """`size` bytes at `symbol + offset`."""

    symbol: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.symbol}{self.offset:+#x}" if self.offset else self.symbol

    def read(self, machine: Machine, _vcpu: int) -> bytes:
        """The bytes as they are in RAM."""
        return machine.read(self.symbol, self.size, self.offset)


@dataclass(frozen=True, slots=True)
class Register:
    """A register of the vCPU that does it: `cr0`, `cr4`, `xcr0`, `idtr`, or an MSR."""

    name: str
    msr: int | None = None

    def __str__(self) -> str:
        return self.name

    def read(self, machine: Machine, vcpu: int) -> bytes:
        """The value, most significant byte first."""
        engine = machine.vcpus[vcpu].engine
        if self.msr is not None:
            value = engine.msr_read(self.msr)
        elif self.name == "idtr":
            value, _ = engine.table("idtr")
        elif self.name == "xcr0":
            value = machine.vcpus[vcpu].xcr0
        else:
            value = engine.get(self.name)
        return value.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class Routine:
    """Something to ask for by name.

    Attributes:
        what: what it does, in words.
        target: what it changes, or would; None if nothing stays behind.
        vcpu: which one is to do it.
        argument: a number that it is given.
        takes_number: whether it wants one; else a number on the console is the vCPU's.
        refusals: what it returns where it hasn't done it, and what that means.
        may_hold: where it's denied, no fault can be delivered either, and its vCPU stays where it is.
    """

    name: str
    symbol: str
    kind: Kind
    what: str
    target: Memory | Register | None
    vcpu: int = 0
    argument: int = 0
    takes_number: bool = False
    refusals: tuple[tuple[int, str], ...] = ()
    may_hold: bool = False

    @property
    def subject(self) -> int:
        """The vCPU that it is about: the one that it is given, or else the one that does it."""
        return self.argument if self.takes_number else self.vcpu

    def on(self, vcpu: int) -> Routine:
        """The same, done by this vCPU."""
        return replace(self, vcpu=vcpu)

    def read_target(self, machine: Machine) -> bytes:
        """The target as it is now; nothing if there is none."""
        return self.target.read(machine, self.vcpu) if self.target is not None else b""


@dataclass(frozen=True, slots=True)
class RoutineResult:
    """What became of a routine.

    Attributes:
        before, after: the target.
        fault: vector of the exception that ended it, or None if it returned.
        value: what it returned, as a signed number.
        jiffies: the guest's tick counter before and after.
        instructions: executed by the machine meanwhile.
        events: that the tool was sent meanwhile.
    """

    routine: Routine
    before: bytes
    after: bytes
    fault: int | None
    value: int
    jiffies: tuple[int, int]
    instructions: int
    events: int

    @property
    def changed(self) -> bool:
        """Whether the target isn't what it was."""
        return self.before != self.after

    @property
    def refusal(self) -> str | None:
        """Why the routine says that it hasn't done it; None if it doesn't."""
        return dict(self.routine.refusals).get(self.value) if self.fault is None else None


class RoutineRun(Protocol):
    """A routine that a guest has been asked for."""

    @property
    def routine(self) -> Routine:
        """Which."""

    @property
    def finished(self) -> bool:
        """Whether the guest is through with it."""

    def result(self) -> RoutineResult:
        """What has become of it so far; final once it is `finished`."""


class Run:
    """A routine that the small guest has been asked for.

    Raises:
        ValueError: its vCPU isn't online, or another one isn't finished there yet.
    """

    def __init__(self, machine: SmallMachine, routine: Routine) -> None:
        self._at = 8 * routine.vcpu
        if routine.vcpu >= len(machine.vcpus) or not machine.read_int("cpu_online", offset=self._at):
            raise ValueError(f"vCPU {routine.vcpu} isn't online")
        if machine.read_int("routine_request", offset=self._at):
            raise ValueError(f"vCPU {routine.vcpu} is busy with another routine")
        self.routine = routine
        self._machine = machine
        self._before = routine.read_target(machine)
        self._done = machine.read_int("routine_done", offset=self._at)
        self._jiffies = machine.read_int("jiffies")
        self._instructions = machine.instructions
        self._events = machine.events_sent
        machine.write_int("routine_argument", routine.argument, offset=self._at)
        machine.write_int("routine_request", machine.symbol(routine.symbol), offset=self._at)
        machine.kick(routine.vcpu)

    @property
    def finished(self) -> bool:
        """Whether the guest is through with it."""
        return self._machine.read_int("routine_done", offset=self._at) != self._done

    def result(self) -> RoutineResult:
        """What has become of it so far; final once it is `finished`."""
        machine = self._machine
        fault = machine.read_int("routine_fault", offset=self._at)
        value = machine.read_int("routine_result", offset=self._at)
        return RoutineResult(
            routine=self.routine,
            before=self._before,
            after=self.routine.read_target(machine),
            fault=None if fault == _NO_FAULT else fault,
            value=value - (1 << 64) if value >> 63 else value,
            jiffies=(self._jiffies, machine.read_int("jiffies")),
            instructions=machine.instructions - self._instructions,
            events=machine.events_sent - self._events,
        )


def _attack(name: str, what: str, target: Memory | Register, *, may_hold: bool = False) -> Routine:
    return Routine(name, f"attack_{name.replace('-', '_')}", Kind.ATTACK, what, target, may_hold=may_hold)


def _act(name: str, what: str, target: Memory | Register | None) -> Routine:
    return Routine(name, f"act_{name.replace('-', '_')}", Kind.ACT, what, target)


_LSTAR: Final = 0xC000_0082

ROUTINES: Final[Mapping[str, Routine]] = {
    routine.name: routine
    for routine in (
        _attack(
            "inline-hook", "a jump over the first instructions of schedule, in one store", Memory("schedule", 5, 8)
        ),
        _attack("syscall-hook", "getpid's entry, by an alias in the direct map", Memory("sys_call_table", 39 * 8, 8)),
        _attack("straddle", "eight bytes that begin four before the guarded object", Memory("guarded_object", -4, 8)),
        _attack("rep-movs", "thirty-two bytes of kernel text, by a string store", Memory("kernel_power_off", 8, 32)),
        _attack("xchg", "fork's entry, by a locked exchange", Memory("sys_call_table", 57 * 8, 8)),
        _attack("idt-entry", "the gate of int 0x80, in one store", Memory("idt_table", 0x80 * 16, 16)),
        _attack("wp-clear", "kill's entry, with CR0.WP off meanwhile", Memory("sys_call_table", 62 * 8, 8)),
        _attack("smep-clear", "SMEP and SMAP off in CR4", Register("cr4")),
        _attack("lstar", "another entry for system calls", Register("lstar", _LSTAR)),
        _attack("idtr", "another interrupt descriptor table", Register("idtr")),
        _attack("execute", "code that the kernel keeps as data", Memory("data_code_runs", 0, 8)),
        _attack("read", "the guarded object into a buffer of the module's", Memory("evil_loot", 0, 8)),
        _attack("cmpxchg16b", "sixteen bytes that KVM's emulator can't write", Memory("guarded_object", 8, 16)),
        _attack("pop", "a value popped into the guarded object", Memory("guarded_object", 24, 8)),
        _attack("second-mapping", "a mapping of the same frame, made for it", Memory("guarded_object", 32, 8)),
        _attack("page-straddle", "four bytes into the page that the object begins", Memory("guarded_head", -4, 8)),
        _attack("page-straddle-tail", "four bytes out of the page that it ends", Memory("guarded_tail", 12, 8)),
        _attack("exchanged-frame", "text, by another frame under __text_poke", Memory("kernel_power_off", 40, 8)),
        _attack(
            "exchanged-caller",
            "text, by memcpy, called from another frame under __text_poke",
            Memory("kernel_power_off", 48, 8),
        ),
        _attack("user-store", "a store from user mode, by an alias there", Memory("guarded_object", 48, 8)),
        _attack("user-push", "from user mode, by a push onto a stack that ends there", Memory("guarded_object", 56, 8)),
        _attack("user-call", "from user mode, by a call on such a stack", Memory("guarded_object", 64, 8)),
        _attack("user-enter", "from user mode, by ENTER on such a stack", Memory("guarded_object", 72, 8)),
        _attack("user32-store", "a store from 32-bit user code", Memory("guarded_object", 88, 4)),
        _attack(
            "user32-push",
            "from 32-bit user code, by a push onto a stack that ends there",
            Memory("guarded_object", 92, 4),
        ),
        _attack(
            "push",
            "a stack of the kernel's that ends in the guarded object",
            Memory("guarded_object", -4, 8),
            may_hold=True,
        ),
        _attack(
            "interrupt-frame",
            "the frame of INT 0x80, on a stack that ends there",
            Memory("guarded_object", 128, 40),
            may_hold=True,
        ),
        _attack("fxsave", "512 bytes of x87 and SSE state", Memory("guarded_object", 8, 176)),
        _attack("xsave", "x87 and SSE state as KVM's emulator can't write it", Memory("guarded_object", 40, 136)),
        _attack("movnti", "eight bytes past the caches", Memory("guarded_object", 104, 8)),
        _attack("movaps", "sixteen bytes of an SSE register", Memory("guarded_object", 120, 16)),
        _attack("maskmov", "bytes that a mask chooses, beyond KVM's emulator", Memory("guarded_object", 112, 8)),
        _attack("fistp", "an integer from the x87 stack, beyond KVM's emulator", Memory("guarded_object", 136, 8)),
        _attack("cmpxchg", "eight bytes compared and exchanged", Memory("guarded_object", 144, 8)),
        _attack("bit-string", "a bit a megabyte above the operand", Memory("guarded_object", 152, 8)),
        _attack("own-page", "text of memcpy's own page, by memcpy", Memory("noinstr_spare", 8, 8)),
        _attack("self-modifying", "by a store that was written just before", Memory("guarded_object", 160, 8)),
        _attack("dma", "exit's entry, by a device that copies memory", Memory("sys_call_table", 60 * 8, 8)),
        _act("patch", "a static key, by __text_poke", Memory("jump_label_site", 5, 5)),
        _act("neighbour", "a store next to the guarded object", Memory("neighbour_after", 0, 8)),
        _act("write-storm", "256 stores next to the guarded object", Memory("neighbour_after", 0, 8)),
        _act("module-free", "a module's init text freed, its frame used for data", Memory("__module_image", 0, 8)),
        _act("hypercall", "the hypercall that KVMI reports, 34/24", None),
        _act("hypercall-32", "hypercall 34/24 as 32-bit user code makes it", None),
        _act("hypercall-flood", "256 hypercalls 34/24", Memory("hypercalls_made", 0, 8)),
        _act("hypercall-other", "a hypercall that is none of KVMI's", None),
        _act("int3", "a breakpoint", Memory("fault_count", 3 * 8, 8)),
        _act("cpuid", "CPUID leaf 0", None),
        _act("reload-cr3", "CR3 with the value it has", None),
        _act("reload-idt", "IDTR with the value it has", None),
        _act("read-gdtr", "GDTR into memory", Memory("saved_gdt_descr", 0, 10)),
        _act("xsetbv", "SSE on in XCR0", Register("xcr0")),
        _act("ipi", "an interrupt to every other vCPU", None),
        _act("busy", "the user task computes for a while", None),
    )
}
"""By name; a tour takes them in this order, and those that `may_hold` at the end."""

PROCESSOR_ROUTINES: Final[Mapping[str, Routine]] = {
    "online": Routine(
        "online",
        "cpu_up",
        Kind.ACT,
        "start a vCPU",
        None,
        takes_number=True,
        refusals=((-16, "it is online"), (-22, "the guest knows no such vCPU"), (-5, "it didn't come up in time")),
    ),
    "offline": Routine(
        "offline", "cpu_down", Kind.ACT, "take a vCPU down", None, refusals=((-22, "the first one stays online"),)
    ),
}
"""What a processor does about another, or about itself: `online` is done by the first and takes a number."""
