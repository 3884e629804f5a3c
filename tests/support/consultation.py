"""An examination and a scripted kernel, talking without sockets and without time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from policyc.addresses import GVA_UNKNOWN, PAGE_SIZE, Gpa, Gva, gfn_of
from policyc.guest.profile import Profile
from policyc.kvmi import (
    Command,
    ControlEvents,
    Dialect,
    ErrorCode,
    EventKind,
    GetCpuid,
    GetCpuidReply,
    GetMaxGfn,
    GetMaxGfnReply,
    Hello,
    HelloForm,
    KernelConnection,
    PageAccess,
    PfData,
    RemoteProtocolError,
    ReplyData,
    ToolConnection,
    VcpuGetInfo,
    VcpuGetInfoReply,
)
from policyc.kvmi.handshake import encode_hello
from policyc.runtime.doctor import Checkup, conclude, step
from policyc.runtime.doctor_chart import Chart
from policyc.runtime.frame_trials import Watch
from policyc.runtime.steps import (
    Connected,
    Input,
    Lost,
    Output,
    TimePassed,
)
from tests.support.guest_memory import NX, PRESENT, WRITABLE
from tests.support.scripted_kernel import IMAGE_BASE, IMAGE_GPA, ScriptedKernel
from tests.support.tool_side import ToolSide

__all__ = ["BIT_CLEAR", "BIT_SET", "CPUS", "Consultation", "OldSeries", "Patient", "cpuid_of", "patient"]

BIT_SET = 6
"""A page of the image whose frame's number has bit 1 set; it is in `.data`."""

BIT_CLEAR = 8
"""One whose number hasn't."""

COUNTER_AT = 0x88

JUST_IN_TIME = 0.001
"""Seconds before a deadline."""

HEADER = struct.Struct("<HHI")
HELLO_ANSWER_SIZE = 24

CPUS: Mapping[str, tuple[str, int]] = {
    "intel": ("GenuineIntel", 0x000506E3),
    "amd": ("AuthenticAMD", 0x00800F12),
    "other": ("CentaurHauls", 0x000006FE),
}
"""Vendor and signature of leaf 1, by a word for each."""

BRAND = b"A processor \x1b[2J  for tests"


def cpuid_of(cpu: str) -> dict[int, GetCpuidReply]:
    """The leaves that an examination looks at."""
    vendor, signature = CPUS[cpu]
    ebx, edx, ecx = struct.unpack("<III", vendor.encode())
    words = struct.unpack("<12I", BRAND.ljust(48, b"\0"))
    leaves = {0: GetCpuidReply(1, ebx, ecx, edx), 1: GetCpuidReply(signature, 0, 0, 0)}
    leaves[0x8000_0000] = GetCpuidReply(0x8000_0004, 0, 0, 0)
    for number in range(3):
        leaves[0x8000_0002 + number] = GetCpuidReply(*words[4 * number : 4 * number + 4])
    return leaves


@dataclass
class Patient(ScriptedKernel):
    """A scripted kernel with a processor, and a guest that writes by itself when time passes.

    Attributes:
        cpu: a word of `CPUS`.
        counters: pages of the image in which a counter runs.
        is_deaf: whether writes to protected frames whose number has bit 1 set pass without an event.
        is_mute: whether all do.
        held: writes whose event isn't answered yet, by vCPU.
        listening: the vCPUs for which page faults are on.
    """

    cpu: str = "intel"
    counters: tuple[int, ...] = (BIT_SET, BIT_CLEAR)
    is_deaf: bool = False
    is_mute: bool = False
    listening: set[int] = field(default_factory=set)
    held: dict[int, Gpa] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._wanted = self.override
        self.override = self._answer
        for page in range(BIT_SET, BIT_CLEAR + 1):
            gva, gpa = IMAGE_BASE + self.slide + page * PAGE_SIZE, IMAGE_GPA + page * PAGE_SIZE
            self.memory.map(self.root, gva, gpa, flags=PRESENT | WRITABLE | NX)
            self.memory.set_entry(gpa + COUNTER_AT, 1000)

    def tick(self) -> None:
        """Let the guest write to every counter, as far as its rights go."""
        for page in self.counters:
            gpa = Gpa(IMAGE_GPA + page * PAGE_SIZE)
            gfn = gfn_of(gpa)
            guarded = not self.rights.get(gfn, PageAccess.RWX) & PageAccess.W
            silent = self.is_mute or (self.is_deaf and gfn & 2)
            if not guarded or silent or 0 not in self.listening:
                self._count(gpa)
            elif 0 not in self.kernel.waiting:
                data = PfData(Gva(GVA_UNKNOWN), gpa, PageAccess.W)
                self.kernel.send_event(EventKind.PF, 0, self.vcpu_state(IMAGE_BASE + self.slide + 0x1000, 0), data)
                self.held[0] = gpa

    def kernel_reads(self, data: bytes) -> None:
        """Also carry out the writes whose events have been answered."""
        super().kernel_reads(data)
        for vcpu in [vcpu for vcpu in self.held if vcpu not in self.kernel.waiting]:
            self._count(self.held.pop(vcpu))

    def _count(self, gpa: Gpa) -> None:
        self.memory.set_entry(gpa + COUNTER_AT, self.memory.entry(gpa + COUNTER_AT) + 1)

    def _answer(self, command: Command) -> ReplyData | ErrorCode | None:
        wanted = self._wanted(command)
        if wanted is not None:
            return wanted
        match command:
            case GetCpuid(function=leaf):
                return cpuid_of(self.cpu).get(leaf, ErrorCode.ENOENT)
            case VcpuGetInfo():
                return VcpuGetInfoReply(2_400_000_000)
            case GetMaxGfn():
                return GetMaxGfnReply(gfn_of(Gpa(64 << 20)))
            case ControlEvents(vcpu=vcpu, event=EventKind.PF, enable=enable):
                (self.listening.add if enable else self.listening.discard)(vcpu)
        return None


def patient(
    dialect: Dialect,
    *,
    vcpus: int = 1,
    stopped: tuple[int, ...] = (),
    without_commands: tuple[type[Command], ...] = (),
    without_events: tuple[EventKind, ...] = (),
    override: Callable[[Command], ReplyData | ErrorCode | None] = lambda command: None,
    cpu: str = "intel",
    **rest: object,
) -> Patient:
    """A patient whose VMM allows everything but this."""
    made = Patient(dialect, vcpus=vcpus, override=override, cpu=cpu)
    for name, value in rest.items():
        setattr(made, name, value)
    made.kernel = KernelConnection(
        dialect,
        vcpus,
        commands=[command for command in dialect.commands if command not in without_commands],
        events=[kind for kind in dialect.events if kind not in without_events],
    )
    made.kernel.stopped = set(stopped)
    return made


class OldSeries:
    """A kernel of kvmi-v10 or kvmi-v11, as far as a tool gets with it: GET_VERSION as in v12, and command 22 exists.

    Args:
        errno: what CHECK_COMMAND answers: 0 where the VMM allows command 22, else EPERM.
    """

    def __init__(self, errno: int) -> None:
        self._errno = errno
        self._out: list[bytes] = []
        self._answered = False
        self.kernel = self

    def greet(self) -> None:
        self._out.append(encode_hello(Hello(bytes(range(16)), "old", max_gpa=Gpa(1 << 20), form=HelloForm.V12)))

    def tick(self) -> None:
        """Nothing runs here."""

    def data_to_send(self) -> list[bytes]:
        out, self._out = self._out, []
        return out

    def kernel_reads(self, data: bytes) -> None:
        if not self._answered:
            self._answered, data = True, data[HELLO_ANSWER_SIZE:]
        while data:
            number, size, seq = HEADER.unpack_from(data)
            data = data[HEADER.size + size :]
            payload = {2: struct.pack("<iIII8x", 0, 0, 1, 8184), 4: struct.pack("<iI", self._errno, 0)}[number]
            self._out.append(HEADER.pack(number, len(payload), seq) + payload)


class Peer(Protocol):
    """The other side, as far as a consultation needs it."""

    @property
    def kernel(self) -> Speaker: ...

    def greet(self) -> None: ...

    def tick(self) -> None: ...

    def kernel_reads(self, data: bytes) -> None: ...


class Speaker(Protocol):
    """What has bytes to send."""

    def data_to_send(self) -> list[bytes]: ...


@dataclass
class Consultation(ToolSide):
    """An examination of a scripted kernel.

    Attributes:
        is_late: whether the kernel answers when the patience for its answers is almost at an end.
        fault: how the peer broke the protocol, if it did.
    """

    peer: Peer
    profile: Profile | None = None
    is_probed: bool = False
    is_late: bool = False
    now: float = 100.0

    def __post_init__(self) -> None:
        self.checkup = Checkup(self.profile, Watch() if self.is_probed else None)
        self._begin(ToolConnection())
        self.fault: RemoteProtocolError | None = None
        self.feed(Connected())

    def examine(self, seconds: float = 200.0) -> Chart:
        """Say hello, talk, and let so much time pass; the chart that comes of it."""
        self.peer.greet()
        self.talk()
        self.pass_time(seconds)
        return self.end()

    def end(self, reason: str = "the peer closed the connection") -> Chart:
        """The connection is over."""
        self._take(Lost(reason))
        return conclude(self.checkup, self.disconnected or reason, self.fault)

    def feed(self, input: Input) -> None:
        """Hand the examination something that doesn't come over the wire, then talk."""
        self._take(input)
        self.talk()

    def pass_time(self, seconds: float) -> None:
        """Let time pass, waking the examination at each of its deadlines; the guest runs meanwhile."""
        end = self.now + seconds
        while self.disconnected is None and (deadline := self.checkup.deadline) is not None and deadline <= end:
            self.now = max(self.now, deadline - JUST_IN_TIME)
            self.peer.tick()
            while self.checkup.deadline == deadline and self._hear():
                self.talk()
            if self.checkup.deadline != deadline:
                continue
            self.now = max(self.now, deadline)
            self.feed(TimePassed())
        if self.disconnected is None:
            self.now = end

    def talk(self) -> None:
        """Pump until neither side has anything to send, or one has closed; a late kernel is heard when time passes."""
        while self.disconnected is None and self.fault is None:
            to_kernel = b"".join(self.tool.data_to_send())
            if to_kernel:
                self.peer.kernel_reads(to_kernel)
            if not to_kernel and (self.is_late or not self._hear()):
                return

    def _hear(self) -> bool:
        """Take what the kernel has to say; whether there was anything."""
        to_tool = b"".join(self.peer.kernel.data_to_send())
        if to_tool:
            self.tool_reads(to_tool)
        return bool(to_tool)

    def tool_reads(self, data: bytes) -> None:
        """Hand the examination what the other side sent."""
        try:
            self._tool_reads(data)
        except RemoteProtocolError as error:
            self.fault = error

    def _step(self, input: Input) -> list[Output]:
        return step(self.checkup, self.now, input)

    def _close(self, reason: str) -> None:
        self.disconnected = self.disconnected or reason
