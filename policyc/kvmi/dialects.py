"""The generations of KVMI as data: which messages each has, under which numbers, and how its kernel judges.

A difference between generations is a difference between rows here; no other module asks which one it has. `V7` is the
branch kvmi-v7 of KVM-VMI/kvm as deployed (the series posted under the same number in February 2020 has other ids),
`V12` the series of October 2021, `V6` the branch of 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from policyc.kvmi import messages as m
from policyc.kvmi.errors import LocalProtocolError
from policyc.kvmi.event_data import (
    BreakpointData,
    CmdErrorData,
    CpuidData,
    CrData,
    DescriptorData,
    EventData,
    EventReplyData,
    MsrData,
    NewValue,
    PfData,
    PfReply,
    SinglestepData,
    TrapData,
    XsetbvData,
)
from policyc.kvmi.vocabulary import Action, EventKind
from policyc.kvmi.wire import V6_STRUCTS, V7_STRUCTS, V12_STRUCTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.kvmi.layout import Layout

__all__ = ["DIALECTS", "V6", "V7", "V12", "CommandRow", "Dialect", "EventRow", "Framing", "RunsOn"]


class RunsOn(Enum):
    """Who executes a command: the thread that reads the socket, at once, or the vCPU's own thread, in its queue."""

    RECEIVER = "receiver"
    VCPU = "vcpu"


@dataclass(frozen=True, slots=True)
class CommandRow:
    """A command of one dialect.

    Attributes:
        message: the command's class.
        id: its number on the wire.
        request, reply: names of the structs after the vCPU header and after the error code; None if there is none.
        vcpu_header: whether the payload begins with `kvmi_vcpu_hdr`.
        runs_on: who executes it.
    """

    message: type[m.Command]
    id: int
    request: str | None = None
    reply: str | None = None
    vcpu_header: bool = False
    runs_on: RunsOn = RunsOn.RECEIVER


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event of one dialect: its number, its structs, and the actions its reply may ask for."""

    kind: EventKind
    id: int
    data: str | None = None
    data_type: type[EventData] | None = None
    reply: str | None = None
    reply_type: type[EventReplyData] | None = None
    actions: tuple[Action, ...] = (Action.CONTINUE, Action.CRASH)
    vm_level: bool = False


@dataclass(frozen=True, slots=True)
class Framing:
    """The message ids that aren't commands, and the structs that events begin with.

    Attributes:
        vm_event, vcpu_event: message id of events of the VM and of a vCPU.
        event_reply: message id of the tool's answer to an event.
        vm_head, vcpu_head: names of the structs before an event's own data.
    """

    vm_event: int
    vcpu_event: int
    event_reply: int
    vm_head: tuple[str, ...]
    vcpu_head: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """One generation of KVMI.

    Attributes:
        name: as in `--target`, for example "kvmi-v7".
        structs: every struct by its kernel name.
        commands, events: what there is.
        max_message_size: the largest payload that is accepted from the peer, in bytes without header.
        max_sent_size: the largest payload that a tool sends.
        unknown_command: error for a message id that the kernel doesn't know.
        vm_events: events that CONTROL_VM_EVENTS takes; CONTROL_EVENTS takes the others.
    """

    name: str
    structs: Mapping[str, Layout]
    framing: Framing
    commands: Mapping[type[m.Command], CommandRow]
    events: Mapping[EventKind, EventRow]
    vm_events: frozenset[EventKind]
    max_message_size: int = 8184
    max_sent_size: int = 8184
    unknown_command: int = -1000
    command_by_id: Mapping[int, CommandRow] = field(init=False)
    event_by_id: Mapping[int, EventRow] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "command_by_id", {row.id: row for row in self.commands.values()})
        object.__setattr__(self, "event_by_id", {row.id: row for row in self.events.values()})

    def __repr__(self) -> str:
        return self.name

    def command_number(self, command: type[m.Command] | int) -> int:
        """The number of a command, or the number itself.

        Raises:
            LocalProtocolError: the dialect has no such command.
        """
        if isinstance(command, int):
            return command
        if row := self.commands.get(command):
            return row.id
        raise LocalProtocolError(f"a command of {self.name}", command.__name__)

    def command_named(self, number: int) -> type[m.Command] | int:
        """The command with that number, or the number if there is none."""
        row = self.command_by_id.get(number)
        return row.message if row else number

    def event_number(self, event: EventKind | int) -> int:
        """The number of an event, or the number itself.

        Raises:
            LocalProtocolError: the dialect has no such event.
        """
        if isinstance(event, int):
            return event
        if row := self.events.get(event):
            return row.id
        raise LocalProtocolError(f"an event of {self.name}", event.value)

    def event_named(self, number: int) -> EventKind | int:
        """The event with that number, or the number if there is none."""
        row = self.event_by_id.get(number)
        return row.kind if row else number

    @property
    def max_page_entries(self) -> int:
        """How many frames one SET_PAGE_ACCESS holds."""
        return (self.max_sent_size - 8) // 16


def _commands(*rows: CommandRow) -> dict[type[m.Command], CommandRow]:
    return {row.message: row for row in rows}


def _events(*rows: EventRow) -> dict[EventKind, EventRow]:
    return {row.kind: row for row in rows}


def _vm(message: type[m.Command], number: int, request: str | None = None, reply: str | None = None) -> CommandRow:
    return CommandRow(message, number, request, reply)


def _vcpu(message: type[m.Command], number: int, request: str | None = None, reply: str | None = None) -> CommandRow:
    return CommandRow(message, number, request, reply, vcpu_header=True, runs_on=RunsOn.VCPU)


_ANY: Final = (Action.CONTINUE, Action.RETRY, Action.CRASH)

_BREAKPOINT = EventRow(EventKind.BREAKPOINT, 4, "kvmi_event_breakpoint", BreakpointData, actions=_ANY)
_DESCRIPTOR = EventRow(EventKind.DESCRIPTOR, 8, "kvmi_event_descriptor", DescriptorData, actions=_ANY)
_CR = EventRow(EventKind.CR, 1, "kvmi_event_cr", CrData, "kvmi_event_cr_reply", NewValue)
_MSR = EventRow(EventKind.MSR, 2, "kvmi_event_msr", MsrData, "kvmi_event_msr_reply", NewValue)
_PF_WITH_DATA = EventRow(EventKind.PF, 6, "kvmi_event_pf", PfData, "kvmi_event_pf_reply", PfReply, _ANY)
_TRAP = EventRow(EventKind.TRAP, 7, "kvmi_event_trap", TrapData)

_V6_AND_V7_EVENTS = (
    EventRow(EventKind.UNHOOK, 0, actions=(), vm_level=True),
    _CR,
    _MSR,
    EventRow(EventKind.XSETBV, 3),
    _BREAKPOINT,
    EventRow(EventKind.HYPERCALL, 5),
    _PF_WITH_DATA,
    _TRAP,
    _DESCRIPTOR,
    EventRow(EventKind.CREATE_VCPU, 9),
    EventRow(EventKind.PAUSE, 10),
)

_V6_AND_V7_COMMANDS = (
    _vm(m.GetVersion, 2, None, "kvmi_get_version_reply"),
    _vm(m.CheckCommand, 3, "kvmi_vm_check_command"),
    _vm(m.CheckEvent, 4, "kvmi_vm_check_event"),
    _vm(m.GetInfo, 5, None, "kvmi_vm_get_info_reply"),
    _vcpu(m.VcpuGetInfo, 6, None, "kvmi_vcpu_get_info_reply"),
    # PAUSE is addressed to a vCPU but executed by the receiver.
    CommandRow(m.PauseVcpu, 7, "kvmi_vcpu_pause", vcpu_header=True),
    _vm(m.ControlVmEvents, 8, "kvmi_vm_control_events"),
    _vcpu(m.ControlEvents, 9, "kvmi_vcpu_control_events"),
    _vcpu(m.ControlCr, 10, "kvmi_vcpu_control_cr"),
    _vcpu(m.ControlMsr, 11, "kvmi_vcpu_control_msr"),
    _vcpu(m.GetRegisters, 13, "kvmi_vcpu_get_registers", "kvmi_vcpu_get_registers_reply"),
    _vcpu(m.SetRegisters, 14, "set_registers"),
    _vcpu(m.GetCpuid, 15, "kvmi_vcpu_get_cpuid", "kvmi_vcpu_get_cpuid_reply"),
    _vcpu(m.GetXsave, 16, None, "kvmi_vcpu_get_xsave_reply"),
    _vm(m.ReadPhysical, 17, "kvmi_vm_read_physical", "read_physical_reply"),
    _vm(m.WritePhysical, 18, "kvmi_vm_write_physical"),
    _vm(m.SetPageAccess, 21, "kvmi_vm_set_page_access"),
    _vm(m.GetMapToken, 22, None, "kvmi_vm_get_map_token_reply"),
    _vcpu(m.GetMtrrType, 23, "kvmi_vcpu_get_mtrr_type", "kvmi_vcpu_get_mtrr_type_reply"),
    _vm(m.ControlSpp, 24, "kvmi_vm_control_spp"),
    _vm(m.GetMaxGfn, 29, None, "kvmi_vm_get_max_gfn_reply"),
)

_V6_AND_V7_FRAMING = Framing(1, 1, 0, ("kvmi_event",), ("kvmi_event",))

V6: Final = Dialect(
    name="kvmi-v6",
    structs=V6_STRUCTS,
    framing=_V6_AND_V7_FRAMING,
    commands=_commands(
        *_V6_AND_V7_COMMANDS,
        _vcpu(m.InjectException, 19, "kvmi_inject_exception"),
        _vm(m.GetPageAccess, 20, "kvmi_get_page_access", "kvmi_get_page_access_reply"),
        _vm(m.GetPageWriteBitmap, 25, "kvmi_get_page_write_bitmap", "kvmi_get_page_write_bitmap_reply"),
        _vm(m.SetPageWriteBitmap, 26, "kvmi_set_page_write_bitmap"),
        _vm(m.ControlCmdResponse, 27, "kvmi_control_cmd_response"),
    ),
    events=_events(*_V6_AND_V7_EVENTS, EventRow(EventKind.SINGLESTEP, 11)),
    vm_events=frozenset({EventKind.UNHOOK, EventKind.CREATE_VCPU}),
    # The header of the posted series says 4088, libkvmi's copy 8184: stay within the one, accept the other.
    max_sent_size=4088,
    unknown_command=-95,
)

V7: Final = Dialect(
    name="kvmi-v7",
    structs=V7_STRUCTS,
    framing=_V6_AND_V7_FRAMING,
    commands=_commands(
        *_V6_AND_V7_COMMANDS,
        _vcpu(m.InjectException, 19, "kvmi_vcpu_inject_exception"),
        _vm(m.SetPageWriteBitmap, 26, "kvmi_vm_set_page_write_bitmap"),
        _vm(m.ControlCmdResponse, 27, "kvmi_vm_control_cmd_response"),
        _vcpu(m.SetVeInfo, 28, "kvmi_vcpu_set_ve_info"),
        _vm(m.SetPageSve, 30, "kvmi_vm_set_page_sve"),
        _vcpu(m.SetEptView, 32, "kvmi_vcpu_set_ept_view"),
        _vcpu(m.DisableVe, 33),
        _vcpu(m.GetEptView, 34, None, "kvmi_vcpu_get_ept_view_reply"),
        _vcpu(m.TranslateGva, 35, "kvmi_vcpu_translate_gva", "kvmi_vcpu_translate_gva_reply"),
        _vcpu(m.ControlEptView, 36, "kvmi_vcpu_control_ept_view"),
        _vcpu(m.GetXcr, 37, "kvmi_vcpu_get_xcr", "kvmi_vcpu_get_xcr_reply"),
        _vcpu(m.SetXsave, 38, "kvmi_vcpu_set_xsave"),
        _vcpu(m.ChangeGfn, 60, "kvmi_vcpu_change_gfn"),
        _vcpu(m.ControlSinglestep, 63, "kvmi_vcpu_control_singlestep"),
    ),
    events=_events(
        *_V6_AND_V7_EVENTS,
        EventRow(EventKind.SINGLESTEP, 11, "kvmi_event_singlestep", SinglestepData),
        EventRow(EventKind.CMD_ERROR, 12, "kvmi_event_cmd_error", CmdErrorData, actions=(), vm_level=True),
        # RETRY isn't in the kernel's list, but makes it skip its own emulation: the way to answer CPUID oneself.
        EventRow(EventKind.CPUID, 13, "kvmi_event_cpuid", CpuidData, actions=_ANY),
    ),
    vm_events=frozenset({EventKind.UNHOOK, EventKind.CREATE_VCPU, EventKind.CMD_ERROR}),
)

V12: Final = Dialect(
    name="kvmi-v12",
    structs=V12_STRUCTS,
    framing=Framing(0, 1, 1, ("kvmi_event_hdr",), ("kvmi_event_hdr", "kvmi_vcpu_event")),
    commands=_commands(
        _vm(m.GetVersion, 2, None, "kvmi_get_version_reply"),
        _vcpu(m.VcpuGetInfo, 3, None, "kvmi_vcpu_get_info_reply"),
        _vm(m.CheckCommand, 4, "kvmi_vm_check_command"),
        _vcpu(m.ControlEvents, 5, "kvmi_vcpu_control_events"),
        _vm(m.CheckEvent, 6, "kvmi_vm_check_event"),
        _vcpu(m.GetRegisters, 7, "kvmi_vcpu_get_registers", "kvmi_vcpu_get_registers_reply"),
        _vm(m.GetInfo, 8, None, "kvmi_vm_get_info_reply"),
        _vcpu(m.SetRegisters, 9, "set_registers"),
        _vm(m.ControlVmEvents, 10, "kvmi_vm_control_events"),
        _vcpu(m.GetCpuid, 11, "kvmi_vcpu_get_cpuid", "kvmi_vcpu_get_cpuid_reply"),
        _vm(m.ReadPhysical, 12, "kvmi_vm_read_physical", "read_physical_reply"),
        _vcpu(m.ControlCr, 13, "kvmi_vcpu_control_cr"),
        _vm(m.WritePhysical, 14, "kvmi_vm_write_physical"),
        _vcpu(m.InjectException, 15, "kvmi_vcpu_inject_exception"),
        _vm(m.PauseVcpu, 16, "kvmi_vm_pause_vcpu"),
        _vcpu(m.GetXcr, 17, "kvmi_vcpu_get_xcr", "kvmi_vcpu_get_xcr_reply"),
        _vm(m.ControlCleanup, 18, "kvmi_vm_control_cleanup"),
        _vcpu(m.GetXsave, 19, None, "kvmi_vcpu_get_xsave_reply"),
        _vm(m.SetPageAccess, 20, "kvmi_vm_set_page_access"),
        _vcpu(m.SetXsave, 21, "kvmi_vcpu_set_xsave"),
        _vcpu(m.GetMtrrType, 23, "kvmi_vcpu_get_mtrr_type", "kvmi_vcpu_get_mtrr_type_reply"),
        _vcpu(m.ControlMsr, 25, "kvmi_vcpu_control_msr"),
        _vcpu(m.ControlSinglestep, 27, "kvmi_vcpu_control_singlestep"),
        _vcpu(m.TranslateGva, 29, "kvmi_vcpu_translate_gva", "kvmi_vcpu_translate_gva_reply"),
    ),
    events=_events(
        EventRow(EventKind.UNHOOK, 0, actions=(), vm_level=True),
        EventRow(EventKind.PAUSE, 1),
        EventRow(EventKind.HYPERCALL, 3),
        EventRow(EventKind.BREAKPOINT, 5, "kvmi_event_breakpoint", BreakpointData, actions=_ANY),
        EventRow(EventKind.CR, 7, "kvmi_event_cr", CrData, "kvmi_event_cr_reply", NewValue),
        EventRow(EventKind.TRAP, 9, "kvmi_event_trap", TrapData),
        EventRow(EventKind.XSETBV, 11, "kvmi_event_xsetbv", XsetbvData),
        EventRow(EventKind.DESCRIPTOR, 13, "kvmi_event_descriptor", DescriptorData, actions=_ANY),
        EventRow(EventKind.MSR, 15, "kvmi_event_msr", MsrData, "kvmi_event_msr_reply", NewValue),
        EventRow(EventKind.PF, 17, "kvmi_event_pf", PfData, actions=_ANY),
        EventRow(EventKind.SINGLESTEP, 19, "kvmi_event_singlestep", SinglestepData),
    ),
    vm_events=frozenset({EventKind.UNHOOK}),
)

DIALECTS: Final[Mapping[str, Dialect]] = {dialect.name: dialect for dialect in (V6, V7, V12)}
"""The dialects spoken here, by name."""
