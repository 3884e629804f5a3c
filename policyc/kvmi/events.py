"""An event as it is received, and the shape that all events of its kind share.

A vCPU stands still from the moment it sends an event until the reply is there. So `Event` keeps the bytes as they came
and decodes a field when it is asked for: who decides by `gpa` and `access` alone never pays for 90 registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, NoReturn

from policyc.kvmi.errors import LocalProtocolError
from policyc.kvmi.registers import EventMsrs, Registers, SystemRegisters, VcpuState
from policyc.kvmi.vocabulary import Action, CpuMode, PageAccess

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyc.addresses import Gpa, Gva
    from policyc.kvmi.event_data import EventData, EventReplyData
    from policyc.kvmi.vocabulary import EventKind

__all__ = ["Event", "EventShape", "VmEvent"]

_U64 = Struct("<Q").unpack_from
_U16 = Struct("<H").unpack_from
_SEQ_VCPU = Struct("<IH").pack
_REGS_SIZE = 144
_MODES = {mode.value: mode for mode in CpuMode}
_ACCESS = tuple(PageAccess(bits) for bits in range(8))


@dataclass(frozen=True, slots=True, eq=False)
class EventShape:
    """Where everything is in the message of one kind of event in one dialect; offsets from the message's start.

    Attributes:
        size: bytes of the message, header included.
        head: message id and payload size.
        common_at, common: where the size of the common struct stands, and its two bytes.
        check_at, check_values: one byte that must hold one of a few values, or the peer is talking nonsense. Empty
            for events of the whole VM, which are read another way.
        bare_replies, full_replies: by action, what a reply without and with data holds before and after its seq and
            vCPU index; None where that action, or that form, isn't permitted.
        reply_type: the data that a reply may carry.
    """

    kind: EventKind
    dialect_name: str
    event_id: int
    size: int
    head: tuple[int, int]
    common_at: int
    common: bytes
    vm_level: bool
    mode: int
    view: int | None
    regs: int
    rsp: int
    rip: int
    sregs: int
    msrs: int
    check_at: int
    check_values: frozenset[int]
    gva: int | None
    gpa: int | None
    access: int | None
    decode_data: Callable[[bytes], EventData | None]
    bare_replies: tuple[tuple[bytes, bytes] | None, ...]
    full_replies: tuple[tuple[bytes, bytes] | None, ...]
    reply_type: type[EventReplyData] | None
    encode_reply_data: Callable[[EventReplyData], bytes]

    def reply(self, seq: int, vcpu: int, action: Action, data: EventReplyData | None) -> bytes:
        """The whole message that answers such an event; nothing else is looked up or packed while a vCPU waits.

        Raises:
            LocalProtocolError: the kernel wouldn't take that action, or not with these data or without any.
        """
        if data is None:
            parts = self.bare_replies[action]
            if parts is not None:
                return parts[0] + _SEQ_VCPU(seq, vcpu) + parts[1]
        elif type(data) is self.reply_type:
            parts = self.full_replies[action]
            if parts is not None:
                return parts[0] + _SEQ_VCPU(seq, vcpu) + parts[1] + self.encode_reply_data(data)
        raise LocalProtocolError(f"an answer that {self.kind.value} events take", f"{action!r} with {data!r}")

    def missing(self, field: str) -> AttributeError:
        """The error for a field that this kind of event doesn't carry."""
        return AttributeError(f"{self.kind.value} events of {self.dialect_name} carry no {field}")


class Event:
    """An event from the guest; read only. All but `seq`, `vcpu` and `kind` is decoded when asked for.

    Attributes:
        seq: the number the reply must repeat.
        vcpu: index of the vCPU that stands still; 0 for events of the whole VM.
        kind: what happened.
        raw: the message as it came.
        shape: where everything is in it.
    """

    __slots__ = ("kind", "raw", "seq", "shape", "vcpu")

    def __init__(self, seq: int, vcpu: int, shape: EventShape, raw: bytes) -> None:
        self.seq = seq
        self.vcpu = vcpu
        self.kind = shape.kind
        self.raw = raw
        self.shape = shape

    def __repr__(self) -> str:
        return f"Event({self.kind.value}, vcpu={self.vcpu}, seq={self.seq}, data={self.data!r})"

    @property
    def needs_reply(self) -> bool:
        """Whether a vCPU waits for an answer."""
        return True

    @property
    def actions(self) -> tuple[Action, ...]:
        """The actions that the kernel supports in the reply to this event."""
        shape = self.shape
        return tuple(action for action in Action if shape.bare_replies[action] or shape.full_replies[action])

    @property
    def mode(self) -> CpuMode:
        """Whether the vCPU executes 16-, 32- or 64-bit code."""
        return _MODES[self.raw[self.shape.mode]]

    @property
    def view(self) -> int:
        """The EPT view in use (v7); 0 in the other dialects."""
        at = self.shape.view
        if at is None:
            return 0
        view: int = _U16(self.raw, at)[0]
        return view

    @property
    def rip(self) -> int:
        """Address of the instruction, which has not been executed yet."""
        rip: int = _U64(self.raw, self.shape.rip)[0]
        return rip

    @property
    def rsp(self) -> int:
        """The stack pointer."""
        rsp: int = _U64(self.raw, self.shape.rsp)[0]
        return rsp

    @property
    def regs(self) -> Registers:
        """The general registers."""
        return Registers.unpack(self.raw, self.shape.regs)

    @property
    def regs_raw(self) -> bytes:
        """The general registers as 144 bytes: equal exactly when `regs` are."""
        at = self.shape.regs
        return self.raw[at : at + _REGS_SIZE]

    @property
    def sregs(self) -> SystemRegisters:
        """Segments, descriptor tables and control registers."""
        return SystemRegisters.unpack(self.raw, self.shape.sregs)

    @property
    def msrs(self) -> EventMsrs:
        """The MSRs that come with every event."""
        return EventMsrs.unpack(self.raw, self.shape.msrs)

    @property
    def state(self) -> VcpuState:
        """All that the event tells of its vCPU."""
        return VcpuState(self.mode, self.regs, self.sregs, self.msrs, self.view)

    @property
    def data(self) -> EventData | None:
        """What only this kind of event has, or None if it has nothing."""
        return self.shape.decode_data(self.raw)

    @property
    def gva(self) -> Gva:
        """Guest virtual address of a page fault, `GVA_UNKNOWN` where the kernel doesn't know it."""
        at = self.shape.gva
        if at is None:
            raise self.shape.missing("gva")
        gva: Gva = _U64(self.raw, at)[0]
        return gva

    @property
    def gpa(self) -> Gpa:
        """Guest physical address of a page fault or breakpoint."""
        at = self.shape.gpa
        if at is None:
            raise self.shape.missing("gpa")
        gpa: Gpa = _U64(self.raw, at)[0]
        return gpa

    @property
    def access(self) -> PageAccess:
        """The kind of access of a page fault."""
        at = self.shape.access
        if at is None:
            raise self.shape.missing("access")
        return _ACCESS[self.raw[at]]


class VmEvent(Event):
    """UNHOOK or CMD_ERROR: nobody stands still, nothing is to be answered, and there are no registers.

    Some dialects send a register block all the same, with zeros in it.
    """

    __slots__ = ()

    @property
    def needs_reply(self) -> bool:
        """False: the kernel goes on by itself."""
        return False

    @property
    def mode(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")

    @property
    def view(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")

    @property
    def rip(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")

    @property
    def rsp(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")

    @property
    def regs(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")

    @property
    def regs_raw(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")

    @property
    def sregs(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")

    @property
    def msrs(self) -> NoReturn:
        """Not carried."""
        raise self.shape.missing("registers")
