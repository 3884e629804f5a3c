"""What an error code means for the command it answers.

Numbers are those of the kernel's `include/uapi/linux/kvm_para.h` (`KVM_EPERM` and so on, negated); meanings were read
in the command handlers of each generation and seen on running v7 and v12 kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyc.kvmi import messages as m
from policyc.kvmi.vocabulary import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["error_name", "refusal"]

_GENERAL: Mapping[int, str] = {
    ErrorCode.EPERM: "the VMM doesn't allow this command or event",
    ErrorCode.ENOENT: "there is no such thing",
    ErrorCode.E2BIG: "too much at once",
    ErrorCode.EAGAIN: "the vCPU has not been started yet",
    ErrorCode.ENOMEM: "the kernel is out of memory",
    ErrorCode.EFAULT: "bad address",
    ErrorCode.EBUSY: "something of the kind is still pending",
    ErrorCode.EINVAL: "a field holds a value that the kernel doesn't accept, or there is no such vCPU",
    ErrorCode.EOPNOTSUPP: "this host can't do it",
    ErrorCode.ENOSYS: "the kernel doesn't know the command",
}

_BY_COMMAND: Mapping[tuple[type[m.Command], int], str] = {
    (m.CheckCommand, ErrorCode.EPERM): "the VMM doesn't allow the command",
    (m.CheckCommand, ErrorCode.ENOENT): "the kernel doesn't know the command",
    (m.CheckCommand, ErrorCode.EINVAL): "the kernel has no such command number",
    (m.CheckEvent, ErrorCode.EPERM): "the VMM doesn't allow the event",
    (m.CheckEvent, ErrorCode.ENOENT): "the kernel doesn't know the event",
    (m.CheckEvent, ErrorCode.EINVAL): "the kernel has no such event number",
    (m.ControlVmEvents, ErrorCode.EINVAL): "not an event of the whole VM",
    (m.ControlEvents, ErrorCode.EINVAL): "not an event of a vCPU, or there is no such vCPU",
    (m.ControlEvents, ErrorCode.EBUSY): "a debugger holds breakpoint interception",
    (
        m.ControlEvents,
        ErrorCode.EOPNOTSUPP,
    ): "this host can't intercept it, or a debugger holds breakpoints",
    (m.ControlCr, ErrorCode.EINVAL): "not CR0, CR3 or CR4, or there is no such vCPU",
    (m.ControlMsr, ErrorCode.EPERM): "the VMM doesn't allow it, or filters this MSR itself",
    (m.ControlMsr, ErrorCode.EINVAL): "the MSR lies outside of the ranges that can be intercepted",
    (m.ControlSinglestep, ErrorCode.EINVAL): "this host has no monitor trap, or there is no such vCPU",
    (m.ControlSinglestep, ErrorCode.EOPNOTSUPP): "this host has no monitor trap",
    (m.PauseVcpu, ErrorCode.EBUSY): "too many pauses are queued for the vCPU",
    (m.ReadPhysical, ErrorCode.ENOENT): "no memory at that address",
    (m.ReadPhysical, ErrorCode.EINVAL): "not 1 to 4096 bytes within one page",
    (m.WritePhysical, ErrorCode.ENOENT): "no writable memory at that address",
    (m.WritePhysical, ErrorCode.EINVAL): "not 1 to 4096 bytes within one page",
    (
        m.SetPageAccess,
        ErrorCode.EINVAL,
    ): "a frame without memory, or unknown rights; other entries were applied",
    (m.SetPageAccess, ErrorCode.EOPNOTSUPP): "this host has no views",
    (m.GetCpuid, ErrorCode.ENOENT): "the guest has no such leaf",
    (m.GetRegisters, ErrorCode.EINVAL): "an MSR can't be read, too many were asked for, or there is no such vCPU",
    (m.GetRegisters, ErrorCode.ENOMEM): "too many MSRs for one reply",
    (m.SetRegisters, ErrorCode.EOPNOTSUPP): "the vCPU doesn't wait for an event reply",
    (m.InjectException, ErrorCode.EBUSY): "an exception is pending, or the vCPU is single-stepping",
    (m.GetMapToken, ErrorCode.EAGAIN): "too many tokens are outstanding",
}


def error_name(errno: int) -> str:
    """The constant's name, such as "EPERM", or "errno -5" for a number that KVMI doesn't use."""
    return ErrorCode(errno).name if errno in _GENERAL else f"errno {errno}"


def refusal(command: m.Command, errno: int) -> m.Refused:
    """The value for an error reply."""
    meaning = _BY_COMMAND.get((type(command), errno)) or _GENERAL.get(errno, "not an error of the KVMI protocol")
    return m.Refused(command, errno, error_name(errno), meaning)
