"""The words KVMI has for actions, rights, events and errors, as enumerations.

Numbers that are the same in every generation are the members' values. Event and command numbers differ, so those
live in the dialects.
"""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag

__all__ = ["Action", "CpuMode", "Descriptor", "ErrorCode", "EventKind", "PageAccess"]


class Action(IntEnum):
    """What the kernel is told to do with an event (`KVMI_EVENT_ACTION_*`)."""

    CONTINUE = 0
    RETRY = 1
    CRASH = 2


class PageAccess(IntFlag):
    """Rights to a guest frame, or the kind of access that was caught (`KVMI_PAGE_ACCESS_*`)."""

    NONE = 0
    R = 1
    W = 2
    X = 4
    RW = R | W
    RX = R | X
    WX = W | X
    RWX = R | W | X


class Descriptor(IntEnum):
    """A descriptor table register (`KVMI_DESC_*`)."""

    IDTR = 1
    GDTR = 2
    LDTR = 3
    TR = 4


class CpuMode(IntEnum):
    """Bytes of an operand by default in the code segment of the vCPU: the `mode` of an event."""

    REAL = 2
    PROTECTED = 4
    LONG = 8


class EventKind(Enum):
    """What happened in the guest. Which of them a kernel knows, and their numbers, is a matter of the dialect."""

    UNHOOK = "unhook"
    CR = "cr"
    MSR = "msr"
    XSETBV = "xsetbv"
    BREAKPOINT = "breakpoint"
    HYPERCALL = "hypercall"
    PF = "pf"
    TRAP = "trap"
    DESCRIPTOR = "descriptor"
    CREATE_VCPU = "create-vcpu"
    PAUSE = "pause"
    SINGLESTEP = "singlestep"
    CMD_ERROR = "cmd-error"
    CPUID = "cpuid"

    # Members are singletons, and Enum's own hash is a Python function: too slow beside a waiting vCPU.
    __hash__ = object.__hash__


class ErrorCode(IntEnum):
    """The error of a reply (`KVM_E*` of the kernel's kvm_para.h and errno.h, negated)."""

    EPERM = -1
    ENOENT = -2
    E2BIG = -7
    EAGAIN = -11
    ENOMEM = -12
    EFAULT = -14
    EBUSY = -16
    EINVAL = -22
    EOPNOTSUPP = -95
    ENOSYS = -1000
