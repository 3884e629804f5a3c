"""Commands that a vCPU carries out in its own queue: events, registers, exceptions (arch/x86/kvm/kvmi_msg.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyc.addresses import GVA_UNKNOWN, Gpa
from policyc.emulator.command_rows import CommandError, Rows, needs_views, switch
from policyc.emulator.cpuid import cpuid_table
from policyc.emulator.defects import Quirk
from policyc.emulator.differences import DIFFERENCES
from policyc.emulator.fpu import XsaveError, read_xsave, write_xsave
from policyc.emulator.hooks import Injection
from policyc.emulator.registers import READABLE_MSRS, read_state
from policyc.emulator.walk import translate
from policyc.kvmi import (
    DONE,
    ChangeGfn,
    ControlCr,
    ControlEptView,
    ControlEvents,
    ControlMsr,
    ControlSinglestep,
    DisableVe,
    ErrorCode,
    EventKind,
    GetCpuid,
    GetCpuidReply,
    GetEptView,
    GetEptViewReply,
    GetMtrrType,
    GetMtrrTypeReply,
    GetRegisters,
    GetRegistersReply,
    GetXcr,
    GetXcrReply,
    GetXsave,
    GetXsaveReply,
    InjectException,
    MsrEntry,
    ReplyData,
    SetEptView,
    SetRegisters,
    SetVeInfo,
    SetXsave,
    TranslateGva,
    TranslateGvaReply,
    VcpuCommand,
    VcpuGetInfo,
    VcpuGetInfoReply,
)

if TYPE_CHECKING:
    from policyc.emulator.introspection import Introspection
    from policyc.emulator.vcpu import Vcpu

__all__ = ["VCPU_ROWS"]

VCPU_ROWS: Final = Rows()

_UNCACHED: Final = 0
_WRITE_BACK: Final = 6
_EXCEPTIONS_WITH_CODE: Final = frozenset({8, *range(10, 15), 17})


def _vcpu(session: Introspection, command: VcpuCommand) -> Vcpu:
    """The vCPU that a command is for."""
    return session.machine.vcpus[command.vcpu]


@VCPU_ROWS.add(ControlEvents)
def _control_events(session: Introspection, command: ControlEvents) -> ReplyData:
    assert isinstance(command.event, EventKind)
    vcpu = _vcpu(session, command)
    differences = DIFFERENCES[session.dialect]
    again = (command.event in vcpu.hooks.events) == command.enable
    if command.event is EventKind.BREAKPOINT and again and differences.breakpoint_again is not None:
        raise CommandError(differences.breakpoint_again)
    switch(vcpu.hooks.events, command.event, enable=command.enable)
    vcpu.update_enforcement()
    if command.event is EventKind.DESCRIPTOR and vcpu.cpu == "amd" and not differences.descriptor_on_amd:
        vcpu.hooks.unavailable.add(command.event)  # the bit stays set although the reply is an error
        raise CommandError(ErrorCode.EOPNOTSUPP)
    return DONE


@VCPU_ROWS.add(ControlCr)
def _control_cr(session: Introspection, command: ControlCr) -> ReplyData:
    switch(_vcpu(session, command).hooks.crs, command.cr, enable=command.enable)
    return DONE


@VCPU_ROWS.add(ControlMsr)
def _control_msr(session: Introspection, command: ControlMsr) -> ReplyData:
    vcpu = _vcpu(session, command)
    if vcpu.cpu != "amd" or Quirk.AMD_MSR not in session.quirks:
        switch(vcpu.hooks.msrs, command.msr, enable=command.enable)
    return DONE


@VCPU_ROWS.add(ControlSinglestep)
def _control_singlestep(session: Introspection, command: ControlSinglestep) -> ReplyData:
    vcpu = _vcpu(session, command)
    differences = DIFFERENCES[session.dialect]
    if vcpu.cpu == "amd":
        raise CommandError(differences.no_singlestep)
    vcpu.hooks.singlestep = command.enable
    if differences.singlestep_reports:
        switch(vcpu.hooks.events, EventKind.SINGLESTEP, enable=command.enable)
    return DONE


# --- state of a vCPU ---


@VCPU_ROWS.add(VcpuGetInfo)
def _vcpu_get_info(_session: Introspection, _: VcpuGetInfo) -> ReplyData:
    return VcpuGetInfoReply(0)


@VCPU_ROWS.add(GetRegisters)
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


@VCPU_ROWS.add(SetRegisters)
def _set_registers(session: Introspection, command: SetRegisters) -> ReplyData:
    vcpu = _vcpu(session, command)
    if vcpu.waiting is None:
        raise CommandError(ErrorCode.EOPNOTSUPP)
    vcpu.hooks.registers = command.regs
    return DONE


@VCPU_ROWS.add(GetCpuid)
def _get_cpuid(session: Introspection, command: GetCpuid) -> ReplyData:
    leaf = cpuid_table(_vcpu(session, command).cpu).get((command.function, command.index))
    if leaf is None:
        raise CommandError(ErrorCode.ENOENT)
    return GetCpuidReply(leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)


@VCPU_ROWS.add(GetXcr)
def _get_xcr(session: Introspection, command: GetXcr) -> ReplyData:
    return GetXcrReply(_vcpu(session, command).xcr0)


@VCPU_ROWS.add(GetXsave)
def _get_xsave(session: Introspection, command: GetXsave) -> ReplyData:
    return GetXsaveReply(read_xsave(_vcpu(session, command).engine))


@VCPU_ROWS.add(SetXsave)
def _set_xsave(session: Introspection, command: SetXsave) -> ReplyData:
    try:
        write_xsave(_vcpu(session, command).engine, command.area)
    except XsaveError:
        raise CommandError(ErrorCode.EINVAL) from None
    return DONE


@VCPU_ROWS.add(GetMtrrType)
def _get_mtrr_type(session: Introspection, command: GetMtrrType) -> ReplyData:
    return GetMtrrTypeReply(_WRITE_BACK if command.gpa < session.machine.memory.size else _UNCACHED)


@VCPU_ROWS.add(InjectException)
def _inject_exception(session: Introspection, command: InjectException) -> ReplyData:
    hooks = _vcpu(session, command).hooks
    stepping = hooks.singlestep and DIFFERENCES[session.dialect].busy_while_stepping
    if hooks.injection is not None or stepping:
        raise CommandError(ErrorCode.EBUSY)
    code = command.error_code if command.vector in _EXCEPTIONS_WITH_CODE else 0
    hooks.injection = Injection(command.vector, code, command.address)
    return DONE


@VCPU_ROWS.add(TranslateGva)
def _translate_gva(session: Introspection, command: TranslateGva) -> ReplyData:
    engine = _vcpu(session, command).engine
    gpa = translate(engine.memory, engine.get("cr3"), command.gva)
    return TranslateGvaReply(Gpa(GVA_UNKNOWN) if gpa is None else gpa)


# --- EPT views ---


@VCPU_ROWS.add(GetEptView)
def _get_ept_view(session: Introspection, command: GetEptView) -> ReplyData:
    return GetEptViewReply(_vcpu(session, command).engine.view)


@VCPU_ROWS.add(SetEptView)
def _set_ept_view(session: Introspection, command: SetEptView) -> ReplyData:
    needs_views(session)
    _vcpu(session, command).engine.view = command.view
    return DONE


@VCPU_ROWS.add(ControlEptView)
def _control_ept_view(session: Introspection, command: ControlEptView) -> ReplyData:
    needs_views(session, ErrorCode.EINVAL)
    switch(_vcpu(session, command).hooks.views, command.view, enable=command.visible)
    return DONE


@VCPU_ROWS.add(ChangeGfn)
def _change_gfn(session: Introspection, command: ChangeGfn) -> ReplyData:
    needs_views(session)
    memory = session.machine.memory
    if max(command.old_gfn, command.new_gfn) >= memory.end_gfn:
        raise CommandError(ErrorCode.EINVAL)
    memory.back(_vcpu(session, command).engine.view, command.old_gfn, command.new_gfn)
    return DONE


# --- virtualization exceptions, which no processor here has ---


@VCPU_ROWS.add(SetVeInfo)
def _set_ve_info(_session: Introspection, _: SetVeInfo) -> ReplyData:
    raise CommandError(ErrorCode.EINVAL)


@VCPU_ROWS.add(DisableVe)
def _disable_ve(_session: Introspection, _: DisableVe) -> ReplyData:
    return DONE
