"""One transcript for each cell of the legality table and each dialect: what is done on the wire, byte by byte.

.venv/bin/python -m tests.support.transcripts

A transcript has a scene for each word of its column, and some for what may go otherwise. In it, `<` is what came from
the kernel and `>` what the tool sent, each with its bytes, `=` what was recorded, `!` how the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from policyc.addresses import Gpa, Gva
from policyc.catalog import LEGALITY, RETRYABLE, TARGETS, Column, EffectKind
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.guest.readers import build_profile
from policyc.kvmi import (
    DIALECTS,
    BreakpointData,
    CpuidData,
    CpuMode,
    CrData,
    Descriptor,
    DescriptorData,
    EventData,
    EventKind,
    MsrData,
    PageAccess,
    PfData,
    Registers,
    XsetbvData,
)
from policyc.plan.model import Plan
from policyc.runtime.state import Phase
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, SYSTEM_MAP, gpa_of
from tests.support.transcript_recorder import Recorder, RecordingKernel

__all__ = ["FOLDER", "REFRESH", "Cell", "cells", "transcript"]

FOLDER = Path(__file__).parent.parent / "runtime" / "transcripts"

REFRESH = ".venv/bin/python -m tests.support.transcripts"

MODULE = 0xFFFFFFFFC0401000
"""Where the code runs that causes every event; nobody guards it."""

STORE = bytes.fromhex("488903")  # mov [rbx], rax
EXCHANGE = bytes.fromhex("488703")  # xchg [rbx], rax
TEXT = IMAGE_BASE + 0x1005
RODATA = IMAGE_BASE + 0x4248
TIMER = 0xEC
"""The interrupt that overtakes an exception."""


@dataclass(frozen=True)
class Subject:
    """An event as a rule names it, and as the guest causes it.

    Attributes:
        words: the event's words, or the access and its place.
        code: what stands at RIP.
    """

    words: str
    kind: EventKind
    data: EventData | None = None
    code: bytes = STORE
    mode: CpuMode = CpuMode.LONG
    registers: Registers = field(default_factory=Registers)

    def rule(self, effect: str, clause: str = "") -> str:
        """A rule about it."""
        if self.kind is EventKind.PF:
            return f"{effect} {self.words}{clause}"
        return f"on {self.words} {effect}{clause}"


def _page_fault(words: str, access: PageAccess, at: int, code: bytes = STORE) -> Subject:
    return Subject(words, EventKind.PF, PfData(Gva(at + SLIDE), gpa_of(at), access), code)


def _descriptor(table: Descriptor, code: str, *, write: bool) -> Subject:
    words = f"{table.name.lower()} {'write' if write else 'read'}"
    return Subject(words, EventKind.DESCRIPTOR, DescriptorData(table, write), bytes.fromhex(code))


CALL = Registers(rax=34, rdi=24, rbx=24, rdx=0x11, r10=0x22, r8=0x33, r9=0x44, rbp=0x55)

SUBJECTS: Mapping[Column, tuple[Subject, ...]] = {
    Column.WRITE: (
        _page_fault("write to kernel .text", PageAccess.W, TEXT),
        _page_fault("write to kernel .text", PageAccess.W, TEXT, EXCHANGE),
    ),
    Column.READ_EXECUTE: (
        _page_fault("read of kernel .rodata", PageAccess.R, RODATA),
        _page_fault("execute of kernel .text", PageAccess.X, TEXT),
    ),
    Column.REGISTER: (
        Subject("cr0", EventKind.CR, CrData(0, 0x80050033, 0x80040031)),
        Subject("cr3", EventKind.CR, CrData(3, 0x2A0A000, 0x2B0B000)),
        Subject("cr4", EventKind.CR, CrData(4, 0x3006F0, 0x6F0)),
        Subject("msr lstar", EventKind.MSR, MsrData(0xC0000082, IMAGE_BASE + SLIDE + 0x80, MODULE)),
        Subject("msr efer", EventKind.MSR, MsrData(0xC0000080, 0xD01, 0x501)),
    ),
    Column.DESCRIPTOR: (
        _descriptor(Descriptor.IDTR, "0f0118", write=True),
        _descriptor(Descriptor.IDTR, "0f0108", write=False),
        _descriptor(Descriptor.GDTR, "0f0110", write=True),
        _descriptor(Descriptor.GDTR, "0f0100", write=False),
        _descriptor(Descriptor.LDTR, "0f00d0", write=True),
        _descriptor(Descriptor.LDTR, "0f00c0", write=False),
        _descriptor(Descriptor.TR, "0f00d8", write=True),
        _descriptor(Descriptor.TR, "0f00c8", write=False),
    ),
    Column.BREAKPOINT: (Subject("breakpoint", EventKind.BREAKPOINT, BreakpointData(Gpa(0x7000), 1), b"\xcc"),),
    Column.HYPERCALL: (
        Subject("hypercall 34/24", EventKind.HYPERCALL, registers=CALL),
        Subject("hypercall 34/24", EventKind.HYPERCALL, mode=CpuMode.PROTECTED, registers=CALL),
    ),
    Column.XSETBV: (Subject("xsetbv", EventKind.XSETBV, XsetbvData(0, 1, 3)),),
    Column.CPUID: (Subject("cpuid 0x40000000", EventKind.CPUID, CpuidData(0x40000000, 0, 2)),),
    Column.CREATED: (Subject("vcpu created", EventKind.CREATE_VCPU),),
    Column.UNHOOK: (Subject("unhook", EventKind.UNHOOK),),
}
"""What there is to be judged in each column; the second write is one that can't be stepped over without loss."""

ONLY_V7 = frozenset({Column.CPUID, Column.CREATED})

WRITTEN: Mapping[EffectKind, tuple[str, str]] = {
    EffectKind.ALLOW: ("allow", ' because "it may"'),
    EffectKind.LOG: ("log", ""),
    EffectKind.PIN: ("pin {bit}", ""),
    EffectKind.SKIP: ("skip", ""),
    EffectKind.DENY: ("deny", ""),
    EffectKind.FAULT: ("deny", " by fault"),
    EffectKind.INJECT: ("inject ud", ""),
    EffectKind.CRASH: ("crash", ""),
}
"""How each effect is written."""

PINNED = {"cr0": "wp", "cr4": "smep", "msr efer": "nxe"}


@dataclass(frozen=True)
class Cell:
    """One effect on one column's events, tried again first or not."""

    effect: EffectKind
    column: Column
    retry: bool = False

    @property
    def name(self) -> str:
        """The transcript's file name."""
        retry = "-retry" if self.retry else ""
        return f"{self.column.name.lower()}{retry}-{self.effect.name.lower()}.txt"

    def rule(self, subject: Subject, suffix: str = "") -> str:
        """The policy for one scene."""
        word, clause = WRITTEN[self.effect]
        effect = ("retry 2 then " if self.retry else "") + word.format(bit=PINNED.get(subject.words))
        rule = f"rule: {subject.rule(effect, clause + suffix)}"
        # A hole needs something to be cut into.
        return f"other: {subject.rule('log')} {rule}" if self.effect is EffectKind.ALLOW else rule


def cells(dialect: str) -> Iterator[Cell]:
    """Every cell that there is in a dialect."""
    for column in Column:
        if column in ONLY_V7 and dialect != "kvmi-v7":
            continue
        for effect in EffectKind:
            if column in LEGALITY[effect]:
                yield Cell(effect, column)
                if column in RETRYABLE and effect is not EffectKind.ALLOW:
                    yield Cell(effect, column, retry=True)


def transcript(cell: Cell, dialect: str) -> str:
    """The whole text of one transcript."""
    scenes = [f"# {dialect}: {cell.effect.name.lower()} on {cell.column.value}"]
    scenes[0] += ", tried again twice first\n" if cell.retry else "\n"
    subjects = SUBJECTS[cell.column]
    if cell.effect is EffectKind.PIN:
        subjects = tuple(subject for subject in subjects if subject.words in PINNED)
    for subject in subjects:
        scenes += _scene(_title(subject), cell.rule(subject), subject, dialect, _as_often_as_it_takes(cell))
    first = subjects[0]
    if cell.effect in (EffectKind.FAULT, EffectKind.INJECT) and not cell.retry:
        scenes += _scene("overtaken by an interrupt", cell.rule(first), first, dialect, _overtaken)
        scenes += _scene("never confirmed", cell.rule(first), first, dialect, _unconfirmed)
    if cell.retry:
        scenes += _scene("given up after the first time", cell.rule(first), first, dialect, _given_up)
    if cell.effect is not EffectKind.ALLOW:
        # Registers are special here as well: a reply without their new value would write 0.
        for subject in subjects if cell.column is Column.REGISTER else (first,):
            text = cell.rule(subject, " mode monitor")
            scenes += _scene(f"{_title(subject)}, monitored", text, subject, dialect, _raise_once)
        scenes += _scene("under the ceiling of run --monitor", cell.rule(first), first, dialect, _under_the_ceiling)
    return "\n".join(scenes) + "\n"


# --- what happens in a scene ---

Play = Callable[[Recorder, Subject], None]


def _raise_once(talk: Recorder, subject: Subject, rip: int = MODULE) -> None:
    if subject.kind is EventKind.UNHOOK:
        talk.peer.kernel.send_vm_event(EventKind.UNHOOK)
    else:
        registers = subject.registers._replace(rip=rip, rflags=2)
        data = subject.data if talk.peer.dialect.events[subject.kind].data_type is not None else None
        talk.peer.kernel.send_event(
            subject.kind, 0, replace(talk.peer.vcpu_state(rip, 0), mode=subject.mode, regs=registers), data
        )
    talk.talk()


def _as_often_as_it_takes(cell: Cell) -> Play:
    """What is tried again twice takes three events, and a guest may run on after CRASH."""
    tries = 3 if cell.retry else 1
    often = 2 * tries if cell.effect is EffectKind.CRASH else tries

    def play(talk: Recorder, subject: Subject) -> None:
        for _ in range(often):
            _raise_once(talk, subject)

    return play


def _overtaken(talk: Recorder, subject: Subject) -> None:
    talk.peer.overtaking.append(TIMER)
    _raise_once(talk, subject)
    if subject.kind is not EventKind.HYPERCALL:
        # RETRY: the guest comes back to it when the interrupt's handler has returned.
        _raise_once(talk, subject)


def _unconfirmed(talk: Recorder, subject: Subject) -> None:
    talk.peer.silent_traps = True
    _raise_once(talk, subject)
    talk.hang_up()


def _given_up(talk: Recorder, subject: Subject) -> None:
    """The guest does the same elsewhere, which is another event, and then the connection ends."""
    _raise_once(talk, subject)
    _raise_once(talk, subject, rip=MODULE + 0x100)
    talk.hang_up()


def _under_the_ceiling(talk: Recorder, subject: Subject) -> None:
    talk.state.monitor = True
    _raise_once(talk, subject)


def _scene(title: str, policy: str, subject: Subject, dialect: str, play: Play) -> list[str]:
    kernel = RecordingKernel(DIALECTS[dialect])
    page = kernel.memory.new_page()
    kernel.memory.map(kernel.root, MODULE, page)
    kernel.memory.write(page, subject.code)
    talk = Recorder(_compile(policy, dialect), kernel)
    talk.connect()
    assert talk.state.phase is Phase.ARMED, talk.records
    talk.begin()
    play(talk, subject)
    return [f"== {title}", f"{policy}", *talk.lines, ""]


def _title(subject: Subject) -> str:
    wide = "" if subject.mode is CpuMode.LONG else f", {subject.mode.name.lower()} mode"
    return subject.words + wide + (", by an exchange" if subject.code is EXCHANGE else "")


def _compile(policy: str, dialect: str) -> Plan:
    options = CheckOptions(target=dialect, cpu="intel", accept_hot_pages=True)
    result = compile_policies([Source("0.policy", policy)], build_profile(SYSTEM_MAP), options)
    assert result.plan is not None, (policy, [diagnostic.message for diagnostic in result.diagnostics])
    return result.plan


def main() -> None:
    """Write every transcript anew, and remove what is none any more."""
    for dialect in TARGETS:
        folder = FOLDER / dialect
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {cell.name: cell for cell in cells(dialect)}
        for path in folder.iterdir():
            if path.name not in wanted:
                path.unlink()
        for name, cell in wanted.items():
            (folder / name).write_text(transcript(cell, dialect))
        print(f"{len(wanted)} transcripts of {dialect}")  # noqa: T201 - a command says what it did


if __name__ == "__main__":
    main()
