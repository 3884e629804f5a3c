"""What a Linux machine can be asked for, and how its processor is lent to the attacker's code.

An attack begins where the kernel idles, with interrupts off, on a stack of its own, and ends where it returns to; then
the processor is as it was. An exception on the way ends it as well: the kernel's handler would find no fixup for that
address, kill whoever is running, and be none the wiser. Whether it did anything is read from the machine itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.emulator.context import GPR_NAMES
from policyc.emulator.routines import Kind, Memory, Register, Routine, RoutineResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policyc.emulator.deliver import Delivery
    from policyc.emulator.linux.machine import LinuxMachine

__all__ = ["ROUTINES", "LinuxRoutine", "LinuxRun"]

_LSTAR: Final = 0xC000_0082
_GETPID: Final = 39
_KILL: Final = 62
_KERNEL_CS: Final = 0x10
_INTERRUPT_GATE: Final = 0xEE
"""Type and attributes: present, DPL 3, a 64-bit interrupt gate."""

_EXCEPTIONS: Final = 32
_RFLAGS_FIXED: Final = 2
_COPY_ROUTINES: Final = ("memcpy", "memset")
_SAVED: Final = (*GPR_NAMES, "rflags")


def pointer(address: int) -> bytes:
    """An address as the processor reads it."""
    return address.to_bytes(8, "little")


def interrupt_gate(address: int) -> bytes:
    """A present 64-bit interrupt gate without a stack of its own, open to user mode (Intel SDM, 3A, 6.14.1)."""
    return struct.pack(
        "<HHBBHII", address & 0xFFFF, _KERNEL_CS, 0, _INTERRUPT_GATE, address >> 16 & 0xFFFF, address >> 32, 0
    )


@dataclass(frozen=True, slots=True)
class LinuxRoutine(Routine):
    """A routine of the attacker's page.

    Attributes:
        value: what it stores: bytes, or the name of a routine that it leads to.
        leading: how memory leads to a routine, from its address.
        functions: functions of the kernel's: one that it calls, and one that this is to call.
        answers: whether what is in RAX at its end is an answer; else it is what the last instruction left there.
    """

    value: bytes | str = b""
    leading: Callable[[int], bytes] = pointer
    functions: tuple[str, str] | None = None
    answers: bool = False


def _attack(name: str, symbol: str, what: str, target: Memory | Register, value: bytes | str = b"") -> LinuxRoutine:
    return LinuxRoutine(name, symbol, Kind.ATTACK, what, target, value=value)


_JUMP: Final = bytes.fromhex("e9fbffffff909090")

ROUTINES: Final[Mapping[str, LinuxRoutine]] = {
    routine.name: routine
    for routine in (
        _attack(
            "inline-hook",
            "store_by_window",
            "a jump over the first instructions of delete_module, by a mapping of its own",
            Memory("__x64_sys_delete_module", 0, 8),
            _JUMP,
        ),
        _attack(
            "syscall-hook",
            "store_by_window",
            "getpid's entry, by a mapping of its own",
            Memory("sys_call_table", _GETPID * 8, 8),
            "hooked_syscall",
        ),
        LinuxRoutine(
            "idt-entry",
            "store_by_window",
            Kind.ATTACK,
            "the gate of vector 0x81, in two stores",
            Memory("idt_table", 0x81 * 16, 16),
            value="hooked_interrupt",
            leading=interrupt_gate,
        ),
        _attack(
            "wp-clear",
            "store_without_wp",
            "kill's entry, with CR0.WP off meanwhile",
            Memory("sys_call_table", _KILL * 8, 8),
            "hooked_syscall",
        ),
        _attack("smep-clear", "clear_smep", "SMEP and SMAP off in CR4", Register("cr4")),
        _attack("lstar", "set_lstar", "another entry for system calls", Register("lstar", _LSTAR), "hooked_entry"),
        _attack("idtr", "set_idtr", "a copy of the interrupt descriptor table, loaded", Register("idtr")),
        _attack(
            "core-pattern",
            "store_plainly",
            "a program that the kernel starts when another crashes",
            Memory("core_pattern", 0, 8),
            b"|/tmp/c\0",
        ),
        _attack(
            "modprobe-path",
            "store_plainly",
            "a program that the kernel starts to load a module",
            Memory("modprobe_path", 0, 8),
            b"/tmp/mp\0",
        ),
        LinuxRoutine(
            "patch",
            "poke",
            Kind.ACT,
            "five bytes of init_module, by __text_poke",
            Memory("__x64_sys_init_module", 0x10, 5),
            value=b"\x90",
            functions=("__text_poke", "text_poke_memset"),
        ),
        LinuxRoutine("hypercall", "hypercall", Kind.ACT, "the hypercall that KVMI reports, 34/24", None, answers=True),
    )
}
"""By name, in the order of a tour."""


class LinuxRun:
    """A routine that a Linux machine has been asked for.

    Attributes:
        entered: whether the processor runs, or has run, it.
        finished: whether it is through.
    """

    def __init__(self, machine: LinuxMachine, routine: LinuxRoutine) -> None:
        self.routine = routine
        self.entered = False
        self.finished = False
        self._machine = machine
        self._before = routine.read_target(machine)
        self._jiffies = machine.read_int("jiffies")
        self._instructions = machine.instructions
        self._events = machine.events_sent
        self._fault: int | None = None
        self._value = 0
        self._saved: dict[str, int] = {}

    def enter(self) -> None:
        """Give it the processor, which halts in the kernel."""
        machine, routine = self._machine, self.routine
        pages, engine = machine.attacker, machine.vcpus[0].engine
        self.entered = True
        self._before = routine.read_target(machine)
        target, frame, size = 0, 0, 0
        if isinstance(routine.target, Memory):
            target = machine.symbol(routine.target.symbol) + routine.target.offset
            frame, size = machine.gpa(target), routine.target.size
        value = routine.value
        function, helper = map(machine.symbol, routine.functions) if routine.functions is not None else (0, 0)
        pages.set_parameters(
            target=target,
            frame=frame,
            size=size,
            function=function,
            helper=helper,
            syscall=machine.symbol("__x64_sys_getpid"),
            entry=machine.symbol("entry_SYSCALL_64"),
            value=value if isinstance(value, bytes) else routine.leading(pages.routine(value)),
        )
        self._saved = {name: engine.get(name) for name in _SAVED}
        engine.set("rsp", pages.call())
        engine.set("rflags", _RFLAGS_FIXED)
        engine.set("rip", pages.routine(routine.symbol))
        machine.vcpus[0].halted = False

    def take_exception(self, delivery: Delivery) -> bool:
        """End it at an exception; see `Vcpu.takes_exception`.

        In one of the kernel's copy routines, which keep nothing on the stack, that routine alone is ended: its caller
        may hold a lock.
        """
        if not self.entered or self.finished or delivery.vector >= _EXCEPTIONS:
            return False
        self._fault = delivery.vector
        engine, pages = self._machine.vcpus[0].engine, self._machine.attacker
        rip, rsp = engine.get("rip"), engine.get("rsp")
        if rip not in pages.code and self._machine.function_at(rip).lstrip("_").startswith(_COPY_ROUTINES):
            engine.set("rip", int.from_bytes(engine.read_virtual(rsp, 8), "little"))
            engine.set("rsp", rsp + 8)
        else:
            engine.set("rip", pages.routine("fixup"))
            engine.set("rsp", pages.call())
        return True

    def leave(self) -> None:
        """Give the processor back if the routine has halted."""
        vcpu = self._machine.vcpus[0]
        if not self.entered or self.finished or not vcpu.halted:
            return
        if self.routine.answers:
            self._value = vcpu.engine.get("rax")
        for name, value in self._saved.items():
            vcpu.engine.set(name, value)
        self.finished = True

    def result(self) -> RoutineResult:
        """What has become of it so far; final once it is `finished`."""
        machine = self._machine
        return RoutineResult(
            routine=self.routine,
            before=self._before,
            after=self.routine.read_target(machine),
            fault=self._fault,
            value=self._value - (1 << 64) if self._value >> 63 else self._value,
            jiffies=(self._jiffies, machine.read_int("jiffies")),
            instructions=machine.instructions - self._instructions,
            events=machine.events_sent - self._events,
        )
