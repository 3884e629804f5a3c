"""KVMI commands carried out on the machine: one row each.

The connection has checked padding, lengths, ranges and permissions; a row does what the handler does after that
(virt/kvm/introspection/kvmi_msg.c, arch/x86/kvm/kvmi_msg.c). What differs between generations is a column of
`Differences`. A command without a row is answered as by a host without the feature.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from policyc.addresses import GVA_UNKNOWN, Gpa, gfn_of
from policyc.emulator.cpuid import cpuid_table
from policyc.emulator.fpu import XsaveError, read_xsave, write_xsave
from policyc.emulator.hooks import PAUSES_MAX, Injection
from policyc.emulator.memory import ALL_RIGHTS, NoMemoryError
from policyc.emulator.registers import READABLE_MSRS, read_state
from policyc.emulator.walk import WRITE, translate
from policyc.kvmi import (
    DONE,
    V7,
    V12,
    Command,
    ControlCleanup,
    ControlCr,
    ControlEptView,
    ControlEvents,
    ControlMsr,
    ControlSinglestep,
    ControlVmEvents,
    DisableVe,
    ErrorCode,
    EventKind,
    Features,
    GetCpuid,
    GetCpuidReply,
    GetEptView,
    GetEptViewReply,
    GetInfo,
    GetInfoReply,
    GetMapToken,
    GetMapTokenReply,
    GetMaxGfn,
    GetMaxGfnReply,
    GetMtrrType,
    GetMtrrTypeReply,
    GetRegisters,
    GetRegistersReply,
    GetVersion,
    GetVersionReply,
    GetXcr,
    GetXcrReply,
    GetXsave,
    GetXsaveReply,
    InjectException,
    MsrEntry,
    PauseVcpu,
    ReadPhysical,
    ReadPhysicalReply,
    ReplyData,
    SetEptView,
    SetPageAccess,
    SetRegisters,
    SetXsave,
    TranslateGva,
    TranslateGvaReply,
    VcpuCommand,
    VcpuGetInfo,
    VcpuGetInfoReply,
    WritePhysical,
    page_entries,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policyc.emulator.introspection import Introspection
    from policyc.emulator.vcpu import Vcpu
    from policyc.kvmi import Dialect

__all__ = ["DIFFERENCES", "CommandError", "Differences", "execute"]


class CommandError(Exception):
    """The command is refused with this error number."""

    def __init__(self, errno: ErrorCode) -> None:
        super().__init__(errno.name)
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Differences:
    """What one generation's handlers do otherwise than another's.

    Attributes:
        max_message_size: as GET_VERSION announces it.
        frame_without_memory: error of SET_PAGE_ACCESS for it, None for silence.
        unreadable_msr: error of GET_REGISTERS, None if the value and all that follow stay 0.
        msrs_max, too_many_msrs: how many fit into a reply, and the error for more.
        no_singlestep: error where the processor can't single-step.
        singlestep_reports: SINGLESTEP events come without being switched on.
        busy_while_stepping: INJECT_EXCEPTION is refused while single-stepping is on.
        breakpoint_again: error for switching BREAKPOINT to what it is already.
        descriptor_on_amd: DESCRIPTOR events can be had on AMD.
        steps_by_itself: CONTINUE single-steps an instruction that KVM's emulator doesn't know; else the event repeats.
        msr_exits_on_amd: MSR events come on AMD; the v12 series inverts the intercept bit there.
    """

    max_message_size: int
    frame_without_memory: ErrorCode | None
    unreadable_msr: ErrorCode | None
    msrs_max: int
    too_many_msrs: ErrorCode
    no_singlestep: ErrorCode
    singlestep_reports: bool
    busy_while_stepping: bool
    breakpoint_again: ErrorCode | None
    descriptor_on_amd: bool
    msr_exits_on_amd: bool
    steps_by_itself: bool


DIFFERENCES: Final[Mapping[Dialect, Differences]] = {
    V7: Differences(
        max_message_size=0,
        frame_without_memory=None,
        unreadable_msr=None,
        msrs_max=482,
        too_many_msrs=ErrorCode.ENOMEM,
        no_singlestep=ErrorCode.EINVAL,
        singlestep_reports=False,
        busy_while_stepping=False,
        breakpoint_again=ErrorCode.EOPNOTSUPP,
        descriptor_on_amd=False,
        msr_exits_on_amd=True,
        steps_by_itself=True,
    ),
    V12: Differences(
        max_message_size=8184,
        frame_without_memory=ErrorCode.EINVAL,
        unreadable_msr=ErrorCode.EINVAL,
        msrs_max=481,
        too_many_msrs=ErrorCode.EINVAL,
        no_singlestep=ErrorCode.EOPNOTSUPP,
        singlestep_reports=True,
        busy_while_stepping=True,
        breakpoint_again=None,
        descriptor_on_amd=True,
        msr_exits_on_amd=False,
        steps_by_itself=False,
    ),
}

_MAP_TOKENS_MAX: Final = 9
_DEAF_BIT: Final = 2
_ENTRY: Final = 16
_UNCACHED: Final = 0
_WRITE_BACK: Final = 6
_EXCEPTIONS_WITH_CODE: Final = frozenset({8, *range(10, 15), 17})

C = TypeVar("C", bound=Command)
_ROWS: dict[type[Command], Callable[[Introspection, Command], ReplyData]] = {}


def execute(session: Introspection, command: Command) -> ReplyData:
    """Carry a command out.

    Raises:
        CommandError: the kernel would refuse it.
    """
    row = _ROWS.get(type(command))
    if row is None:
        raise CommandError(ErrorCode.EOPNOTSUPP)
    return row(session, command)


def _row(kind: type[C]) -> Callable[[Callable[[Introspection, C], ReplyData]], None]:
    def add(handler: Callable[[Introspection, C], ReplyData]) -> None:
        def handle(session: Introspection, command: Command) -> ReplyData:
            assert isinstance(command, kind)
            return handler(session, command)

        _ROWS[kind] = handle

    return add


def _vcpu(session: Introspection, command: VcpuCommand) -> Vcpu:
    return session.machine.vcpus[command.vcpu]


# --- the machine ---


@_row(GetVersion)
def _get_version(session: Introspection, _: GetVersion) -> ReplyData:
    features = Features(singlestep=session.machine.cpu == "intel")
    return GetVersionReply(max_message_size=DIFFERENCES[session.dialect].max_message_size, features=features)


@_row(GetInfo)
def _get_info(session: Introspection, _: GetInfo) -> ReplyData:
    return GetInfoReply(len(session.machine.vcpus))


@_row(GetMaxGfn)
def _get_max_gfn(session: Introspection, _: GetMaxGfn) -> ReplyData:
    return GetMaxGfnReply(session.machine.memory.end_gfn)


@_row(ControlVmEvents)
def _control_vm_events(session: Introspection, command: ControlVmEvents) -> ReplyData:
    assert isinstance(command.event, EventKind)
    _switch(session.vm_events, command.event, command.enable)
    return DONE


@_row(ControlCleanup)
def _control_cleanup(session: Introspection, command: ControlCleanup) -> ReplyData:
    session.cleanup = command.enable
    return DONE


@_row(GetMapToken)
def _get_map_token(session: Introspection, _: GetMapToken) -> ReplyData:
    if session.map_tokens >= _MAP_TOKENS_MAX:
        raise CommandError(ErrorCode.EAGAIN)
    session.map_tokens += 1
    return GetMapTokenReply(os.urandom(32))


@_row(ReadPhysical)
def _read_physical(session: Introspection, command: ReadPhysical) -> ReplyData:
    try:
        return ReadPhysicalReply(session.machine.memory.read(command.gpa, command.size))
    except NoMemoryError:
        raise CommandError(ErrorCode.ENOENT) from None


@_row(WritePhysical)
def _write_physical(session: Introspection, command: WritePhysical) -> ReplyData:
    try:
        session.machine.memory.write(command.gpa, command.data)
    except NoMemoryError:
        raise CommandError(ErrorCode.ENOENT) from None
    return DONE


@_row(SetPageAccess)
def _set_page_access(session: Introspection, command: SetPageAccess) -> ReplyData:
    """Every entry is tried; the first error is the answer, and what was good stays applied."""
    if command.view:
        raise CommandError(ErrorCode.EOPNOTSUPP)
    memory = session.machine.memory
    errors: list[ErrorCode | None] = []
    good: list[tuple[int, int]] = []
    for number, (gpa, rights) in enumerate(page_entries(command)):
        padding = command.entries[number * _ENTRY + 9 : (number + 1) * _ENTRY]
        gfn = gfn_of(gpa)
        if rights > ALL_RIGHTS or any(padding):
            errors.append(ErrorCode.EINVAL)
        elif gfn >= memory.end_gfn:
            errors.append(DIFFERENCES[session.dialect].frame_without_memory)
        else:
            deaf = session.behaviour.deaf_frames and gfn & _DEAF_BIT
            good.append((gfn, rights | WRITE if deaf else rights))
    memory.restrict(good)
    session.restricted += 1
    error = next((error for error in errors if error is not None), None)
    if error is not None:
        raise CommandError(error)
    return DONE


@_row(PauseVcpu)
def _pause(session: Introspection, command: PauseVcpu) -> ReplyData:
    """No vCPU is inside the guest while commands are carried out, so `wait` has nothing to wait for."""
    hooks = _vcpu(session, command).hooks
    if hooks.pauses >= PAUSES_MAX:
        raise CommandError(ErrorCode.EBUSY)
    hooks.pauses += 1
    return DONE


# --- events of a vCPU ---


@_row(ControlEvents)
def _control_events(session: Introspection, command: ControlEvents) -> ReplyData:
    assert isinstance(command.event, EventKind)
    vcpu = _vcpu(session, command)
    differences = DIFFERENCES[session.dialect]
    again = (command.event in vcpu.hooks.events) == command.enable
    if command.event is EventKind.BREAKPOINT and again and differences.breakpoint_again is not None:
        raise CommandError(differences.breakpoint_again)
    _switch(vcpu.hooks.events, command.event, command.enable)
    vcpu.update_enforcement()
    if command.event is EventKind.DESCRIPTOR and vcpu.cpu == "amd" and not differences.descriptor_on_amd:
        vcpu.hooks.unavailable.add(command.event)  # the bit stays set although the reply is an error
        raise CommandError(ErrorCode.EOPNOTSUPP)
    return DONE


@_row(ControlCr)
def _control_cr(session: Introspection, command: ControlCr) -> ReplyData:
    _switch(_vcpu(session, command).hooks.crs, command.cr, command.enable)
    return DONE


@_row(ControlMsr)
def _control_msr(session: Introspection, command: ControlMsr) -> ReplyData:
    vcpu = _vcpu(session, command)
    if vcpu.cpu != "amd" or DIFFERENCES[session.dialect].msr_exits_on_amd:
        _switch(vcpu.hooks.msrs, command.msr, command.enable)
    return DONE


@_row(ControlSinglestep)
def _control_singlestep(session: Introspection, command: ControlSinglestep) -> ReplyData:
    vcpu = _vcpu(session, command)
    differences = DIFFERENCES[session.dialect]
    if vcpu.cpu == "amd":
        raise CommandError(differences.no_singlestep)
    vcpu.hooks.singlestep = command.enable
    if differences.singlestep_reports:
        _switch(vcpu.hooks.events, EventKind.SINGLESTEP, command.enable)
    return DONE


# --- state of a vCPU ---


@_row(VcpuGetInfo)
def _vcpu_get_info(_session: Introspection, _: VcpuGetInfo) -> ReplyData:
    return VcpuGetInfoReply(0)


@_row(GetRegisters)
def _get_registers(session: Introspection, command: GetRegisters) -> ReplyData:
    differences = DIFFERENCES[session.dialect]
    if len(command.msrs) > differences.msrs_max:
        raise CommandError(differences.too_many_msrs)
    engine = _vcpu(session, command).engine
    state = read_state(engine)
    unreadable = next((at for at, index in enumerate(command.msrs) if index not in READABLE_MSRS), len(command.msrs))
    if unreadable < len(command.msrs) and differences.unreadable_msr is not None:
        raise CommandError(differences.unreadable_msr)
    entries = tuple(
        MsrEntry(index, engine.msr_read(index) if at < unreadable else 0) for at, index in enumerate(command.msrs)
    )
    return GetRegistersReply(state.mode, state.regs, state.sregs, entries)


@_row(SetRegisters)
def _set_registers(session: Introspection, command: SetRegisters) -> ReplyData:
    vcpu = _vcpu(session, command)
    if vcpu.waiting is None:
        raise CommandError(ErrorCode.EOPNOTSUPP)
    vcpu.hooks.registers = command.regs
    return DONE


@_row(GetCpuid)
def _get_cpuid(session: Introspection, command: GetCpuid) -> ReplyData:
    leaf = cpuid_table(_vcpu(session, command).cpu).get((command.function, command.index))
    if leaf is None:
        raise CommandError(ErrorCode.ENOENT)
    return GetCpuidReply(leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)


@_row(GetXcr)
def _get_xcr(session: Introspection, command: GetXcr) -> ReplyData:
    return GetXcrReply(_vcpu(session, command).xcr0)


@_row(GetXsave)
def _get_xsave(session: Introspection, command: GetXsave) -> ReplyData:
    return GetXsaveReply(read_xsave(_vcpu(session, command).engine))


@_row(SetXsave)
def _set_xsave(session: Introspection, command: SetXsave) -> ReplyData:
    try:
        write_xsave(_vcpu(session, command).engine, command.area)
    except XsaveError:
        raise CommandError(ErrorCode.EINVAL) from None
    return DONE


@_row(GetMtrrType)
def _get_mtrr_type(session: Introspection, command: GetMtrrType) -> ReplyData:
    return GetMtrrTypeReply(_WRITE_BACK if command.gpa < session.machine.memory.size else _UNCACHED)


@_row(InjectException)
def _inject_exception(session: Introspection, command: InjectException) -> ReplyData:
    hooks = _vcpu(session, command).hooks
    stepping = hooks.singlestep and DIFFERENCES[session.dialect].busy_while_stepping
    if hooks.injection is not None or stepping:
        raise CommandError(ErrorCode.EBUSY)
    code = command.error_code if command.vector in _EXCEPTIONS_WITH_CODE else 0
    hooks.injection = Injection(command.vector, code, command.address)
    return DONE


@_row(TranslateGva)
def _translate_gva(session: Introspection, command: TranslateGva) -> ReplyData:
    engine = _vcpu(session, command).engine
    gpa = translate(engine.memory, engine.get("cr3"), command.gva)
    return TranslateGvaReply(Gpa(GVA_UNKNOWN) if gpa is None else gpa)


@_row(GetEptView)
def _get_ept_view(_session: Introspection, _: GetEptView) -> ReplyData:
    return GetEptViewReply(0)


@_row(SetEptView)
def _set_ept_view(_session: Introspection, command: SetEptView) -> ReplyData:
    if command.view:
        raise CommandError(ErrorCode.EOPNOTSUPP)
    return DONE


@_row(ControlEptView)
def _control_ept_view(_session: Introspection, _: ControlEptView) -> ReplyData:
    raise CommandError(ErrorCode.EINVAL)


@_row(DisableVe)
def _disable_ve(_session: Introspection, _: DisableVe) -> ReplyData:
    return DONE


T = TypeVar("T")


def _switch(members: set[T], member: T, enable: bool) -> None:
    if enable:
        members.add(member)
    else:
        members.discard(member)
