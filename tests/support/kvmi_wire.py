"""Every kind of KVMI message as one value that encodes and decodes itself, for tables of (value, bytes)."""

from __future__ import annotations

from dataclasses import dataclass

from policyc.kvmi import (
    Action,
    Command,
    CpuMode,
    Dialect,
    EventData,
    EventKind,
    EventMsrs,
    EventReplyData,
    Refused,
    Registers,
    ReplyData,
    SystemRegisters,
    VcpuState,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER, HEADER_SIZE, VCPU_HEAD
from policyc.kvmi.layout import Layout

COMPUTED_STATE = VcpuState(
    CpuMode.LONG,
    Registers(rax=0x22, rsp=0xFFFF_8880_0000_1000, rip=0xFFFF_FFFF_8100_0000, rflags=2),
    SystemRegisters(cr0=0x8005_0033, cr3=0x2A0_A000, cr4=0x1606F0, efer=0xD01),
    EventMsrs(efer=0xD01, lstar=0xFFFF_FFFF_81A0_0000),
)
"""The vCPU state in all computed vectors."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command on its way to the kernel."""

    command: Command

    def encode(self, dialect: Dialect, seq: int) -> bytes:
        return codec_of(dialect).command(self.command).encode(self.command, seq)

    def decode(self, dialect: Dialect, message: bytes) -> Request:
        message_id, size, _ = HEADER.unpack_from(message)
        return Request(codec_of(dialect).by_id[message_id].decode(message[HEADER_SIZE : HEADER_SIZE + size]))


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to a command: data, or a negative error number."""

    command: Command
    result: ReplyData | int

    def encode(self, dialect: Dialect, seq: int) -> bytes:
        return codec_of(dialect).command(self.command).encode_reply(self.result, seq)

    def decode(self, dialect: Dialect, message: bytes) -> Answer:
        result = codec_of(dialect).command(self.command).decode_reply(message[HEADER_SIZE:], self.command)
        return Answer(self.command, result.errno if isinstance(result, Refused) else result)


@dataclass(frozen=True, slots=True)
class VcpuEvent:
    """An event of a vCPU."""

    kind: EventKind
    data: EventData | None = None
    vcpu: int = 0
    state: VcpuState = COMPUTED_STATE

    def encode(self, dialect: Dialect, seq: int) -> bytes:
        return codec_of(dialect).events.encode(self.kind, seq, self.vcpu, self.state, self.data)

    def decode(self, dialect: Dialect, message: bytes) -> VcpuEvent:
        event = codec_of(dialect).events.decode(message)
        return VcpuEvent(event.kind, event.data, event.vcpu, event.state)


@dataclass(frozen=True, slots=True)
class VmEvent:
    """An event of the whole VM."""

    kind: EventKind
    data: EventData | None = None

    def encode(self, dialect: Dialect, seq: int) -> bytes:
        return codec_of(dialect).events.encode_vm(self.kind, seq, self.data)

    def decode(self, dialect: Dialect, message: bytes) -> VmEvent:
        event = codec_of(dialect).events.decode(message)
        assert not event.needs_reply
        return VmEvent(event.kind, event.data)


@dataclass(frozen=True, slots=True)
class EventAnswer:
    """The tool's reply to an event; `data` None means that the message ends before the data."""

    kind: EventKind
    action: Action
    data: EventReplyData | None = None
    vcpu: int = 0

    def encode(self, dialect: Dialect, seq: int) -> bytes:
        shape = codec_of(dialect).events.shapes[dialect.event_number(self.kind)]
        return shape.reply(seq, self.vcpu, self.action, self.data)

    def decode(self, dialect: Dialect, message: bytes) -> EventAnswer:
        payload = message[HEADER_SIZE:]
        action, data = codec_of(dialect).events.decode_reply(self.kind, payload)
        vcpu = VCPU_HEAD.unpack_from(payload)[0]
        return EventAnswer(self.kind, Action(action), data if len(payload) > 16 else None, vcpu)


Item = Request | Answer | VcpuEvent | VmEvent | EventAnswer


def seq_of(message: bytes) -> int:
    """The number in a message's header."""
    seq: int = HEADER.unpack_from(message)[2]
    return seq


def padding_of(layout: Layout, dialect: Dialect, start: int = 0) -> set[int]:
    """Offsets of all padding bytes of a struct, nested ones included."""
    found: set[int] = set()
    for field in layout.fields:
        at = start + field.offset
        if field.padding:
            found.update(range(at, at + field.size))
        elif inner := dialect.structs.get(field.type):
            found |= padding_of(inner, dialect, at)
    return found


def without(message: bytes, padding: set[int]) -> bytes:
    """The message with zeros at these offsets."""
    return bytes(0 if at in padding else byte for at, byte in enumerate(message))


def event_padding(dialect: Dialect, kind: EventKind) -> set[int]:
    """Offsets of the padding in the message of an event, in which kernels leave whatever their stack held."""
    row = dialect.events[kind]
    head = dialect.framing.vm_head if row.vm_level else dialect.framing.vcpu_head
    found: set[int] = set()
    at = HEADER_SIZE
    for name in (*head, row.data):
        if name:
            found |= padding_of(dialect.structs[name], dialect, at)
            at += dialect.structs[name].size
    return found
