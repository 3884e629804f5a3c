"""Events and their replies to bytes and back: offsets, templates and checks computed once from a dialect's rows."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

from policyc.kvmi.body import Body
from policyc.kvmi.errors import LocalProtocolError, RemoteProtocolError
from policyc.kvmi.event_data import NewValue
from policyc.kvmi.events import Event, EventShape, VmEvent
from policyc.kvmi.framing import EVENT_REPLY_HEAD, HEADER, HEADER_SIZE, frame
from policyc.kvmi.vocabulary import Action, CpuMode, EventKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyc.kvmi.dialects import Dialect, EventRow
    from policyc.kvmi.event_data import EventData, EventReplyData
    from policyc.kvmi.layout import Layout
    from policyc.kvmi.registers import VcpuState

__all__ = ["EventCodec", "EventHead"]

_SCALARS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
_U16 = Struct("<H")
_MODES = frozenset(mode.value for mode in CpuMode)
_CHECKED = {"access": frozenset(range(1, 8)), "descriptor": frozenset({1, 2, 3, 4})}
"""Fields of event data that must hold one of a few values: rights, and descriptor table registers."""


@dataclass(frozen=True, slots=True, eq=False)
class EventHead:
    """How to read the header and the beginning of any vCPU event in one go.

    Attributes:
        read: unpacks message id, size, seq, and then the three values below, in the order of the dialect.
        event, size, vcpu: where among the values event number, size of the common struct, and vCPU index are.
        common_size: what the size of the common struct must be.
        least: bytes of a vCPU event without data, message header included.
    """

    read: Struct
    event: int
    size: int
    vcpu: int
    common_size: int
    least: int


class EventCodec:
    """The events of a dialect.

    Attributes:
        head: reads the beginning of vCPU events.
        shapes: by event number.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        structs = [dialect.structs[name] for name in dialect.framing.vcpu_head]
        self._offsets = _offsets(structs, dialect)
        self._sizes = {
            False: HEADER_SIZE + sum(struct.size for struct in structs),
            True: HEADER_SIZE + sum(dialect.structs[name].size for name in dialect.framing.vm_head),
        }
        self._common_size = structs[-1].size
        self.head = self._make_head()
        self._data = {
            kind: Body(dialect.structs[row.data], row.data_type, dialect)
            for kind, row in dialect.events.items()
            if row.data and row.data_type
        }
        self._reply_data = {
            kind: Body(dialect.structs[row.reply], row.reply_type, dialect)
            for kind, row in dialect.events.items()
            if row.reply and row.reply_type
        }
        self.shapes = {row.id: self._shape(row) for row in dialect.events.values()}

    def encode(self, kind: EventKind, seq: int, vcpu: int, state: VcpuState, data: EventData | None) -> bytes:
        """A vCPU event as the kernel sends it.

        Raises:
            LocalProtocolError: the dialect has no such event, the data is another kind's, or a value doesn't fit.
        """
        shape = self._shape_of(kind, vm_level=False)
        message = bytearray(shape.size)
        HEADER.pack_into(message, 0, self._dialect.framing.vcpu_event, shape.size - HEADER_SIZE, seq)
        self._put(message, "event", shape.event_id)
        self._put(message, "size", self._common_size)
        self._put(message, "vcpu", vcpu)
        message[shape.mode] = state.mode
        if shape.view is not None:
            self._put(message, "view", state.view)
        elif state.view:
            raise LocalProtocolError(f"view 0, all that {self._dialect.name} can express", str(state.view))
        blocks = ((shape.regs, state.regs.pack()), (shape.sregs, state.sregs.pack()), (shape.msrs, state.msrs.pack()))
        for at, block in (*blocks, (self._sizes[False], self._encode_data(kind, data))):
            message[at : at + len(block)] = block
        return bytes(message)

    def encode_vm(self, kind: EventKind, seq: int, data: EventData | None) -> bytes:
        """An event of the whole VM, UNHOOK or CMD_ERROR; registers, where the dialect sends any, are zero.

        Raises:
            LocalProtocolError: the dialect has no such event, or it's one of a vCPU, or the data are another kind's.
        """
        shape = self._shape_of(kind, vm_level=True)
        framing = self._dialect.framing
        message = bytearray(self._sizes[True])
        HEADER.pack_into(message, 0, framing.vm_event, shape.size - HEADER_SIZE, seq)
        self._put(message, "event", shape.event_id)
        if framing.vm_head == framing.vcpu_head:
            self._put(message, "size", self._common_size)
        return bytes(message) + self._encode_data(kind, data)

    def decode(self, message: bytes) -> Event:
        """The event that a whole message holds.

        Raises:
            RemoteProtocolError: no such event, or not the size it has, or a byte that means nothing.
        """
        message_id, size, seq = HEADER.unpack_from(message)
        at, code = self._offsets["event"]
        if len(message) < at + code.size:
            raise RemoteProtocolError("an event", f"{size} bytes with id {message_id}")
        number = code.unpack_from(message, at)[0]
        shape = self.shapes.get(number)
        if shape is None or shape.head != (message_id, size):
            expected = f"{shape.size - HEADER_SIZE} bytes" if shape else f"an event of {self._dialect.name}"
            raise RemoteProtocolError(expected, f"event {number} of {size} bytes with id {message_id}")
        if shape.vm_level:
            return VmEvent(seq, 0, shape, message)
        if message[shape.common_at : shape.common_at + 2] != shape.common:
            raise RemoteProtocolError(f"{self._common_size} bytes of registers", message[shape.common_at :][:2].hex())
        if message[shape.check_at] not in shape.check_values:
            raise RemoteProtocolError(f"a known value at offset {shape.check_at}", f"{message[shape.check_at]}")
        at, code = self._offsets["vcpu"]
        return Event(seq, code.unpack_from(message, at)[0], shape, message)

    def decode_reply(self, kind: EventKind, payload: bytes) -> tuple[int, EventReplyData | None]:
        """Action and data of the reply to an event of that kind; what is missing of the data counts as zero.

        Raises:
            RemoteProtocolError: the payload has no room for an action, or says something impossible.
        """
        if len(payload) < EVENT_REPLY_HEAD.size:
            raise RemoteProtocolError(f"an event reply of {EVENT_REPLY_HEAD.size} bytes or more", f"{len(payload)}")
        action: int = EVENT_REPLY_HEAD.unpack_from(payload)[3]
        body = self._reply_data.get(kind)
        if body is None:
            return action, None
        return action, body.decode(payload[EVENT_REPLY_HEAD.size :].ljust(body.size, b"\0"))

    def reply_data_size(self, kind: EventKind) -> int:
        """The most bytes of data that a reply to an event of that kind may carry."""
        body = self._reply_data.get(kind)
        return body.size if body else 0

    def reply_padding_is_zero(self, kind: EventKind, payload: bytes) -> bool:
        """Whether the padding in the data of a reply is zero."""
        body = self._reply_data.get(kind)
        return body is None or body.layout is None or body.layout.padding_is_zero(payload[EVENT_REPLY_HEAD.size :])

    def _shape_of(self, kind: EventKind, *, vm_level: bool) -> EventShape:
        shape = self.shapes[self._dialect.event_number(kind)]
        if shape.vm_level is not vm_level:
            raise LocalProtocolError("an event of the VM" if vm_level else "an event of a vCPU", kind.value)
        return shape

    def _put(self, message: bytearray, name: str, value: int) -> None:
        at, code = self._offsets[name]
        if not 0 <= value < 1 << 8 * code.size:
            raise LocalProtocolError(f"a {name} of {code.size} bytes", str(value))
        code.pack_into(message, at, value)

    def _encode_data(self, kind: EventKind, data: EventData | None) -> bytes:
        body = self._data.get(kind)
        row = self._dialect.events[kind]
        if type(data) is not (row.data_type or type(None)):
            wanted = row.data_type.__name__ if row.data_type else "no data"
            raise LocalProtocolError(f"{wanted} in a {kind.value} event", repr(data))
        return body.encode(data) if body and data else b""

    def _make_head(self) -> EventHead:
        order = sorted(("event", "size", "vcpu"), key=lambda name: self._offsets[name][0])
        format_, end = HEADER.format, HEADER_SIZE
        for name in order:
            at, code = self._offsets[name]
            format_ += f"{at - end}x{code.format[1:]}"
            end = at + code.size
        places = {name: 3 + order.index(name) for name in order}
        return EventHead(Struct(format_), **places, common_size=self._common_size, least=self._sizes[False])

    def _shape(self, row: EventRow) -> EventShape:
        at = {name: place for name, (place, _) in self._offsets.items()}
        start = self._sizes[row.vm_level]
        layout = self._dialect.structs[row.data] if row.data else None
        len_of_data = layout.size if layout else 0
        framing = self._dialect.framing
        data = {field.name: start + field.offset for field in layout.fields} if layout else {}
        checked = next((name for name in _CHECKED if name in data), None)
        reply_size = self._dialect.structs[row.reply].size if row.reply else 0
        must_carry = row.reply_type is NewValue
        return EventShape(
            kind=row.kind,
            dialect_name=self._dialect.name,
            event_id=row.id,
            size=start + len_of_data,
            head=(framing.vm_event if row.vm_level else framing.vcpu_event, start - HEADER_SIZE + len_of_data),
            common_at=at["size"],
            common=_U16.pack(self._common_size),
            vm_level=row.vm_level,
            mode=at["mode"],
            view=at.get("view"),
            regs=at["regs"],
            rsp=at["regs"] + _offset_in(self._dialect, "kvm_regs", "rsp"),
            rip=at["regs"] + _offset_in(self._dialect, "kvm_regs", "rip"),
            sregs=at["sregs"],
            msrs=at["msrs"],
            check_at=data[checked] if checked else at["mode"],
            check_values=frozenset() if row.vm_level else _CHECKED[checked] if checked else _MODES,
            gva=data.get("gva"),
            gpa=data.get("gpa"),
            access=data.get("access"),
            decode_data=self._data_decoder(row.kind, start),
            bare_replies=self._templates(row, None if must_carry else 0),
            full_replies=self._templates(row, reply_size or None),
            reply_type=row.reply_type,
            encode_reply_data=self._reply_data_encoder(row.kind),
        )

    def _templates(self, row: EventRow, data_size: int | None) -> tuple[tuple[bytes, bytes] | None, ...]:
        """By action, what a reply holds before and after seq and vCPU index, which stand side by side."""
        return tuple(
            self._template(row, action, data_size) if data_size is not None and action in row.actions else None
            for action in Action
        )

    def _template(self, row: EventRow, action: Action, data_size: int) -> tuple[bytes, bytes]:
        payload = EVENT_REPLY_HEAD.pack(0, 0, 0, action, row.id, 0, 0) + bytes(data_size)
        whole = frame(self._dialect.framing.event_reply, 0, payload)
        return whole[:4], whole[10 : HEADER_SIZE + EVENT_REPLY_HEAD.size]

    def _data_decoder(self, kind: EventKind, start: int) -> Callable[[bytes], EventData | None]:
        body = self._data.get(kind)
        return (lambda message: body.decode(message[start:])) if body else _nothing

    def _reply_data_encoder(self, kind: EventKind) -> Callable[[EventReplyData], bytes]:
        body = self._reply_data.get(kind)
        return body.encode if body else _no_bytes


def _offsets(structs: list[Layout], dialect: Dialect) -> dict[str, tuple[int, Struct]]:
    """Offset from the message's start, and code, of each field of the head and of its `arch` struct."""
    found: dict[str, tuple[int, Struct]] = {}
    start = HEADER_SIZE
    for struct in structs:
        for field in struct.fields:
            inner = dialect.structs[field.type].fields if field.name == "arch" else (field,)
            base = start + field.offset if field.name == "arch" else start
            for part in inner:
                if not part.padding:
                    code = Struct("<" + _SCALARS.get(part.type, f"{part.size}s"))
                    found[part.name] = (base + part.offset, code)
        start += struct.size
    return found


def _offset_in(dialect: Dialect, struct: str, name: str) -> int:
    return next(field.offset for field in dialect.structs[struct].fields if field.name == name)


def _nothing(message: bytes) -> None:
    return None


def _no_bytes(data: EventReplyData) -> bytes:
    return b""
