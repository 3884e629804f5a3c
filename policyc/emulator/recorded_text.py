"""Recorded messages in words: one line each, with every value that came from the file made harmless."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from policyc.emulator.recording import is_handshake, split
from policyc.kvmi import DONE, Refused, Registers, RemoteProtocolError, SetPageAccess, SystemRegisters, page_entries
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import EVENT_REPLY_HEAD, HEADER, HEADER_SIZE, REPLY_HEAD
from policyc.kvmi.handshake import decode_hello

if TYPE_CHECKING:
    from collections.abc import Iterator

    from policyc.emulator.recording import RecordedMessage
    from policyc.kvmi import Command, Dialect

__all__ = ["Describer"]

_REMEMBERED: Final = 4096
_SHOWN_BYTES: Final = 16
_SHOWN_ITEMS: Final = 4
_SHOWN_REGISTERS: Final = ("rip", "rsp", "rax", "cr0", "cr3", "cr4", "efer")
_ACTIONS: Final = ("CONTINUE", "RETRY", "CRASH")


class Describer:
    """Says what messages mean; it remembers the commands that are under way, to read their answers."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._codec = codec_of(dialect)
        self._asked: OrderedDict[tuple[int, int], Command] = OrderedDict()

    def lines(self, message: RecordedMessage) -> Iterator[str]:
        """A line for each message that was sent in one piece."""
        who = "tool  " if message.outgoing else "kernel"
        if message.data is None:
            yield f"{message.line:6} {who} closes"
        elif is_handshake(message):
            yield f"{message.line:6} {who} {self._handshake(message.outgoing, message.data)}"
        else:
            for data in split(message):
                yield f"{message.line:6} {who} {self.text(message.outgoing, data)}"

    def text(self, outgoing: bool, data: bytes) -> str:
        """What one KVMI message says."""
        try:
            return self._outgoing(data) if outgoing else self._incoming(data)
        except RemoteProtocolError as error:
            return f"{_bytes(data)}: {error}"

    def _handshake(self, outgoing: bool, data: bytes) -> str:
        if outgoing:
            return "answers the handshake, " + ("with a secret" if any(data[4:24]) else "without a secret")
        try:
            hello = decode_hello(data)
        except RemoteProtocolError as error:
            return f"introduces itself: {error}"
        return f"introduces itself: {hello.name!a}, uuid {hello.uuid.hex()}, started {hello.start_time}"

    def _outgoing(self, data: bytes) -> str:
        if len(data) < HEADER_SIZE:
            return f"{_bytes(data)}: less than a header"
        message_id, _, seq = HEADER.unpack_from(data)
        if message_id == self._dialect.framing.event_reply:
            vcpu, _, _, action, *_ = EVENT_REPLY_HEAD.unpack_from(
                data[HEADER_SIZE:].ljust(EVENT_REPLY_HEAD.size, b"\0")
            )
            name = _ACTIONS[action] if action < len(_ACTIONS) else f"action {action}"
            rest = data[HEADER_SIZE + EVENT_REPLY_HEAD.size :]
            return f"answers event {seq} of vCPU {vcpu}: {name}" + (f" with {_bytes(rest)}" if rest else "")
        codec = self._codec.by_id.get(message_id)
        if codec is None:
            return f"#{seq} command {message_id}, which {self._dialect.name} doesn't have: {_bytes(data[HEADER_SIZE:])}"
        command = codec.decode(data[HEADER_SIZE:])
        self._asked[message_id, seq] = command
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        return f"#{seq} {_value(command)}"

    def _incoming(self, data: bytes) -> str:
        if len(data) < HEADER_SIZE:
            return f"{_bytes(data)}: less than a header"
        message_id, size, seq = HEADER.unpack_from(data)
        framing = self._dialect.framing
        small = message_id == framing.vcpu_event and size <= REPLY_HEAD.size
        if message_id in (framing.vm_event, framing.vcpu_event) and not small:
            return self._event(data)
        command = self._asked.pop((message_id, seq), None)
        codec = self._codec.by_id.get(message_id)
        if command is None or codec is None:
            errno = REPLY_HEAD.unpack_from(data[HEADER_SIZE:].ljust(REPLY_HEAD.size, b"\0"))[0]
            return f"#{seq} answers {message_id} with {errno}, {size} bytes"
        result = codec.decode_reply(data[HEADER_SIZE:], command)
        name = type(command).__name__
        if isinstance(result, Refused):
            return f"#{seq} refuses {name}: {result.name} ({result.errno})"
        return f"#{seq} {name}: done" if result == DONE else f"#{seq} {_value(result)}"

    def _event(self, data: bytes) -> str:
        event = self._codec.events.decode(data)
        detail = f" {_value(event.data)}" if event.data is not None else ""
        if not event.needs_reply:
            return f"event {event.seq} {event.kind.value}{detail}"
        view = f" view {event.view}" if event.view else ""
        return f"event {event.seq} {event.kind.value} on vCPU {event.vcpu}{view} at {event.rip:#x}{detail}"


def _value(value: object) -> str:
    """A value of a message; none of them holds text that came from outside."""
    match value:
        case bool() | None:
            return str(value)
        case Enum():
            return value.name or str(int(str(value.value)))
        case int():
            return f"{value:#x}" if value > 9 else str(value)
        case bytes():
            return _bytes(value)
        case type():
            return value.__name__
        case Registers() | SystemRegisters():
            return " ".join(
                f"{name}={_value(getattr(value, name))}" for name in _SHOWN_REGISTERS if hasattr(value, name)
            )
        case tuple():
            return "[" + ", ".join(map(_value, value[:_SHOWN_ITEMS])) + (", …]" if len(value) > _SHOWN_ITEMS else "]")
    if is_dataclass(value) and not isinstance(value, type):
        return " ".join(
            (type(value).__name__, *(f"{field.name}={_field(value, field.name)}" for field in fields(value)))
        )
    return "?"


def _field(owner: object, name: str) -> str:
    value: object = getattr(owner, name)
    if isinstance(owner, SetPageAccess) and name == "entries":
        pages = [f"{gpa:#x}:{rights}" for gpa, rights in page_entries(owner)]
        return f"[{', '.join(pages[:_SHOWN_ITEMS])}{', …' if len(pages) > _SHOWN_ITEMS else ''}]"
    return _value(value)


def _bytes(data: bytes) -> str:
    shown = data[:_SHOWN_BYTES].hex()
    return f"{shown}…({len(data)} bytes)" if len(data) > _SHOWN_BYTES else shown
