"""The real enforcer against the real emulator, one instruction at a time, and the same instruction unguarded.

Both machines run the small guest. A laboratory of pages is mapped where its modules lie: code that the plan keeps
unwritable and code that it doesn't, objects that it guards, memory that it knows nothing of, a stack. An instruction is
followed by HLT; a fault on it ends at a fixup of the guest's own exception tables, which is HLT as well.

Enforcer and emulator exchange the bytes of real connections. What is expected comes from the other machine alone, which
nobody guards: there Unicorn's memory hooks tell what an instruction reads and writes, and its registers what it does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from unicorn import UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MEM_WRITE, Uc
from unicorn import x86_const as x86

from policyc.addresses import PAGE_SIZE, Gpa
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.context import GPR_NAMES
from policyc.emulator.image import small_system_map
from policyc.emulator.introspection import Introspection
from policyc.emulator.small_machine import SmallMachine
from policyc.emulator.stops import BudgetSpent
from policyc.guest.readers import build_profile
from policyc.kvmi import V12, Command, Dialect, Hello, HelloForm, Status, ToolConnection
from policyc.kvmi import Reply as CommandReply
from policyc.plan.model import Plan
from policyc.runtime.enforcer import step
from policyc.runtime.records import Record, VerdictRecord
from policyc.runtime.state import GUARDING, State
from policyc.runtime.steps import Answered, Connected, GreetVmm, Input, Output, Reply, Send, Write

__all__ = [
    "CODE_PAGES",
    "DATA",
    "EXCEPTION_FRAME",
    "FIXUP",
    "GUARDED_READS",
    "GUARDED_WRITES",
    "HEAD",
    "LAB",
    "LAB_GPA",
    "OBJECT",
    "PLAIN",
    "POLICY",
    "SECRET",
    "SECRET_HEAD",
    "SOURCE_AT",
    "STACK_TOP",
    "TAIL",
    "Access",
    "Guarded",
    "Laboratory",
    "Outcome",
    "Span",
    "StuckError",
    "Turn",
    "Unguarded",
    "UnknownInstructionError",
    "low",
    "spans_by_page",
]

RAM = 32 << 20
SLIDE = 0x1240_0000
LAB = 0xFFFF_FFFF_C050_0000
LAB_LOW = 0x50_0000
LAB_GPA = 0x180_0000
PAGES = 52
FILLED = range(32, 51)
DATA = LAB + FILLED.start * PAGE_SIZE
SLOT = 32
"""Bytes from one instruction's place to the next: no two share one, so nothing known of one holds for another."""
CODE_PAGES = 16
SLOTS = CODE_PAGES * PAGE_SIZE // SLOT
EXTABLE, FIXUP = LAB + 51 * PAGE_SIZE, LAB + 51 * PAGE_SIZE + 0x100
GAP = 256
"""Bytes between what an instruction touches of one operand, at most: XSAVE leaves some out."""
STACK_TOP = LAB + 49 * PAGE_SIZE
SOURCE_AT = LAB + 50 * PAGE_SIZE + 0x400
EXCEPTION_FRAME = 0x200
"""More than what the processor and the guest's handler push for an exception."""
STILL_MAX = 40
"""Rounds without a register changed, after which nothing more is expected."""
HLT = 0xF4
MASK_OF_BYTES = bytes.fromhex("80800000800000800080000080008080")
"""In XMM2, for MASKMOVDQU."""
MSR_FS_BASE, MSR_GS_BASE = 0xC000_0100, 0xC000_0101

_XMM = tuple(x86.UC_X86_REG_XMM0 + number for number in (0, 1, 2, 9))
_FP = tuple(x86.UC_X86_REG_FP0 + number for number in range(8))
_CONTROL = (x86.UC_X86_REG_FPCW, x86.UC_X86_REG_FPSW, x86.UC_X86_REG_FPTAG, x86.UC_X86_REG_MXCSR)


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) by their virtual addresses in the laboratory."""

    start: int
    end: int

    def meets(self, start: int, end: int) -> bool:
        """Whether it has a byte in common with [start, end)."""
        return self.start < end and start < self.end


def _at(page: int, offset: int, size: int) -> Span:
    start = LAB + page * PAGE_SIZE + offset
    return Span(start, start + size)


OBJECT = _at(33, 0x800, 0x40)
HEAD = _at(36, 0, 0x20)
TAIL = _at(38, PAGE_SIZE - 0x20, 0x20)
SECRET = _at(40, 0x800, 0x40)
SECRET_HEAD = _at(42, 0, 0x20)
PLAIN = _at(44, 0x800, 0x40)
"""Objects amid their pages, at a page's beginning and at its end; the secret ones may not be read; one is unguarded."""

GUARDED_WRITES = (OBJECT, HEAD, TAIL)
GUARDED_READS = (SECRET, SECRET_HEAD)

POLICY = f"""
text: deny write to kernel .text
code: deny write to virtual {LAB:#x} size {CODE_PAGES * PAGE_SIZE:#x}
object: deny write to virtual {OBJECT.start:#x} size {OBJECT.end - OBJECT.start:#x}
head: deny write to virtual {HEAD.start:#x} size {HEAD.end - HEAD.start:#x}
tail: deny write to virtual {TAIL.start:#x} size {TAIL.end - TAIL.start:#x}
secret: deny read, execute of virtual {SECRET.start:#x} size {SECRET.end - SECRET.start:#x}
secret-head: deny read, execute of virtual {SECRET_HEAD.start:#x} size {SECRET_HEAD.end - SECRET_HEAD.start:#x}
"""


def low(address: int) -> int:
    """The 32-bit address that the laboratory is mapped at as well."""
    return address - LAB + LAB_LOW


class StuckError(AssertionError):
    """The guest made no end: every answer brought the next event."""


class UnknownInstructionError(Exception):
    """A machine without a guard doesn't run it either."""


@dataclass(frozen=True)
class Access:
    """Bytes [start, end) that were read or written at once, by their addresses in the laboratory."""

    start: int
    end: int
    written: bool


@dataclass(frozen=True)
class Outcome:
    """The state of the processor and of the laboratory.

    Attributes:
        registers: general registers, RIP, RFLAGS.
        vectors: x87 and SSE registers with their control words.
        memory: the laboratory's pages of data, from `DATA` on.
        fault: vector and RIP of an exception that ended at the fixup.
    """

    registers: Mapping[str, int]
    vectors: tuple[object, ...]
    memory: bytes
    fault: tuple[int, int] | None = None

    def bytes_at(self, span: Span) -> bytes:
        """What lies there."""
        return self.memory[span.start - DATA : span.end - DATA]


@dataclass(frozen=True)
class Turn:
    """What one instruction did, or one repetition of it, on a machine without a guard; `before` is the state then."""

    before: Outcome
    accesses: tuple[Access, ...]


class Laboratory:
    """A machine with the small guest, its idle vCPU, and the laboratory's pages."""

    def __init__(self, cpu: str) -> None:
        self.machine = SmallMachine.boot(slide=SLIDE, ram=RAM, cpu=cpu)
        self.vcpu = self.machine.vcpus[0]
        self.engine = self.vcpu.engine
        memory, machine = self.machine.memory, self.machine
        for page in range(PAGES):
            frame = LAB_GPA + page * PAGE_SIZE
            for table, base in (("level1_module_pgt", LAB), ("level1_user_pgt", LAB_LOW)):
                index = base // PAGE_SIZE % 512 + page
                memory.write(Gpa(machine.gpa(machine.symbol(table)) + 8 * index), struct.pack("<Q", frame | 3))
        memory.write(Gpa(LAB_GPA), bytes([HLT]) * (PAGES * PAGE_SIZE))
        extable = machine.gpa(machine.symbol("module_extable"))
        memory.write(extable, struct.pack("<QQ", EXTABLE, EXTABLE + 8))
        self._load_vectors()
        self.start = self.engine._uc.context_save()

    def prepare(
        self,
        at: int,
        code: bytes,
        registers: Mapping[str, int],
        fill: int | None,
        *,
        handled: int | None = None,
        content: Mapping[int, bytes] = MappingProxyType({}),
    ) -> None:
        """Put an instruction into its place, memory and registers as they are before it.

        Args:
            handled: where a fault may happen that ends at the fixup; None for the instruction itself.
            content: what else lies in memory, by address.
        """
        memory, engine = self.machine.memory, self.engine
        engine._uc.context_restore(self.start)
        memory.write(Gpa(LAB_GPA + DATA - LAB), _filling(fill))
        memory.write(Gpa(LAB_GPA + at - LAB), code.ljust(SLOT, bytes([HLT])))
        memory.write(Gpa(LAB_GPA + EXTABLE - LAB), struct.pack("<ii", (handled or at) - EXTABLE, FIXUP - EXTABLE - 4))
        for address, data in content.items():
            memory.write(Gpa(LAB_GPA + address - LAB), data)
        self.machine.write_int("last_fault_rip", 0)
        general = dict.fromkeys(GPR_NAMES, 0) | {"rsp": STACK_TOP - 0x800, "rflags": 2, "rip": at}
        general.update(registers)
        for index, name in ((MSR_FS_BASE, "fs_base"), (MSR_GS_BASE, "gs_base")):
            engine.msr_write(index, general.pop(name, 0))
        for name, value in general.items():
            engine.set(name, value)
        engine.flush_tlb()
        self.vcpu.halted = False

    def map(self, page: int, frame: int | None) -> None:
        """Let a page of the laboratory lead to the frame of another, or nowhere; RAM as the host sees it."""
        machine = self.machine
        entry = machine.gpa(machine.symbol("level1_module_pgt")) + 8 * (LAB // PAGE_SIZE % 512 + page)
        machine.memory.write(Gpa(entry), struct.pack("<Q", 0 if frame is None else LAB_GPA + frame * PAGE_SIZE | 3))
        self.engine.flush_tlb()

    def outcome(self) -> Outcome:
        """The state as it is now."""
        engine, machine = self.engine, self.machine
        engine.context.load()
        registers = dict(zip(GPR_NAMES, engine.context.gprs_and_rip(), strict=True))
        registers["rflags"] = engine.get("rflags")
        at = machine.read_int("last_fault_rip")
        return Outcome(
            registers=registers,
            vectors=tuple(engine.read_native(register) for register in (*_XMM, *_FP, *_CONTROL)),
            memory=machine.memory.read(Gpa(LAB_GPA + DATA - LAB), len(FILLED) * PAGE_SIZE),
            fault=(machine.read_int("last_fault_vector"), at) if at else None,
        )

    def _load_vectors(self) -> None:
        for number, register in enumerate(_XMM):
            content = MASK_OF_BYTES if number == 2 else bytes(range(0x1F * number + 1, 0x1F * number + 17))
            value = int.from_bytes(content, "little")
            self.engine.write_native(register, value)
        for number, register in enumerate(_FP):
            self.engine.write_native(register, (0x8080_0000_8000_8080 | number << 8, 0x3FFF + number))
        # ST0 is register 5; three of the eight are in use.
        for register, value in zip(_CONTROL, (0x037F, 5 << 11, 0x03FF, 0x1F80), strict=True):
            self.engine.write_native(register, value)


@lru_cache
def _filling(fill: int | None) -> bytes:
    size = len(FILLED) * PAGE_SIZE
    if fill is not None:
        return fill.to_bytes(8, "little") * (size // 8)
    return bytes(position * 73 + (position >> 8) * 29 & 0xFF for position in range(PAGE_SIZE)) * len(FILLED)


class Unguarded:
    """The machine that nobody guards."""

    def __init__(self, cpu: str) -> None:
        self.lab = Laboratory(cpu)
        self._seen: list[Access] = []
        self.lab.engine._uc.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, self._note)

    def run(
        self, at: int, code: bytes, registers: Mapping[str, int], fill: int | None = None
    ) -> tuple[Sequence[Turn], Outcome]:
        """What the instruction does, turn by turn, and the state when it is through.

        Raises:
            UnknownInstructionError: it faults.
        """
        lab = self.lab
        lab.prepare(at, code, registers, fill)
        turns: list[Turn] = []
        while lab.engine.get("rip") == at:
            assert len(turns) < 64, "the instruction has no end"
            before = lab.outcome()
            self._seen.clear()
            stop = lab.engine.step()
            if not isinstance(stop, BudgetSpent):
                raise UnknownInstructionError(f"{code.hex()} can't be run: {stop}")
            turns.append(Turn(before, tuple(self._seen)))
        return turns, lab.outcome()

    def _note(self, _uc: Uc, kind: int, address: int, size: int, _value: int, _: object) -> None:
        start = address - LAB_GPA + LAB
        self._seen.append(Access(start, start + size, kind == UC_MEM_WRITE))


class Guarded:
    """The machine that the enforcer guards, armed.

    Attributes:
        records: what the enforcer wrote down since the last run began.
        state: the enforcer's.
        meanwhile: is called with every command before the kernel gets it: time for another vCPU.
    """

    def __init__(self, dialect: Dialect, cpu: str, policy: str = POLICY) -> None:
        self.lab = Laboratory(cpu)
        newer = dialect is V12
        hello = Hello(
            bytes(range(16)),
            "laboratory",
            1_700_000_000,
            Gpa(RAM) if newer else None,
            form=HelloForm.V12 if newer else HelloForm.V7,
        )
        self.session = Introspection(self.lab.machine, dialect, hello)
        self.state = State(_compiled(policy))
        self.records: list[Record] = []
        self.meanwhile: Callable[[Command], None] = lambda command: None
        self._wire = ToolConnection()
        self._tickets: dict[int, int] = {}
        self._slots = iter(range(SLOTS))
        self.now = 100.0
        self.feed(Connected())
        self.pump(limit=200)
        assert self.state.phase in GUARDING, self.state.outcome
        self._armed = (self.state.phase, self.lab.machine.memory.restrictions())

    @property
    def intact(self) -> bool:
        """Whether everything is guarded as it was when it had just been armed, and nothing is under way."""
        now = (self.state.phase, self.lab.machine.memory.restrictions())
        return now == self._armed and self.lab.vcpu.waiting is None

    def slot(self) -> int | None:
        """Where the next instruction goes, from the start of either kind of code; None when there is no more room."""
        number = next(self._slots, None)
        return None if number is None else number * SLOT

    def run(
        self,
        at: int,
        code: bytes,
        registers: Mapping[str, int],
        fill: int | None = None,
        *,
        handled: int | None = None,
        content: Mapping[int, bytes] = MappingProxyType({}),
    ) -> Outcome:
        """What becomes of the instruction; see `Laboratory.prepare`.

        Raises:
            StuckError: nothing does, however often its events are answered.
        """
        self.lab.prepare(at, code, registers, fill, handled=handled, content=content)
        self.records.clear()
        self.pump(limit=5000)
        return self.lab.outcome()

    @property
    def done(self) -> list[str]:
        """What was done to the accesses that a rule was about."""
        return [record.done for record in self.records if isinstance(record, VerdictRecord)]

    def pump(self, limit: int) -> None:
        """Carry bytes both ways and run the guest until neither has anything to say or do.

        Raises:
            StuckError: they never stop within `limit` rounds.
        """
        where, still = None, 0
        for _ in range(limit):
            talked = self._exchange()
            self.lab.machine.run_until_idle()
            if not talked and not self._exchange():
                return
            self.lab.engine.context.load()
            now = self.lab.engine.context.gprs_and_rip()
            still = still + 1 if now == where else 0
            if still > STILL_MAX:
                raise StuckError(f"the guest is where it was {STILL_MAX} answers ago")
            where = now
        raise StuckError(f"the guest has come to no end after {limit} answers")

    def feed(self, input: Input) -> None:
        """Hand the enforcer something that doesn't come over the wire."""
        self._carry_out(step(self.state, self.now, input))

    def _exchange(self) -> bool:
        said = b"".join(self._wire.data_to_send())
        if said:
            self.session.receive(said)
        answer = self.session.outgoing()
        if answer:
            self._wire.receive_data(answer)
            while not isinstance(event := self._wire.next_event(), Status):
                if isinstance(event, CommandReply):
                    self.feed(Answered(self._tickets.pop(event.seq), event.result))
                else:
                    self.feed(event)
        return bool(said or answer)

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Reply(event, action, data):
                    self._wire.reply(event, action, data)
                case Send(ticket, command):
                    self.meanwhile(command)
                    self._tickets[self._wire.send(command)] = ticket
                case GreetVmm():
                    self._wire.answer_hello()
                case Write(record):
                    self.records.append(record)


@lru_cache
def _compiled(policy: str) -> Plan:
    result = compile_policies(
        [Source("laboratory.policy", policy)],
        build_profile(small_system_map().encode()),
        CheckOptions(accept_hot_pages=True),
    )
    assert result.plan is not None, [diagnostic.message for diagnostic in result.diagnostics]
    return result.plan


def spans_by_page(accesses: Sequence[Access], *, written: bool) -> Iterator[Sequence[Span]]:
    """The operands that were read or written: for each its bytes from the first to the last, a page at a time."""
    chosen = sorted((access.start, access.end) for access in accesses if access.written is written)
    while chosen:
        start, end = chosen.pop(0)
        while chosen and chosen[0][0] <= end + GAP:
            end = max(end, chosen.pop(0)[1])
        yield [
            Span(max(start, page), min(end, page + PAGE_SIZE))
            for page in range(start // PAGE_SIZE * PAGE_SIZE, end, PAGE_SIZE)
        ]
