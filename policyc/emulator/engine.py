"""One processor: Unicorn, with the guest's page tables and the frames' rights in front of its memory.

Unicorn asks the `Tlb` for every page that it doesn't know yet, and the answer is what EPT is on a real host. Whatever
is refused makes Unicorn leave the guest with RIP on the instruction and nothing written, and `run` tells why. No
decision is taken while Unicorn runs.

Code pages are searched for sensitive instructions before they are translated (`codewatch`), and so are never writable
in the TLB: a store into one makes the engine come back, do that store by itself, and search the page again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from unicorn import UC_HOOK_INSN, UC_HOOK_INSN_INVALID, UC_HOOK_INTR, UC_HOOK_TLB_FILL, Uc, UcError
from unicorn import x86_const as x86

from policyc.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from policyc.emulator.bus import EMPTY_BUS
from policyc.emulator.codewatch import CodeWatch
from policyc.emulator.context import GPR_NAMES, Context
from policyc.emulator.decode import INSTRUCTION_MAX, Instruction, address_in_page, decode
from policyc.emulator.quirks import measure
from policyc.emulator.scan import SENSITIVE
from policyc.emulator.stops import (
    Breakpoint,
    BudgetSpent,
    GuestFault,
    Halted,
    Hypercall,
    PageViolation,
    Sensitive,
    Shutdown,
    SoftwareInterrupt,
    Stop,
)
from policyc.emulator.tlb import Reason, Refusal, Tlb
from policyc.emulator.unicorn_setup import MSR_EFER, RegisterReader, connect, open_engine, prime
from policyc.emulator.walk import FETCH, WRITE, Paging, translate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.bus import Bus
    from policyc.emulator.memory import Memory

__all__ = ["VECTORS_WITH_CODE", "Engine"]

_IDS: Final[Mapping[str, int]] = {
    name: getattr(x86, f"UC_X86_REG_{name.upper()}")
    for name in (*GPR_NAMES, "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "cs", "ss", "gdtr", "idtr", "tr")
}
_PAGE: Final = ~(PAGE_SIZE - 1)
VECTORS_WITH_CODE: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
"""Exceptions that push an error code."""

_CODE_FLAGS: Final = 0x00AF_9B00  # 64-bit code, present; the privilege level goes into bits 13 and 14
_STACK_FLAGS: Final = 0x00CF_9300
_LONG_CODE: Final = 1 << 21
_WIDE_CODE: Final = 1 << 22
_HYPERCALLS: Final = frozenset({"vmcall", "vmmcall"})
_SWITCH_VIEW: Final = "vmfunc"
_INT3_AND_INTO: Final = (b"\xcc", b"\xce")
_OVERFLOW: Final = 4
_DEBUG: Final = 1
_BREAKPOINT: Final = 3
_INVALID_OPCODE: Final = 6
_STACK_FAULT: Final = 12
_GENERAL_PROTECTION: Final = 13
_PAGE_FAULT: Final = 14
_EDGE_STEPS_MAX: Final = 1024
_NOTHING_LIFTED: Final[Mapping[int, int]] = {}

RFLAGS_IF: Final = 1 << 9
CR0_RESET: Final = 0x8004_0033  # PG AM NE ET MP PE: no WP yet
CR4_RESET: Final = 1 << 5  # PAE
EFER_RESET: Final = 0x500  # LME LMA
TABLE_LIMIT: Final = 0xFFFF
SYSENTER_MSRS: Final = (0x174, 0x175, 0x176)

OUTPUTS_MAX: Final = 256
"""Port writes that a slice keeps for the machine; a guest that makes more of them writes to nobody."""


class Engine:
    """One vCPU's processor on shared memory.

    Attributes:
        memory: the machine's RAM.
        context: the CPU state, as it was when the last run ended.
        efer: IA32_EFER.
        instructions: how many were executed since the engine was opened; each turn of a REP counts.
        outputs: port, size and value of each OUT that no device has seen yet.

    Raises:
        LayoutError: the installed Unicorn isn't one that this works with.
    """

    def __init__(self, memory: Memory, cpu: str = "intel", bus: Bus = EMPTY_BUS) -> None:
        self.memory = memory
        self._uc = open_engine(memory.host_address, memory.size, cpu)
        self._connection = connect(self._uc, bus)
        self._read = RegisterReader(self._uc)
        self.context = Context(self._uc, measure())
        prime(self._uc)
        self._watch = CodeWatch(self._uc, self.read_virtual)
        self._tlb = Tlb(self._uc, memory, self._watch, frozenset(bus.frames))
        self._interrupt: int | None = None
        self._invalid = False
        self._view = 0
        self.efer = self.msr_read(MSR_EFER)
        self.instructions = 0
        self.outputs: list[tuple[int, int, int]] = []
        self._uc.hook_add(UC_HOOK_TLB_FILL, self._tlb.fill)
        self._uc.hook_add(UC_HOOK_INTR, self._interrupted)
        self._uc.hook_add(UC_HOOK_INSN_INVALID, self._undefined)
        self._uc.hook_add(UC_HOOK_INSN, self._output, None, 1, 0, x86.UC_X86_INS_OUT)
        memory.observe(self)

    @property
    def instructions_now(self) -> int:
        """`instructions` as it is while the guest runs: for devices."""
        return self.instructions + self.context.instructions

    def run(self, budget: int) -> Stop:
        """Run the guest from RIP until it needs attention, for at most `budget` instructions."""
        limit = self.instructions + budget
        while True:
            stop = self._run_once(max(limit - self.instructions, 1))
            if stop is None or (isinstance(stop, BudgetSpent) and self.instructions < limit):
                continue
            return stop

    def step(self, lifted: Mapping[int, int] = _NOTHING_LIFTED) -> Stop:
        """Execute the one instruction at RIP, also if it is sensitive; one turn of it, if it has a REP prefix.

        Args:
            lifted: rights given back to frames while it runs.

        Returns:
            `BudgetSpent` if it was executed, else why not.
        """
        if lifted:
            self._tlb.lifted = lifted
            self._tlb.flush()
        self._watch.pass_at = self.get("rip")
        counted = self.instructions
        stop: Stop | None = None
        try:
            while stop is None and self.instructions == counted:
                stop = self._run_once(1)
        finally:
            self._watch.pass_at = None
            self.efer = self.msr_read(MSR_EFER)
            if lifted:
                self._tlb.lifted = _NOTHING_LIFTED
                self._tlb.flush()
        return stop or BudgetSpent()

    def get(self, name: str) -> int:
        """A register by its lower-case name: general, `rip`, `rflags`, `cr0` to `cr8`, `cs`, `ss`."""
        return self._read(_IDS[name])

    def set(self, name: str, value: int) -> None:
        """Write a register; a control register as the instruction would, with what follows for the TLB."""
        self._uc.reg_write(_IDS[name], value)
        if name in ("cr0", "cr3", "cr4"):
            self._tlb.flush()

    def skip(self, size: int) -> None:
        """Let RIP stand behind an instruction of so many bytes, which the host has performed, or leaves out."""
        self.set("rip", self.get("rip") + size & (1 << 64) - 1)

    def table(self, name: str) -> tuple[int, int]:
        """Base and limit of `gdtr`, `idtr` or `tr`."""
        _, base, limit, _ = self._uc.reg_read(_IDS[name])
        return base, limit

    def set_table(self, name: str, base: int, limit: int) -> None:
        """Load `gdtr` or `idtr`."""
        self._uc.reg_write(_IDS[name], (0, base, limit, 0))

    def msr_read(self, index: int) -> int:
        """An MSR; 0 for one that Unicorn doesn't have."""
        value: int = self._uc.msr_read(index)
        return value

    def msr_write(self, index: int, value: int) -> None:
        """Write an MSR, without the checks that WRMSR makes."""
        self._uc.msr_write(index, value)
        if index == MSR_EFER:
            self.efer = self.msr_read(MSR_EFER)
            self._tlb.flush()

    def read_native(self, register: int) -> int | tuple[int, int]:
        """A register by Unicorn's number for it, in Unicorn's form: for those that are no plain 64 bits."""
        value: int | tuple[int, int] = self._uc.reg_read(register)
        return value

    def write_native(self, register: int, value: int | tuple[int, int]) -> None:
        """Write what `read_native` reads."""
        self._uc.reg_write(register, value)

    @property
    def cpl(self) -> int:
        """Privilege level, 0 to 3."""
        return self.get("cs") & 3

    @property
    def code_bits(self) -> int:
        """What code the processor is in: 64, or 32 or 16 in compatibility mode."""
        _, _, _, flags = self.context.segment("cs")
        if flags & _LONG_CODE:
            return 64
        return 32 if flags & _WIDE_CODE else 16

    @property
    def enforcing(self) -> bool:
        """Whether the frames' rights count for this processor."""
        return self._tlb.enforcing

    @enforcing.setter
    def enforcing(self, value: bool) -> None:
        if value != self._tlb.enforcing:
            self._tlb.enforcing = value
            self._tlb.flush()

    @property
    def view(self) -> int:
        """The EPT view that this processor uses."""
        return self._view

    @view.setter
    def view(self, number: int) -> None:
        self._view = number
        self._tlb.view = self.memory.views[number]
        self._tlb.flush()

    def backing(self, gpa: Gpa) -> Gpa:
        """Where the byte at a guest physical address is, in the view in use."""
        return self._tlb.view.backing(gpa)

    def flush_tlb(self) -> None:
        """Forget every translation."""
        self._tlb.flush()

    def forget_large_page(self, gva: int) -> None:
        """What INVLPG does besides forgetting one 4 KiB page, as which Unicorn keeps each piece of a larger one."""
        if self._tlb.in_large_page(gva):
            self._tlb.flush()

    def read_virtual(self, gva: int, size: int) -> bytes:
        """Up to `size` bytes at a guest virtual address: as many as are mapped to RAM, whatever the rights."""
        found = b""
        cr3 = self.get("cr3")
        while size:
            gpa = translate(self.memory, cr3, gva)
            part = min(size, PAGE_SIZE - (gva & ~_PAGE))
            if gpa is None or gpa + part > self.memory.size:
                break
            found += self.memory.read(self.backing(gpa), part)
            gva += part
            size -= part
        return found

    def instruction(self) -> Instruction | None:
        """The instruction at RIP, None if it can't be read or isn't one."""
        return decode(self.read_virtual(self.get("rip"), INSTRUCTION_MAX), self.code_bits)

    def registers(self) -> dict[str, int]:
        """What addresses are made of: the general registers, RIP, `fs_base` and `gs_base`."""
        self.context.load()
        return self._registers()

    def rights_changed(self) -> None:
        """See `MemoryObserver`."""
        self._tlb.flush()

    def content_changed(self, frames: range) -> None:
        """See `MemoryObserver`: Unicorn itself sees only what this engine's guest stores."""
        if not self._watch.frames.isdisjoint(frames):
            self._watch.forget(frames)
            self._uc.ctl_flush_tb()
            self._tlb.flush()

    def code_found(self, gfn: int) -> None:
        """See `MemoryObserver`."""
        if self._tlb.may_write(gfn):
            self._tlb.flush()

    @property
    def interruptible(self) -> bool:
        """Whether an external interrupt may come now: RFLAGS.IF, and no STI just before."""
        if not self.get("rflags") & RFLAGS_IF:
            return False
        self.context.load()
        return not self.context.in_shadow

    def reset(self) -> None:
        """What INIT does to a processor, but for the mode: general and control registers, EFER, tables and segments.

        A real processor begins in real mode then; this one stays in long mode, with nothing in CR4 and EFER but what
        long mode needs. Other MSRs keep what they have (Intel SDM, volume 3, table 10-1).
        """
        for name in GPR_NAMES:
            self.set(name, 0)
        self.set("cr2", 0)
        self.msr_write(MSR_EFER, EFER_RESET)
        self.set("cr4", CR4_RESET)
        self.set("cr0", CR0_RESET)
        for index in SYSENTER_MSRS:
            self.msr_write(index, 0)
        self.context.load()
        self.context.reset_flags()
        for segment in ("ds", "es", "fs", "gs"):
            self.context.set_segment(segment, 0, 0, 0, 0)
        self.context.set_segment("ldt", 0, 0, TABLE_LIMIT, 0x8200)
        self.context.set_segment("tr", 0, 0, TABLE_LIMIT, 0x8B00)
        self.context.set_segment("idt", 0, 0, TABLE_LIMIT, 0)
        self.context.store()
        self.set("rflags", 2)
        self.flush_tlb()

    def enter(self, cpl: int, cs: int, ss: int) -> None:
        """Set the privilege level with flat code and stack segments, as an interrupt, SYSCALL or SYSRET leaves them."""
        self.context.load()
        self.context.set_privilege(cpl)
        self.context.set_segment("cs", cs, 0, 0xFFFF_FFFF, _CODE_FLAGS | cpl << 13)
        self.context.set_segment("ss", ss, 0, 0xFFFF_FFFF if ss else 0, (_STACK_FLAGS if ss else 0) | cpl << 13)
        self.context.store()

    def _run_once(self, budget: int) -> Stop | None:
        """One call of Unicorn; None if there was nothing to come back for, and the guest is to be run on."""
        self._begin()
        error = None
        try:
            self._uc.emu_start(self.context.rip, 0, count=budget)
        except UcError as reason:
            error = reason
        self.context.load()
        begun = self.context.instructions
        if self._watch.hook_block():
            self.instructions += begun
            return None
        refusal = self._tlb.refusal
        if refusal is not None:
            self.instructions += begun if refusal.kind == FETCH else begun - 1
            return self._refused(refusal, budget)
        if self._watch.caught is not None:
            self.instructions += begun - 1
            return self._sensitive()
        if self._interrupt is not None:
            return self._interruption(self._interrupt, begun)
        if self._invalid:
            self.instructions += begun - 1
            return self._undefined_opcode()
        if error is not None:
            return Shutdown(f"the processor stopped: {error}")
        self.instructions += min(begun, budget)
        return BudgetSpent() if begun > budget else Halted()

    def _begin(self) -> None:
        self._watch.caught = None
        self._interrupt = None
        self._invalid = False
        if self._watch.crowded():
            self._watch.reset()
            self._flush_code()
        self.context.load()
        cr0, _, _, cr3, cr4 = self.context.control_registers()
        _, base, limit, _ = self.context.segment("gdt")
        self._tlb.begin(Paging(cr0, cr3, cr4, self.efer, 0, 0), range(base & _PAGE, base + limit + 1, PAGE_SIZE))

    def _refused(self, refusal: Refusal, budget: int) -> Stop | None:
        if refusal.reason is Reason.NEW_CODE:
            self._tlb.search(refusal.page, refusal.frame)
            self.memory.mark_code(refusal.frame >> PAGE_SHIFT, origin=self)
            return None
        if refusal.reason is Reason.CHANGES_CODE:
            return self._change_code(refusal.frame >> PAGE_SHIFT)
        if refusal.kind == FETCH and not self._fetches(refusal.page):
            return self._run_to_edge(refusal.page, budget)
        self._forget_exception()
        if refusal.reason is Reason.NO_CODE_THERE:
            return Shutdown(f"the guest runs code at {refusal.frame:#x}, where it has no memory")
        gva = self._exact(refusal)
        if refusal.reason is Reason.GUEST_TABLES:
            return GuestFault(_PAGE_FAULT, refusal.error_code, gva)
        if refusal.reason is Reason.NOT_CANONICAL:
            return GuestFault(_STACK_FAULT if gva == self.get("rsp") else _GENERAL_PROTECTION, 0)
        return PageViolation(gva, Gpa(refusal.frame + (gva - refusal.page)), refusal.kind)

    def _change_code(self, gfn: int) -> Stop | None:
        """A store into a frame that holds translated code: forget the code, and if it runs right here, step over."""
        rip = self.get("rip")
        here = {translate(self.memory, self.get("cr3"), address) for address in (rip, rip + INSTRUCTION_MAX)}
        stop: Stop | None = None
        if any(gpa is not None and self.backing(gpa) >> PAGE_SHIFT == gfn for gpa in here):
            self._tlb.mixed = gfn
            self._tlb.flush()
            stop = self._store_beside_code()
            self._tlb.mixed = None
        self._watch.forget((gfn,))
        self._tlb.flush()
        self.memory.code_frames.discard(gfn)
        self.memory.announce(range(gfn, gfn + 1), origin=self)
        return stop

    def _store_beside_code(self) -> Stop | None:
        """One instruction that stores into the frame it runs from.

        A store into the very block that is running makes Unicorn drop the block and begin the instruction again, which
        counts as another instruction: a budget of one ends before the store.
        """
        before = self.context.gprs_and_rip()
        counted = self.instructions
        stop: Stop | None = None
        for budget in (1, 2):
            self._watch.pass_at = self.get("rip")
            stop = self._run_once(budget)
            if not isinstance(stop, BudgetSpent):
                break
            progress = self.context.gprs_and_rip() != before
            self.instructions = counted + int(progress)
            if progress:
                break
        return stop

    def _fetches(self, page: int) -> bool:
        """Whether the instruction at RIP itself reaches into `page`, rather than one that was translated along."""
        rip = self.get("rip")
        if rip & _PAGE == page:
            return True
        code = self.read_virtual(rip, min(INSTRUCTION_MAX, PAGE_SIZE - (rip & ~_PAGE)))
        return decode(code, self.code_bits) is None

    def _run_to_edge(self, page: int, budget: int) -> Stop | None:
        """Unicorn translates straight over a page's end and asks for the next page before what precedes it has run.

        Hide that page behind HLTs and step until its first byte is really due, or the guest went elsewhere.
        """
        start = self.get("rip") & _PAGE
        self._tlb.blind = page
        self._flush_code()
        try:
            for _ in range(min(budget, _EDGE_STEPS_MAX)):
                stop = self._run_once(1)
                if not isinstance(stop, BudgetSpent):
                    return stop
                if self.get("rip") & _PAGE != start or self._fetches(page):
                    return None if budget > 1 else stop
            return BudgetSpent()
        finally:
            self._tlb.blind = None
            self._flush_code()

    def _sensitive(self) -> Stop | None:
        insn = self.instruction()
        if insn is not None and (insn.name in SENSITIVE or (insn.name == "mov" and insn.registers[0].startswith("cr"))):
            return Sensitive(insn)
        self._watch.pass_at = self._watch.caught
        return None

    def _interruption(self, vector: int, begun: int) -> Stop:
        code, software = self.context.exception()
        self._forget_exception()
        rip = self.get("rip")
        self.instructions += begun if vector == _DEBUG or (software and vector != _BREAKPOINT) else begun - 1
        if software:
            short = vector in (_BREAKPOINT, _OVERFLOW) and self.read_virtual(rip - 1, 1) in _INT3_AND_INTO
            size = 1 if short else 2
            self.set("rip", rip - size)
            return Breakpoint(size) if vector == _BREAKPOINT else SoftwareInterrupt(vector, size)
        return GuestFault(vector, code if vector in VECTORS_WITH_CODE else None)

    def _undefined_opcode(self) -> Stop:
        self._forget_exception()
        insn = self.instruction()
        if insn is not None and insn.name in _HYPERCALLS:
            return Hypercall(insn.size)
        if insn is not None and insn.name == _SWITCH_VIEW:
            return Sensitive(insn)
        return GuestFault(_INVALID_OPCODE)

    def _exact(self, refusal: Refusal) -> Gva:
        """The address within the page: the event's GVA, or CR2."""
        rip = self.context.rip
        if refusal.kind == FETCH:
            return Gva(max(rip, refusal.page))
        insn = self.instruction()
        if insn is None:
            return Gva(refusal.page)
        return address_in_page(insn, self._registers(), refusal.page, write=refusal.kind == WRITE)

    def _registers(self) -> dict[str, int]:
        """As `registers`, from the context as it was when the last run ended."""
        registers = dict(zip(GPR_NAMES, self.context.gprs_and_rip(), strict=True))
        for segment in ("fs", "gs"):
            registers[f"{segment}_base"] = self.context.segment(segment)[1]
        return registers

    def _forget_exception(self) -> None:
        self.context.forget_exception()
        self.context.store()

    def _flush_code(self) -> None:
        self._uc.ctl_flush_tb()
        self._tlb.flush()

    def _interrupted(self, uc: Uc, vector: int, _: object) -> None:
        if self._interrupt is None:
            self._interrupt = vector
        uc.emu_stop()

    def _output(self, _uc: Uc, port: int, size: int, value: int, _: object) -> None:
        """OUT: devices see it when the guest has been left."""
        if len(self.outputs) < OUTPUTS_MAX:
            self.outputs.append((port, size, value))

    def _undefined(self, uc: Uc, _: object) -> bool:
        self._invalid = True
        uc.emu_stop()
        return False
