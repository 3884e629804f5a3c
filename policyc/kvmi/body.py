"""One struct on the wire tied to one dataclass: `encode` and `decode`, driven by the names of the fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from struct import error as StructError  # noqa: N812  (a class in all but name)
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from policyc.kvmi.errors import LocalProtocolError, RemoteProtocolError
from policyc.kvmi.messages import Features
from policyc.kvmi.registers import EventMsrs, MsrEntry, Registers, SystemRegisters
from policyc.kvmi.vocabulary import CpuMode, Descriptor, PageAccess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.kvmi.dialects import Dialect
    from policyc.kvmi.layout import Layout

__all__ = ["Body"]

VECTORS_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
"""Exceptions that push an error code (Intel SDM volume 3, table 6-1)."""

_ATTRIBUTES = {
    "nr": "vector",
    "cr2": "address",
    "old_value": "old",
    "new_value": "new",
    "new_val": "value",
    "msrs_idx": "msrs",
    "event_id": "event",
    "xsave": "area",
    "max_msg_size": "max_message_size",
    "flags": "report_errors",
}
"""Struct fields whose name differs between generations, or says less than it could, and what they are called here."""

_OF_MESSAGE = {
    "CheckCommand": {"id": "command"},
    "CheckEvent": {"id": "event"},
    "GetRegistersReply": {"entries": "msrs"},
}
"""Names that hold for one message alone."""

_COUNTERS = ("nmsrs", "count", "size")
"""Fields that count the elements of the flexible array at the end, where there is one."""

_USED = {"ctx_data": "ctx_size"}
"""Arrays of fixed size of which another field tells how much is used."""

_DERIVED: Mapping[str, Callable[[Any], int]] = {
    "has_error": lambda message: message.vector in VECTORS_WITH_ERROR_CODE,
    "ctx_size": lambda message: len(message.ctx_data),
}
"""Fields that follow from others."""

_FLAG = (int, bool)
_VALUES: Mapping[str, _Conversion] = {
    "access": (int, PageAccess),
    "descriptor": (int, Descriptor),
    "mode": (int, CpuMode),
    "enable": _FLAG,
    "now": (int, lambda now: bool(now == 1)),
    "wait": _FLAG,
    "write": _FLAG,
    "failed": _FLAG,
    "suppress": _FLAG,
    "visible": _FLAG,
    "trigger_vmexit": _FLAG,
    "rep_complete": _FLAG,
    "singlestep": _FLAG,
    "spp": _FLAG,
    "vmfunc": _FLAG,
    "eptp": _FLAG,
    "ve": _FLAG,
    "report_errors": (int, lambda flags: bool(flags & 1)),
}

_NESTED: Mapping[str, _Conversion] = {
    "kvm_regs": (Registers.pack, Registers.unpack),
    "kvm_sregs": (SystemRegisters.pack, SystemRegisters.unpack),
    "event_msrs": (EventMsrs.pack, EventMsrs.unpack),
}

_Conversion: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""How a field that isn't a plain number is written and read."""

T = TypeVar("T")


class Body(Generic[T]):
    """A struct of a dialect, or an empty one, and the dataclass that stands for it.

    Attributes:
        layout: the struct; None if there is nothing on the wire.
        size: bytes before the flexible array, if it has one.
        element: bytes of one element of the flexible array; 0 if there is none.
    """

    def __init__(self, layout: Layout | None, make: type[T], dialect: Dialect) -> None:
        renames = {**_ATTRIBUTES, **_OF_MESSAGE.get(make.__name__, {})}
        self.layout = layout
        self.size = layout.size if layout else 0
        self.element = layout.tail_layout.size if layout and layout.tail_layout else 0
        self._make = make
        self._dialect = dialect.name
        self._fields = tuple((name, renames.get(name, name)) for name in (layout.names if layout else ()))
        self._tail = renames.get(layout.tail, layout.tail) if layout and layout.tail else ""
        self._counter = next((name for name, _ in self._fields if self._tail and name in _COUNTERS), None)
        self._read_tail = _tail_reader(layout) if layout and self._tail else bytes
        self._conversions = _conversions(self._fields, layout, dialect) if layout else {}
        placed = {attribute for _, attribute in self._fields} | {self._tail, "vcpu"}
        self._homeless = [(f.name, f.default) for f in fields(cast("Any", make)) if f.name not in placed]

    def encode(self, message: T) -> bytes:
        """The bytes of `message`, flexible array included.

        Raises:
            LocalProtocolError: a value doesn't fit, or the dialect has no place for it.
        """
        return b"".join(self.encode_parts(message))

    def encode_parts(self, message: T) -> tuple[bytes, bytes]:
        """The same as struct and flexible array, so that the array, which may be long, is copied once at the most."""
        for attribute, default in self._homeless:
            value = getattr(message, attribute)
            if default is not MISSING and value != default:
                raise LocalProtocolError(f"{attribute}={default!r}, all that {self._dialect} can express", repr(value))
        if self.layout is None:
            return b"", b""
        tail, count = self._encode_tail(message)
        values = [self._value_to_wire(name, attribute, message, count) for name, attribute in self._fields]
        try:
            return self.layout.struct.pack(*values), tail
        except StructError as error:
            raise LocalProtocolError(f"values that fit into {self.layout.name}", f"{message!r} ({error})") from None

    def decode(self, payload: bytes, **given: object) -> T:
        """The message that `payload` holds from its first byte on, with the values `given` from elsewhere.

        What follows the struct, or the elements that its counter announces, is ignored.

        Raises:
            RemoteProtocolError: the payload is too short, or a value has no meaning.
        """
        if self.layout is None:
            return self._make(**given)
        if len(payload) < self.size:
            raise RemoteProtocolError(f"at least {self.size} bytes of {self.layout.name}", f"{len(payload)}")
        raw = dict(zip(self.layout.names, self.layout.struct.unpack_from(payload), strict=True))
        arguments = {
            attribute: self._value_from_wire(name, raw)
            for name, attribute in self._fields
            if name != self._counter and name not in _DERIVED
        }
        if self._tail:
            arguments[self._tail] = self._decode_tail(payload, raw.get(self._counter) if self._counter else None)
        return self._make(**arguments, **given)

    def length(self, payload: bytes) -> int:
        """Bytes that `payload` says it has: those of the struct, and of as many elements as its counter counts."""
        if self.layout is None or self._counter is None:
            return len(payload) if self._tail else self.size
        raw = dict(zip(self.layout.names, self.layout.struct.unpack_from(payload), strict=True))
        return self.size + int(raw[self._counter]) * self.element

    def _value_to_wire(self, name: str, attribute: str, message: T, count: int) -> object:
        if name == self._counter:
            return count
        if name in _DERIVED:
            return _DERIVED[name](message)
        value = getattr(message, attribute)
        if name in self._conversions:
            value = self._conversions[name][0](value)
        if isinstance(value, bytes):
            self._check_length(name, value)
        return value

    def _value_from_wire(self, name: str, raw: Mapping[str, Any]) -> object:
        value = raw[name]
        if name in _USED:
            used = raw[_USED[name]]
            if used > len(value):
                raise RemoteProtocolError(f"{_USED[name]} up to {len(value)}", str(used))
            return value[:used]
        try:
            return self._conversions[name][1](value) if name in self._conversions else value
        except ValueError as error:
            raise RemoteProtocolError(f"a value of `{name}` that means something", str(error)) from None

    def _check_length(self, name: str, value: bytes) -> None:
        size = next(field.size for field in self.layout.fields if field.name == name) if self.layout else 0
        if len(value) > size or (len(value) < size and name not in _USED):
            raise LocalProtocolError(f"{size} bytes of `{name}`", f"{len(value)}")

    def _encode_tail(self, message: T) -> tuple[bytes, int]:
        if not self._tail or self.layout is None or self.layout.tail_layout is None:
            return b"", 0
        items = getattr(message, self._tail)
        if isinstance(items, bytes):
            return items, len(items) // self.element
        pack = self.layout.tail_layout.struct.pack
        try:
            return b"".join(pack(*_cells(item)) for item in items), len(items)
        except StructError as error:
            raise LocalProtocolError(f"values that fit into {self.layout.tail_layout.name}", str(error)) from None

    def _decode_tail(self, payload: bytes, count: Any) -> object:
        end = len(payload) if count is None else self.size + count * self.element
        if end > len(payload):
            raise RemoteProtocolError(f"{end} bytes, as announced", f"{len(payload)}")
        return self._read_tail(payload[self.size : end])


def _conversions(names: tuple[tuple[str, str], ...], layout: Layout, dialect: Dialect) -> dict[str, _Conversion]:
    special: dict[str, _Conversion] = {
        "event": (dialect.event_number, dialect.event_named),
        "command": (dialect.command_number, dialect.command_named),
    }
    found: dict[str, _Conversion] = {}
    for name, attribute in names:
        nested = layout.nested.get(name, "")
        if nested == "kvmi_features":
            features = Body(dialect.structs[nested], Features, dialect)
            found[name] = (features.encode, features.decode)
        elif conversion := _NESTED.get(nested) or special.get(attribute) or _VALUES.get(name):
            found[name] = conversion
    return found


def _tail_reader(layout: Layout) -> Callable[[bytes], object]:
    """How the bytes of the flexible array become a value."""
    element = layout.tail_layout
    assert element is not None, f"{layout.name} has no flexible array"
    unpack = element.struct.iter_unpack
    if layout.tail == "data" or element.name == "kvmi_page_access_entry":
        return bytes
    if layout.tail == "access":
        return lambda tail: tuple(map(PageAccess, tail))
    if element.name == "kvm_msr_entry":
        return lambda tail: tuple(MsrEntry(index, data) for index, data in unpack(tail))
    if element.fields:
        return lambda tail: tuple(unpack(tail))
    return lambda tail: tuple(value for (value,) in unpack(tail))


def _cells(item: object) -> tuple[object, ...]:
    """The values of one element of a flexible array."""
    if isinstance(item, MsrEntry):
        return item.index, item.data
    return item if isinstance(item, tuple) else (item,)
