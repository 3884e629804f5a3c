"""A KVMI kernel that does as a test tells it: real wire objects, guest memory made by hand, no guest code.

It plays the kernel's side for the enforcer without sockets and without time, so that every message, refusal and
hang-up can be put exactly where a test wants it. Attacks by real code are tried against the emulator, not here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, gfn_of
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.guest.readers import build_profile
from policyc.kvmi import (
    DONE,
    NEED_DATA,
    Action,
    CheckCommand,
    CheckEvent,
    Command,
    CommandReceived,
    CpuMode,
    DescriptorTable,
    Dialect,
    ErrorCode,
    EventData,
    EventKind,
    EventMsrs,
    EventReplyReceived,
    GetCpuid,
    GetCpuidReply,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    GetRegistersReply,
    GetVersion,
    GetVersionReply,
    Hello,
    HelloAnswer,
    HelloForm,
    InjectException,
    KernelConnection,
    MsrEntry,
    NewValue,
    PauseVcpu,
    ReadPhysical,
    ReadPhysicalReply,
    Registers,
    ReplyData,
    Segment,
    SetPageAccess,
    SystemRegisters,
    ToolConnection,
    TranslateGva,
    TranslateGvaReply,
    TrapData,
    VcpuState,
    page_entries,
)
from policyc.plan.model import Plan
from policyc.runtime.enforcer import step
from policyc.runtime.locate import ArmingOptions
from policyc.runtime.state import State
from policyc.runtime.steps import (
    Connected,
    Input,
    Lost,
    Output,
    TimePassed,
)
from tests.support.guest_memory import GuestMemory
from tests.support.tool_side import ToolSide

__all__ = [
    "IMAGE_BASE",
    "SILENCE",
    "SLIDE",
    "SYSTEM_MAP",
    "Conversation",
    "EventAnswer",
    "ScriptedKernel",
    "compile_plan",
    "gpa_of",
]

IMAGE_BASE = 0xFFFFFFFF81000000
SLIDE = 0x4200000
IMAGE_GPA = 0x100_0000
IMAGE_PAGES = 16
IDT_GVA = 0xFFFFFE0000000000
TSS_GVA = IDT_GVA + 0x3000
STACK_TOP = IDT_GVA + 0x2000
UNMAPPED = (1 << 64) - 1

SYSTEM_MAP = b"""\
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000080 T entry_SYSCALL_64
ffffffff81000a10 T asm_exc_divide_error
ffffffff81000c60 T asm_exc_page_fault
ffffffff81001000 T schedule
ffffffff81001200 T text_poke_memcpy
ffffffff81001240 T __text_poke
ffffffff81001300 T memcpy
ffffffff81001340 T after_memcpy
ffffffff81002345 T _etext
ffffffff81004000 R __start_rodata
ffffffff81004240 R sys_call_table
ffffffff81004440 R after_sys_call_table
ffffffff81006000 R __end_rodata
ffffffff81006000 D _sdata
ffffffff81006104 D guarded_object
ffffffff81006114 D neighbour
ffffffff81007000 D _edata
ffffffff81008000 B _end
"""

Result = ReplyData | ErrorCode | None

QUIET = ArmingOptions(verify=0.0, self_test=False)
"""Nothing is read that an event or the arming didn't ask for, so that a transcript shows those alone."""


def compile_plan(*texts: str, system_map: bytes = SYSTEM_MAP) -> Plan:
    """A plan for the scripted guest."""
    sources = [Source(f"{number}.policy", text) for number, text in enumerate(texts)]
    result = compile_policies(sources, build_profile(system_map))
    assert result.plan is not None, [diagnostic.message for diagnostic in result.diagnostics]
    return result.plan


def gpa_of(link_address: int) -> Gpa:
    """Where a link address of the image lies in the scripted guest's physical memory."""
    return Gpa(IMAGE_GPA + link_address - IMAGE_BASE)


def guest_memory(slide: int = SLIDE) -> tuple[GuestMemory, Gpa]:
    """The kernel image in 4 KiB pages, an IDT with two gates, and a TSS whose stacks are all one.

    Returns:
        The memory and the root of its tables.
    """
    memory = GuestMemory()
    root = memory.new_page()
    for page in range(IMAGE_PAGES):
        gpa = IMAGE_GPA + page * PAGE_SIZE
        memory.write(gpa, bytes([0x90]) * PAGE_SIZE)
        memory.map(root, IMAGE_BASE + slide + page * PAGE_SIZE, gpa)
    idt = memory.new_page()
    memory.map(root, IDT_GVA, idt)
    for vector, handler in ((0, IMAGE_BASE + 0xA10 + slide), (14, IMAGE_BASE + 0xC60 + slide)):
        gate = struct.pack("<HHBBHII", handler & 0xFFFF, 0x10, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0)
        memory.write(idt + vector * 16, gate)
    tss = memory.new_page()
    memory.map(root, TSS_GVA, tss)
    memory.map(root, STACK_TOP - PAGE_SIZE, memory.new_page())
    memory.write(tss, struct.pack("<I3Q8x7Q", 0, *[STACK_TOP] * 10))
    return memory, root


@dataclass(frozen=True)
class EventAnswer:
    """What the tool did with an event: the action, and the value that a register is to get."""

    action: Action | None
    value: NewValue | None


class _Silence(ReplyData):
    """No answer at all."""


SILENCE: ReplyData = _Silence()


@dataclass
class ScriptedKernel:
    """The kernel's side: bytes in, bytes out.

    Attributes:
        maker: whose processor CPUID leaf 0 shows.
        override: asked first about every command; what it returns, unless None, is the answer.
        log: the names of the commands, in the order they came, runs of one name once.
        rights: rights that the tool has set, by frame.
        answers: what the tool did with events, in order.
        silent_pauses: vCPUs whose PAUSE event doesn't come by itself.
        injections: the exception that each vCPU is to be given at its next entry into the guest.
        overtaking: vectors that are delivered instead, one for each injection, which is lost then.
        silent_traps: whether TRAP events don't come by themselves.
        unanswered: the commands that SILENCE was the answer to.
    """

    dialect: Dialect
    slide: int = SLIDE
    vcpus: int = 1
    maker: bytes = b"GenuineIntel"
    override: Callable[[Command], Result] = lambda command: None
    log: list[str] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    rights: dict[Gfn, int] = field(default_factory=dict)
    answers: list[EventAnswer] = field(default_factory=list)
    silent_pauses: set[int] = field(default_factory=set)
    injections: dict[int, InjectException] = field(default_factory=dict)
    overtaking: list[int] = field(default_factory=list)
    silent_traps: bool = False
    unanswered: list[CommandReceived] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory, self.root = guest_memory(self.slide)
        self.kernel = KernelConnection(self.dialect, vcpu_count=self.vcpus)

    def greet(self) -> None:
        """Say hello."""
        form = HelloForm.V12 if self.dialect.name == "kvmi-v12" else HelloForm.V7
        self.kernel.send_hello(Hello(bytes(range(16)), "scripted", form=form))

    def kernel_reads(self, data: bytes) -> None:
        """Take in what the tool sent and carry it out."""
        self.kernel.receive_data(data)
        while (received := self.kernel.next_event()) is not NEED_DATA:
            match received:
                case CommandReceived(command=command):
                    self._note(command)
                    result = self.override(command)
                    if result is None:
                        result = self.carry_out(command)
                    if isinstance(result, ErrorCode):
                        self.kernel.refuse(received, result)
                    elif result is SILENCE:
                        self.unanswered.append(received)
                    else:
                        self.kernel.answer(received, result)
                    if isinstance(command, PauseVcpu) and result is DONE and command.vcpu not in self.silent_pauses:
                        rip = IMAGE_BASE + self.slide + 0x1000
                        self.kernel.send_event(EventKind.PAUSE, command.vcpu, self.vcpu_state(rip, 0), None)
                case EventReplyReceived(vcpu=vcpu, action=action, data=reply_data, kind=kind):
                    if kind not in (EventKind.PAUSE, EventKind.TRAP):
                        value = reply_data if isinstance(reply_data, NewValue) else None
                        self.answers.append(EventAnswer(action, value))
                    self._enter(vcpu)
                case HelloAnswer():
                    pass
                case other:
                    raise AssertionError(f"the tool sent {other}")

    def answer_late(self, result: ErrorCode | None = None) -> None:
        """Answer after all what was left unanswered: like this, or as a healthy kernel does."""
        late, self.unanswered = self.unanswered, []
        for received in late:
            answer = self.carry_out(received.command) if result is None else result
            if isinstance(answer, ErrorCode):
                self.kernel.refuse(received, answer)
            else:
                self.kernel.answer(received, answer)

    def _enter(self, vcpu: int) -> None:
        """The vCPU goes on: first of all it is given what was injected, or loses it to something else."""
        injected = None if self.silent_traps else self.injections.pop(vcpu, None)
        if injected is not None:
            vector = self.overtaking.pop(0) if self.overtaking else injected.vector
            state = self.vcpu_state(IMAGE_BASE + self.slide + 0xA10, 0)
            self.kernel.send_event(EventKind.TRAP, vcpu, state, TrapData(vector, 0, 0))

    def _note(self, command: Command) -> None:
        self.commands.append(command)
        name = type(command).__name__
        if not self.log or self.log[-1] != name:
            self.log.append(name)

    def carry_out(self, command: Command) -> ReplyData | ErrorCode:
        """What a healthy kernel answers."""
        match command:
            case GetVersion():
                return GetVersionReply(max_message_size=8184 if self.dialect.name == "kvmi-v12" else 0)
            case GetCpuid():
                ebx, edx, ecx = struct.unpack("<3I", self.maker)
                return GetCpuidReply(0xD, ebx, ecx, edx)
            case GetInfo():
                return GetInfoReply(self.vcpus)
            case GetRegisters(msrs=msrs):
                lstar = IMAGE_BASE + 0x80 + self.slide
                regs, sregs = self.vcpu_state(0, 0).regs, self._sregs()
                return GetRegistersReply(CpuMode.LONG, regs, sregs, tuple(MsrEntry(index, lstar) for index in msrs))
            case ReadPhysical(gpa, size):
                page = self.memory.read(gfn_of(gpa))
                if page is None:
                    return ErrorCode.ENOENT
                return ReadPhysicalReply(page[gpa % PAGE_SIZE :][:size])
            case TranslateGva(gva=gva):
                from policyc.guest.paging import AddressSpace

                found = self.memory.translate(AddressSpace(self.root), gva)
                return TranslateGvaReply(found[0] if found else Gpa(UNMAPPED))
            case SetPageAccess():
                for gpa, rights in page_entries(command):
                    self.rights[gfn_of(gpa)] = rights
                    if rights == 7:
                        del self.rights[gfn_of(gpa)]
                return DONE
            case InjectException(vcpu=vcpu):
                if vcpu in self.injections:
                    return ErrorCode.EBUSY
                self.injections[vcpu] = command
                return DONE
            case CheckCommand() | CheckEvent():
                return DONE
            case _:
                return DONE

    def _sregs(self) -> SystemRegisters:
        return SystemRegisters(
            idt=DescriptorTable(IDT_GVA, 0xFFF),
            gdt=DescriptorTable(IMAGE_BASE + self.slide + 0x6000, 0x7F),
            tr=Segment(base=TSS_GVA, limit=0x67, type=11, present=1),
            cr0=0x80050033,
            cr3=self.root,
            cr4=0x3006F0,
            efer=0xD01,
        )

    def vcpu_state(self, rip: int, rsp: int) -> VcpuState:
        """A vCPU in the kernel, at `rip`."""
        return VcpuState(CpuMode.LONG, Registers(rip=rip, rsp=rsp, rflags=2), self._sregs(), EventMsrs())


@dataclass
class Conversation(ToolSide):
    """The enforcer and the scripted kernel, talking until both have nothing more to say.

    Attributes:
        peer: the kernel.
        arming: the operator's options.
    """

    plan: Plan
    peer: ScriptedKernel
    arming: ArmingOptions = QUIET
    now: float = 100.0

    def __post_init__(self) -> None:
        self.state = State(self.plan, arming=self.arming)
        self._begin(ToolConnection(execute_only=True))
        self._step(Connected())

    def _step(self, input: Input) -> list[Output]:
        return step(self.state, self.now, input)

    # --- what a test does ---

    def connect(self) -> None:
        """Say hello and talk until the guest is armed or refused."""
        self.peer.greet()
        self.talk()

    def event(
        self, kind: EventKind, data: EventData | None = None, *, rip: int, rsp: int = 0, vcpu: int = 0
    ) -> EventAnswer:
        """Raise an event and return what the tool did with it."""
        before = len(self.peer.answers)
        self.peer.kernel.send_event(kind, vcpu, self.peer.vcpu_state(rip, rsp), data)
        self.talk()
        (answer,) = self.peer.answers[before:]
        return answer

    def feed(self, input: Input) -> None:
        """Hand the enforcer something that doesn't come over the wire, then talk."""
        self._take(input)
        self.talk()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, waking the enforcer at each of its deadlines."""
        end = self.now + seconds
        while (deadline := self.state.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.feed(TimePassed())
        self.now = end

    def hang_up(self) -> None:
        """The peer is gone."""
        self._take(Lost("the peer closed the connection"))

    def phases(self) -> list[str]:
        """The states that were recorded, in order."""
        return [record.state for record in self.records if hasattr(record, "state")]

    # --- the two sides ---

    def talk(self) -> None:
        """Pump until neither side has anything to send."""
        while True:
            to_tool = b"".join(self.peer.kernel.data_to_send())
            if to_tool:
                self._tool_reads(to_tool)
            to_kernel = b"".join(self.tool.data_to_send())
            if to_kernel:
                self.peer.kernel_reads(to_kernel)
            if not to_tool and not to_kernel:
                return
