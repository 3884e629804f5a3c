"""What a kernel does with a message that isn't as it should be: one row for each check, one table for each generation.

Read in the message handlers (`virt/kvm/introspection/kvmi_msg.c`, `arch/x86/kvm/kvmi_msg.c`) and corrected by what
running v7 and v12 kernels did. A verdict is the error number of the reply, or the end of the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from policyc.kvmi import messages as m
from policyc.kvmi.dialects import V6, V7, V12, Dialect
from policyc.kvmi.framing import VCPU_HEAD
from policyc.kvmi.vocabulary import ErrorCode, EventKind

if TYPE_CHECKING:
    from policyc.kvmi.codec import CommandCodec

__all__ = ["CLOSE", "RULES", "Check", "Request", "Rules", "Verdict"]

Verdict = int
CLOSE: Final[Verdict] = 0
"""The kernel closes the connection. No error number is 0."""

_EINVAL: Final = ErrorCode.EINVAL
_PAGE = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A command as the checks see it.

    Attributes:
        codec: which command it is.
        body: the payload without vCPU header.
        values: the fields of its struct by their kernel names, missing bytes counted as zero.
        vcpu: index in the vCPU header, 0 if there is no header.
        vcpu_padding: whether the header's padding isn't zero.
        events: the events that the VMM allows.
        dialect: the kernel's.
    """

    codec: CommandCodec
    body: bytes
    values: Mapping[str, int]
    vcpu: int
    vcpu_padding: bool
    events: frozenset[EventKind]
    dialect: Dialect

    @classmethod
    def of(cls, codec: CommandCodec, payload: bytes, events: frozenset[EventKind], dialect: Dialect) -> Request:
        """Take a payload apart."""
        body = payload
        vcpu, *padding = 0, 0
        if codec.row.vcpu_header:
            vcpu, *padding = VCPU_HEAD.unpack_from(payload.ljust(VCPU_HEAD.size, b"\0"))
            body = payload[VCPU_HEAD.size :]
        layout = codec.request.layout
        fields = layout.struct.unpack_from(body.ljust(layout.size, b"\0")) if layout else ()
        values = dict(zip(layout.names, fields, strict=True)) if layout else {}
        return cls(codec, body, values, vcpu, any(padding), events, dialect)

    def announced(self, counter: str) -> int:
        """Bytes that the struct and the array counted by `counter` take together."""
        return self.codec.request.size + self.values[counter] * self.codec.request.element

    def event(self, name: str) -> EventKind | int:
        """The event whose number is in field `name`."""
        return self.dialect.event_named(self.values[name])


@dataclass(frozen=True, slots=True)
class Check:
    """`fails` says whether the request is wrong; then the kernel answers `verdict`."""

    fails: Callable[[Request], bool]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Rules:
    """How one generation judges.

    Attributes:
        checks: by command, in the order in which they are made.
        vcpu_padding: non-zero padding in the vCPU header of a command or event reply that a vCPU thread takes.
        answers_when_silent: unknown and forbidden commands are answered although replies are off; else CLOSE.
        stray_reply_closes: an event reply to a vCPU that doesn't wait ends the connection; else nothing happens.
        odd_action_closes: so does an action that the event doesn't support; else it counts as not CONTINUE.
        never_allowed: commands that the VMM can't allow.
        data_on_error: commands whose error reply counts as one with data, which may not be while replies are off.
        reply_data_padding: padding in the data of an event reply is looked at.
        command_numbers, event_numbers: CHECK_COMMAND and CHECK_EVENT refuse numbers from here on with EINVAL.
        check_unknown: their error for a smaller number that means nothing.
    """

    checks: Mapping[type[m.Command], tuple[Check, ...]]
    vcpu_padding: Verdict
    answers_when_silent: bool
    stray_reply_closes: bool
    odd_action_closes: bool
    never_allowed: frozenset[type[m.Command]] = frozenset()
    data_on_error: frozenset[type[m.Command]] = frozenset()
    reply_data_padding: bool = True
    command_numbers: int = 1 << 16
    event_numbers: int = 1 << 16
    check_unknown: int = ErrorCode.EPERM

    def verdict(self, request: Request) -> Verdict | None:
        """What the first check that fails says, or None."""
        checks = self.checks.get(request.codec.row.message, ())
        return next((check.verdict for check in checks if check.fails(request)), None)

    def check(self, asked: T | int, allowed: frozenset[T], numbers: int) -> int:
        """The answer to CHECK_COMMAND or CHECK_EVENT: 0, or an error number."""
        if not isinstance(asked, int):
            return 0 if asked in allowed else ErrorCode.EPERM
        return ErrorCode.EINVAL if asked >= numbers else self.check_unknown


def _padding(request: Request) -> bool:
    layout = request.codec.request.layout
    return layout is not None and not layout.padding_is_zero(request.body)


def _above(name: str, most: int) -> Callable[[Request], bool]:
    def fails(request: Request) -> bool:
        return request.values[name] > most

    return fails


def _shorter(request: Request) -> bool:
    return len(request.body) < request.codec.request.size


def _longer(request: Request) -> bool:
    return len(request.body) > request.codec.request.size


def _crosses_page(request: Request) -> bool:
    size, offset = request.values["size"], request.values["gpa"] % _PAGE
    return not 0 < size <= _PAGE - offset


def _carries_less(counter: str) -> Callable[[Request], bool]:
    def fails(request: Request) -> bool:
        return request.announced(counter) > len(request.body)

    return fails


def _no_event_of_vcpu(request: Request) -> bool:
    event = request.event("event_id")
    return isinstance(event, int) or event in request.dialect.vm_events - {EventKind.CMD_ERROR}


def _no_event_of_vm(request: Request) -> bool:
    return request.event("event_id") not in request.dialect.vm_events


def _event_forbidden(request: Request) -> bool:
    return request.event("event_id") not in request.events


def _forbidden(event: EventKind) -> Callable[[Request], bool]:
    def fails(request: Request) -> bool:
        return event not in request.events

    return fails


def _pause_header_dirty(request: Request) -> bool:
    return request.vcpu_padding or request.vcpu > 0xFF


def _reports_forbidden(request: Request) -> bool:
    """Switching replies off and error reports on, where the report's event isn't allowed."""
    asked = not request.values["enable"] and request.values["flags"] & 1
    return bool(asked) and EventKind.CMD_ERROR not in request.events


def _not_a_control_register(request: Request) -> bool:
    return request.values["cr"] not in (0, 3, 4)


def _msr_outside(*ranges: range) -> Callable[[Request], bool]:
    def fails(request: Request) -> bool:
        return not any(request.values["msr"] in span for span in ranges)

    return fails


_PADDING = Check(_padding, _EINVAL)
_CROSSES = Check(_crosses_page, _EINVAL)
_SWITCH = Check(_above("enable", 1), _EINVAL)
_VM_EVENT = (Check(_no_event_of_vm, _EINVAL), Check(_event_forbidden, ErrorCode.EPERM))
_VCPU_EVENT = (Check(_no_event_of_vcpu, _EINVAL), Check(_event_forbidden, ErrorCode.EPERM))
_CR = Check(_not_a_control_register, _EINVAL)
_XCR0 = Check(_above("xcr", 0), _EINVAL)
_SHORT_REGISTERS = Check(_shorter, _EINVAL)
_VIEW = Check(_above("view", 2), _EINVAL)
_LONE_BYTES = Check(_carries_less("size"), CLOSE)

_PADDED: Final = (
    m.CheckCommand,
    m.CheckEvent,
    m.ControlVmEvents,
    m.ControlEvents,
    m.ControlCr,
    m.ControlMsr,
    m.ControlSpp,
    m.GetRegisters,
    m.InjectException,
)
"""Commands whose padding every generation checks before all else."""

_OLD: Final[Mapping[type[m.Command], tuple[Check, ...]]] = {
    **dict.fromkeys(_PADDED, (_PADDING,)),
    m.ControlVmEvents: (_PADDING, *_VM_EVENT),
    m.ControlEvents: (_PADDING, *_VCPU_EVENT),
    m.ControlCr: (_PADDING, _CR),
    m.GetRegisters: (_PADDING, Check(_carries_less("nmsrs"), _EINVAL)),
    m.ReadPhysical: (_CROSSES,),
    m.WritePhysical: (_LONE_BYTES, _CROSSES),
    m.SetPageAccess: (_PADDING, Check(_carries_less("count"), _EINVAL)),
    m.SetPageWriteBitmap: (_PADDING, Check(_carries_less("count"), _EINVAL)),
    m.ControlCmdResponse: (Check(_padding, CLOSE),),
}

_V6: Final = Rules(
    checks={
        **_OLD,
        m.ControlMsr: (_PADDING, Check(_msr_outside(range(0x2000), range(0xC000_0000, 0xC000_2000)), _EINVAL)),
        m.GetPageAccess: (_PADDING, Check(_carries_less("count"), _EINVAL)),
        m.GetPageWriteBitmap: (_PADDING, Check(_carries_less("count"), _EINVAL)),
        m.PauseVcpu: (_PADDING, Check(_forbidden(EventKind.PAUSE), ErrorCode.EPERM)),
    },
    vcpu_padding=CLOSE,
    answers_when_silent=True,
    stray_reply_closes=False,
    odd_action_closes=False,
    # The check is there and looks at the wrong variable.
    reply_data_padding=False,
)

_V7: Final = Rules(
    checks={
        **_OLD,
        # The kernel's comparison is off by one at three of the four ends.
        m.ControlMsr: (_PADDING, Check(_msr_outside(range(0x1FFF), range(0xC000_0001, 0xC000_1FFF)), _EINVAL)),
        m.ControlCmdResponse: (
            Check(_padding, CLOSE),
            Check(_reports_forbidden, CLOSE),
        ),
        # The handler reads its own struct over the vCPU header: that is what must be clean, the rest isn't looked at.
        m.PauseVcpu: (
            Check(_pause_header_dirty, CLOSE),
            Check(_forbidden(EventKind.PAUSE), CLOSE),
        ),
        m.GetXcr: (_XCR0,),
        m.SetXsave: (Check(_longer, _EINVAL),),
        m.ControlSinglestep: (_PADDING,),
        m.SetPageSve: (_PADDING, Check(_above("suppress", 1), _EINVAL), _VIEW),
        m.SetPageAccess: (_PADDING, Check(_carries_less("count"), _EINVAL), _VIEW),
        m.SetVeInfo: (_PADDING,),
        m.SetEptView: (_PADDING, _VIEW),
        m.ControlEptView: (_PADDING, _VIEW),
    },
    vcpu_padding=CLOSE,
    answers_when_silent=False,
    stray_reply_closes=False,
    odd_action_closes=False,
    # The list of commands that can be allowed leaves it out: EPERM even with "allow all".
    never_allowed=frozenset({m.SetPageWriteBitmap}),
    data_on_error=frozenset({m.GetCpuid}),
    command_numbers=64,
    event_numbers=14,
)

_V12: Final = Rules(
    checks={
        **dict.fromkeys(_PADDED, (_PADDING,)),
        m.ControlVmEvents: (_PADDING, _SWITCH, *_VM_EVENT),
        m.ControlEvents: (_PADDING, _SWITCH, *_VCPU_EVENT),
        m.ControlCr: (_PADDING, _SWITCH, _CR),
        m.ControlMsr: (_PADDING, _SWITCH, Check(_msr_outside(range(0x2000), range(0xC000_0000, 0xC000_2000)), _EINVAL)),
        m.ControlSinglestep: (
            Check(_forbidden(EventKind.SINGLESTEP), ErrorCode.EPERM),
            _PADDING,
            _SWITCH,
        ),
        m.InjectException: (
            Check(_forbidden(EventKind.TRAP), ErrorCode.EPERM),
            _PADDING,
        ),
        m.GetRegisters: (_PADDING, Check(_carries_less("nmsrs"), _EINVAL)),
        m.SetRegisters: (_SHORT_REGISTERS,),
        m.ReadPhysical: (_PADDING, _CROSSES),
        m.WritePhysical: (_LONE_BYTES, _PADDING, _CROSSES),
        m.SetPageAccess: (Check(_carries_less("count"), CLOSE), _PADDING),
        m.PauseVcpu: (_PADDING, Check(_above("wait", 1), _EINVAL), Check(_forbidden(EventKind.PAUSE), ErrorCode.EPERM)),
        m.ControlCleanup: (_PADDING, _SWITCH),
        m.GetXcr: (_PADDING, _XCR0),
        m.SetXsave: (Check(_shorter, _EINVAL),),
    },
    vcpu_padding=_EINVAL,
    answers_when_silent=True,
    stray_reply_closes=True,
    odd_action_closes=True,
    check_unknown=ErrorCode.ENOENT,
)

RULES: Final[Mapping[Dialect, Rules]] = {V6: _V6, V7: _V7, V12: _V12}
"""The rules by dialect."""
