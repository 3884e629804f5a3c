"""The commands a tool may send and what the kernel answers, one frozen dataclass each.

Names are KVMI's own without prefix, in CamelCase: `KVMI_VCPU_TRANSLATE_GVA` is `TranslateGva`. The fields are those of
every generation together; a field that a dialect has no place for may only hold its default there, and encoding
anything else is a `LocalProtocolError`. Which commands a dialect has, under which number, stands in the dialects.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from policyc.kvmi.registers import MsrEntry, Registers, SystemRegisters
from policyc.kvmi.vocabulary import CpuMode, EventKind, PageAccess

if TYPE_CHECKING:
    from policyc.addresses import Gfn, Gpa, Gva

__all__ = [
    "DONE",
    "ChangeGfn",
    "CheckCommand",
    "CheckEvent",
    "Command",
    "ControlCleanup",
    "ControlCmdResponse",
    "ControlCr",
    "ControlEptView",
    "ControlEvents",
    "ControlMsr",
    "ControlSinglestep",
    "ControlSpp",
    "ControlVmEvents",
    "DisableVe",
    "Done",
    "Features",
    "GetCpuid",
    "GetCpuidReply",
    "GetEptView",
    "GetEptViewReply",
    "GetInfo",
    "GetInfoReply",
    "GetMapToken",
    "GetMapTokenReply",
    "GetMaxGfn",
    "GetMaxGfnReply",
    "GetMtrrType",
    "GetMtrrTypeReply",
    "GetPageAccess",
    "GetPageAccessReply",
    "GetPageWriteBitmap",
    "GetPageWriteBitmapReply",
    "GetRegisters",
    "GetRegistersReply",
    "GetVersion",
    "GetVersionReply",
    "GetXcr",
    "GetXcrReply",
    "GetXsave",
    "GetXsaveReply",
    "InjectException",
    "PauseVcpu",
    "ReadPhysical",
    "ReadPhysicalReply",
    "Refused",
    "ReplyData",
    "SetEptView",
    "SetPageAccess",
    "SetPageSve",
    "SetPageWriteBitmap",
    "SetRegisters",
    "SetVeInfo",
    "SetXsave",
    "TranslateGva",
    "TranslateGvaReply",
    "VcpuCommand",
    "VcpuGetInfo",
    "VcpuGetInfoReply",
    "WritePhysical",
]


@dataclass(frozen=True, slots=True)
class ReplyData:
    """What a command that succeeded brings back."""


@dataclass(frozen=True, slots=True)
class Done(ReplyData):
    """The command succeeded and has nothing to tell."""


DONE = Done()


@dataclass(frozen=True, slots=True)
class Command:
    """Something the tool asks of the kernel; `reply_type` is what a success brings."""

    reply_type: ClassVar[type[ReplyData]] = Done

    @property
    def reply_items(self) -> int:
        """How many elements the answer's flexible array has, bytes included."""
        return 0


@dataclass(frozen=True, slots=True)
class VcpuCommand(Command):
    """A command to one vCPU, by its index."""

    vcpu: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The kernel said no: the value of `errno` (negative), its name, and what it means for this command."""

    command: Command
    errno: int
    name: str
    meaning: str

    def __str__(self) -> str:
        return f"{type(self.command).__name__}: {self.name} ({self.errno}): {self.meaning}"


# --- version, permissions, the machine ---


@dataclass(frozen=True, slots=True)
class Features:
    """What this kernel and CPU can do besides the commands all have; a dialect without a bit reports it as False."""

    singlestep: bool = False
    spp: bool = False
    vmfunc: bool = False
    eptp: bool = False
    ve: bool = False


@dataclass(frozen=True, slots=True)
class GetVersionReply(ReplyData):
    """`version` is 1 in every generation; `max_message_size` is in bytes without header, 0 if not announced."""

    version: int = 1
    max_message_size: int = 0
    features: Features = Features()


@dataclass(frozen=True, slots=True)
class GetVersion(Command):
    """Ask for version and features; always allowed."""

    reply_type: ClassVar[type[ReplyData]] = GetVersionReply


@dataclass(frozen=True, slots=True)
class CheckCommand(Command):
    """Ask whether a command is allowed; a bare number stands for a command that the dialect doesn't name."""

    command: type[Command] | int


@dataclass(frozen=True, slots=True)
class CheckEvent(Command):
    """Ask whether an event is allowed; a bare number stands for an event that the dialect doesn't name."""

    event: EventKind | int


@dataclass(frozen=True, slots=True)
class GetInfoReply(ReplyData):
    """The number of online vCPUs."""

    vcpu_count: int


@dataclass(frozen=True, slots=True)
class GetInfo(Command):
    """Ask for the number of vCPUs (v6: GET_GUEST_INFO)."""

    reply_type: ClassVar[type[ReplyData]] = GetInfoReply


@dataclass(frozen=True, slots=True)
class GetMaxGfnReply(ReplyData):
    """One past the last frame that a memory slot holds."""

    gfn: Gfn


@dataclass(frozen=True, slots=True)
class GetMaxGfn(Command):
    """Ask where guest memory ends; in v12 the hello tells instead."""

    reply_type: ClassVar[type[ReplyData]] = GetMaxGfnReply


@dataclass(frozen=True, slots=True)
class ControlVmEvents(Command):
    """Switch an event of the whole VM on or off."""

    event: EventKind | int
    enable: bool


@dataclass(frozen=True, slots=True)
class ControlCleanup(Command):
    """Say whether the kernel undoes CR3, MSR, breakpoint and descriptor interception at unhook (v12; default yes)."""

    enable: bool


@dataclass(frozen=True, slots=True)
class ControlCmdResponse(Command):
    """Switch replies to commands on or off, at once (`now`) or after this command (v6, v7).

    With `report_errors` (v7) failures that would go unseen come as CMD_ERROR events.
    """

    enable: bool
    now: bool
    report_errors: bool = False


# --- guest memory ---


@dataclass(frozen=True, slots=True)
class ReadPhysicalReply(ReplyData):
    """The bytes asked for."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ReadPhysical(Command):
    """Read 1 to 4096 bytes that don't cross a page; restrictions don't apply and no event is raised."""

    gpa: Gpa
    size: int
    reply_type: ClassVar[type[ReplyData]] = ReadPhysicalReply

    @property
    def reply_items(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True)
class WritePhysical(Command):
    """Write bytes that don't cross a page; restrictions don't apply and no event is raised."""

    gpa: Gpa
    data: bytes


@dataclass(frozen=True, slots=True)
class SetPageAccess(Command):
    """Set the rights of guest frames, up to 511 of them.

    `entries` is the list in wire form: 16 bytes a page, u64 gpa, u8 rights, seven zeros, the same in every dialect.
    `policyc.kvmi.pages` builds it without a Python loop per page and reads it back.
    """

    entries: bytes
    view: int = 0


@dataclass(frozen=True, slots=True)
class GetPageAccessReply(ReplyData):
    """The rights, in the order asked for."""

    access: tuple[PageAccess, ...]


@dataclass(frozen=True, slots=True)
class GetPageAccess(Command):
    """Read the rights of frames back (v6)."""

    gpa: tuple[Gpa, ...]
    view: int = 0
    reply_type: ClassVar[type[ReplyData]] = GetPageAccessReply

    @property
    def reply_items(self) -> int:
        return len(self.gpa)


@dataclass(frozen=True, slots=True)
class SetPageWriteBitmap(Command):
    """Allow writes to 128-byte blocks of a frame: (gpa, bitmap) pairs, bit n for block n (v6, v7)."""

    entries: tuple[tuple[Gpa, int], ...]
    view: int = 0


@dataclass(frozen=True, slots=True)
class GetPageWriteBitmapReply(ReplyData):
    """The bitmaps, in the order asked for."""

    bitmap: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GetPageWriteBitmap(Command):
    """Read the write bitmaps of frames (v6)."""

    gpa: tuple[Gpa, ...]
    view: int = 0
    reply_type: ClassVar[type[ReplyData]] = GetPageWriteBitmapReply

    @property
    def reply_items(self) -> int:
        return len(self.gpa)


@dataclass(frozen=True, slots=True)
class ControlSpp(Command):
    """Switch sub-page write permissions on; there is no off (v6, v7)."""

    enable: bool


@dataclass(frozen=True, slots=True)
class SetPageSve(Command):
    """Suppress or allow virtualization exceptions for a frame (v7)."""

    gpa: Gpa
    suppress: bool
    view: int = 0


@dataclass(frozen=True, slots=True)
class GetMapTokenReply(ReplyData):
    """Thirty-two bytes that let a VM map this one's memory, once."""

    token: bytes


@dataclass(frozen=True, slots=True)
class GetMapToken(Command):
    """Ask for a token for mapping guest memory into the tool's own VM (v6, v7)."""

    reply_type: ClassVar[type[ReplyData]] = GetMapTokenReply


# --- one vCPU ---


@dataclass(frozen=True, slots=True)
class VcpuGetInfoReply(ReplyData):
    """TSC frequency in Hz, 0 if the host can't scale it."""

    tsc_speed: int


@dataclass(frozen=True, slots=True)
class VcpuGetInfo(VcpuCommand):
    """Ask for the vCPU's TSC frequency; succeeds once the vCPU has been started."""

    reply_type: ClassVar[type[ReplyData]] = VcpuGetInfoReply


@dataclass(frozen=True, slots=True)
class PauseVcpu(VcpuCommand):
    """Ask for one PAUSE event. Only that event proves that the vCPU stands still: v7 ignores `wait`."""

    wait: bool = False


@dataclass(frozen=True, slots=True)
class ControlEvents(VcpuCommand):
    """Switch an event of one vCPU on or off."""

    event: EventKind | int
    enable: bool


@dataclass(frozen=True, slots=True)
class ControlCr(VcpuCommand):
    """Switch events for writes to CR0, CR3 or CR4 on or off; the CR event must be on too."""

    cr: int
    enable: bool


@dataclass(frozen=True, slots=True)
class ControlMsr(VcpuCommand):
    """Switch events for writes to one MSR on or off; the MSR event must be on too."""

    msr: int
    enable: bool


@dataclass(frozen=True, slots=True)
class ControlSinglestep(VcpuCommand):
    """Stop this vCPU after every instruction, or no longer (v7, v12)."""

    enable: bool


@dataclass(frozen=True, slots=True)
class GetRegistersReply(ReplyData):
    """All registers and the MSRs asked for; v7 leaves an unreadable MSR and all that follow it at 0."""

    mode: CpuMode
    regs: Registers
    sregs: SystemRegisters
    msrs: tuple[MsrEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class GetRegisters(VcpuCommand):
    """Read the registers and some MSRs, as they are at this instant."""

    msrs: tuple[int, ...] = ()
    reply_type: ClassVar[type[ReplyData]] = GetRegistersReply

    @property
    def reply_items(self) -> int:
        return len(self.msrs)


@dataclass(frozen=True, slots=True)
class SetRegisters(VcpuCommand):
    """Set the general registers; only while the vCPU waits for an event reply, and applied with that reply."""

    regs: Registers


@dataclass(frozen=True, slots=True)
class GetCpuidReply(ReplyData):
    """One CPUID leaf as the guest sees it."""

    eax: int
    ebx: int
    ecx: int
    edx: int


@dataclass(frozen=True, slots=True)
class GetCpuid(VcpuCommand):
    """Read a CPUID leaf; ENOENT if the guest has none."""

    function: int
    index: int = 0
    reply_type: ClassVar[type[ReplyData]] = GetCpuidReply


@dataclass(frozen=True, slots=True)
class GetXcrReply(ReplyData):
    """The value of the extended control register."""

    value: int


@dataclass(frozen=True, slots=True)
class GetXcr(VcpuCommand):
    """Read XCR0, the only one there is (v7, v12)."""

    xcr: int = 0
    reply_type: ClassVar[type[ReplyData]] = GetXcrReply


@dataclass(frozen=True, slots=True)
class GetXsaveReply(ReplyData):
    """The 4096 bytes of `struct kvm_xsave`."""

    area: bytes


@dataclass(frozen=True, slots=True)
class GetXsave(VcpuCommand):
    """Read the FPU and vector state."""

    reply_type: ClassVar[type[ReplyData]] = GetXsaveReply


@dataclass(frozen=True, slots=True)
class SetXsave(VcpuCommand):
    """Write the FPU and vector state: 4096 bytes, the one length that v7 and v12 both take."""

    area: bytes


@dataclass(frozen=True, slots=True)
class GetMtrrTypeReply(ReplyData):
    """Memory type: 0 UC, 1 WC, 4 WT, 5 WP, 6 WB."""

    type: int


@dataclass(frozen=True, slots=True)
class GetMtrrType(VcpuCommand):
    """Ask for the MTRR memory type of a frame."""

    gpa: Gpa
    reply_type: ClassVar[type[ReplyData]] = GetMtrrTypeReply


@dataclass(frozen=True, slots=True)
class InjectException(VcpuCommand):
    """Raise an exception in the guest; a TRAP event says what was delivered. `address` becomes CR2 of a page fault."""

    vector: int
    error_code: int = 0
    address: int = 0


@dataclass(frozen=True, slots=True)
class TranslateGvaReply(ReplyData):
    """The physical address; all ones if unmapped (`GVA_UNKNOWN` has the same bits)."""

    gpa: Gpa


@dataclass(frozen=True, slots=True)
class TranslateGva(VcpuCommand):
    """Translate with the vCPU's current CR3, as a supervisor read (v7, v12)."""

    gva: Gva
    reply_type: ClassVar[type[ReplyData]] = TranslateGvaReply


@dataclass(frozen=True, slots=True)
class GetEptViewReply(ReplyData):
    """The EPT view the vCPU uses, 0 to 2."""

    view: int


@dataclass(frozen=True, slots=True)
class GetEptView(VcpuCommand):
    """Ask which EPT view the vCPU uses (v7)."""

    reply_type: ClassVar[type[ReplyData]] = GetEptViewReply


@dataclass(frozen=True, slots=True)
class SetEptView(VcpuCommand):
    """Switch the vCPU to an EPT view (v7)."""

    view: int


@dataclass(frozen=True, slots=True)
class ControlEptView(VcpuCommand):
    """Let the guest itself switch to a view, or no longer (v7)."""

    view: int
    visible: bool


@dataclass(frozen=True, slots=True)
class SetVeInfo(VcpuCommand):
    """Name the guest page that takes virtualization exception records (v7)."""

    gpa: Gpa
    trigger_vmexit: bool = field(default=False)


@dataclass(frozen=True, slots=True)
class DisableVe(VcpuCommand):
    """Switch virtualization exceptions off (v7)."""


@dataclass(frozen=True, slots=True)
class ChangeGfn(VcpuCommand):
    """Let a frame be backed by another in the vCPU's current view (v7)."""

    old_gfn: Gfn
    new_gfn: Gfn
