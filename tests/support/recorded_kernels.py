"""Says to the emulator what a tool once said to a running kernel, and compares what comes back, message by message.

The guest is one that does the same things (`RecordedGuest`), so the same events come; where its code lies, and how many
turns its loop has made, differs. Which bytes a difference is in says what it is about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace
from struct import Struct

from policyc.addresses import Gpa
from policyc.emulator.defects import Quirk
from policyc.emulator.introspection import Introspection
from policyc.kvmi import (
    V7,
    BreakpointData,
    Command,
    Dialect,
    Event,
    EventData,
    EventKind,
    GetMapToken,
    GetRegisters,
    Hello,
    MsrData,
    PfData,
    ReadPhysical,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER, HEADER_SIZE, REPLY_HEAD
from policyc.kvmi.messages import SetRegisters
from tests.support.kvmi_vectors import Conversation
from tests.support.kvmi_wire import padding_of, without
from tests.support.recorded_guest import MAILBOX, RecordedGuest

__all__ = ["Difference", "compare"]

_TURNS = 4
"""Slices that the guest gets after each message: enough for anything that its mailbox can ask for."""

_SLICE = 2000
_MESSAGE_SECONDS = 0.26
"""How long the recorded tool took for a message, about: that long its map tokens lived."""

_U64 = Struct("<Q")
_WRITE_STAR = 8
_RIP_AT = HEADER_SIZE + 8 + 128
_GUEST_PAGES = {0x20_1000, MAILBOX, 0x20_3000, 0x10_0000}
"""Where the guest keeps counters, results that come at their own time, and code."""


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """What the emulator did otherwise: about which message, and how the two are told in a word each."""

    message: str
    kernel: str
    emulator: str


def compare(
    dialect: Dialect,
    conversation: Conversation,
    guest: RecordedGuest,
    *,
    commands: Collection[type[Command]] | None = None,
    events: Collection[EventKind] | None = None,
    ordered: bool = False,
    until: EventKind | None = None,
) -> list[Difference]:
    """Play the tool's side of a conversation, and give what came otherwise than from the kernel, in order.

    Args:
        guest: as it was when the recording began.
        commands, events: what the VMM allowed; None for all.
        ordered: somebody else told the recorded guest what to do, so it has to be told here.
        until: the first event that isn't played any more, nor what follows it.
    """
    return _Comparison(dialect, guest, commands, events, ordered=ordered).run(conversation, until)


class _Comparison:
    def __init__(
        self,
        dialect: Dialect,
        guest: RecordedGuest,
        commands: Collection[type[Command]] | None,
        events: Collection[EventKind] | None,
        *,
        ordered: bool,
    ) -> None:
        self.ordered = ordered
        self.dialect = dialect
        self.codec = codec_of(dialect)
        self.guest = guest
        self.session = Introspection(
            guest,
            dialect,
            Hello(bytes(16)),
            quirks={Quirk.FETCHES_TWICE, Quirk.V7_GFN_BIT1 if dialect is V7 else Quirk.CRASH_IGNORED},
            commands=commands,
            events=events,
            clock=lambda: self.messages * _MESSAGE_SECONDS,
        )
        self.session.outgoing()
        self.session.receive(bytes([24]) + bytes(23))
        self.messages = 0
        self.said: deque[bytes] = deque()
        self.asked: dict[tuple[int, int], Command] = {}
        self.seqs: dict[int, int] = {}
        self.missing: set[int] = set()
        self.slips: dict[int, int] = {}
        self.found: list[Difference] = []

    def run(self, conversation: Conversation, until: EventKind | None) -> list[Difference]:
        self._let_run()
        previous = False
        for line in conversation.lines:
            if line.name == "handshake":
                continue
            if until and line.data and not line.outgoing and self._name(line.data) == f"event {until.value}":
                return self.found
            if line.data is None and not line.outgoing and not previous:
                self.session.receive(b"")  # after an answer it was the tool that closed
            previous = line.outgoing
            if line.outgoing and line.data is not None:
                self._tool_says(line.data)
            elif line.outgoing:
                return self.found
            elif line.data is not None:
                self._kernel_said(line.data)
            elif self.session.ended is None:
                self._differ("end", "closed", "goes on")
        for data in self.said:
            self._differ(self._what(data), "silence", self._size(data))
        return self.found

    def _tool_says(self, data: bytes) -> None:
        """Send it, several messages in one perhaps; numbers of events, and RIP, are those of this guest."""
        self.messages += 1
        at = 0
        while at + HEADER_SIZE <= len(data):
            message_id, size, seq = HEADER.unpack_from(data, at)
            message = data[at : at + HEADER_SIZE + size]
            at += len(message)
            codec = self.codec.by_id.get(message_id)
            if message_id == self.dialect.framing.event_reply:
                if seq in self.missing:
                    continue
                message = message[:4] + (self.seqs.get(seq, seq)).to_bytes(4, "little") + message[HEADER_SIZE:]
            elif codec is not None:
                self.asked[message_id, seq] = command = self._decoded(message_id, message)
                if isinstance(command, SetRegisters) and len(message) >= _RIP_AT + 8:
                    rip = command.regs.rip + self.slips.get(command.vcpu, 0)
                    message = message[:_RIP_AT] + _U64.pack(rip % (1 << 64)) + message[_RIP_AT + 8 :]
            self.session.receive(message)
        if at < len(data):
            self.session.receive(data[at:])
        self._let_run()

    def _decoded(self, message_id: int, message: bytes) -> Command:
        try:
            return self.codec.by_id[message_id].decode(message[HEADER_SIZE:])
        except Exception:
            return Command()

    def _let_run(self) -> None:
        for _ in range(_TURNS):
            self.guest.run(_SLICE)
        data = self.session.outgoing()
        at = 0
        while at < len(data):
            size = HEADER.unpack_from(data, at)[1]
            self.said.append(data[at : at + HEADER_SIZE + size])
            at += HEADER_SIZE + size

    def _kernel_said(self, theirs: bytes) -> None:
        """Find the counterpart of a message, which may have come earlier or later in the order of all."""
        key = self._key(theirs)
        if key == ("event", 0, 0):
            self.session.unhook()  # the VMM's doing
            self._let_run()
        ours = self._counterpart(key)
        if ours is None and self.ordered and key[0] == "event":
            self._order(theirs)
            ours = self._counterpart(key)
        if ours is None:
            self._differ(self._what(theirs), self._size(theirs), "silence")
            if key[0] == "event":
                self.missing.add(HEADER.unpack_from(theirs)[2])
            return
        self.said.remove(ours)
        if key[0] == "event":
            self._same_event(theirs, ours)
        else:
            self._same_reply(theirs, ours)

    def _counterpart(self, key: tuple[str, int, int]) -> bytes | None:
        return next((data for data in self.said if self._key(data) == key), None)

    def _order(self, theirs: bytes) -> None:
        """Have the guest do what made the kernel send this event, where the recording doesn't show who told it to."""
        event = self.codec.events.decode(theirs)
        assert isinstance(event, Event)
        order = event.state.regs.rax
        if isinstance(event.data, MsrData):
            order = _WRITE_STAR
            self.guest.vcpus[event.vcpu].engine.msr_write(event.data.msr, event.data.old)
        box = Gpa(MAILBOX + 0x40 * event.vcpu)
        self.guest.memory.write(Gpa(box + 8), _U64.pack(event.state.regs.rdx))
        self.guest.memory.write(box, _U64.pack(order))
        self._let_run()

    def _same_reply(self, theirs: bytes, ours: bytes) -> None:
        message_id, _, seq = HEADER.unpack_from(theirs)
        name = self._name(theirs)
        if self._size(theirs) != self._size(ours):
            self._differ(name, self._size(theirs), self._size(ours))
            return
        command = self.asked.get((message_id, seq), Command())
        free = isinstance(command, GetRegisters | GetMapToken)
        if isinstance(command, ReadPhysical):
            free = command.gpa & ~0xFFF in _GUEST_PAGES
        codec = self.codec.by_id.get(message_id)
        padding = padding_of(codec.reply.layout, self.dialect, 16) if codec and codec.reply.layout else set()
        if not free and without(theirs, padding)[16:] != without(ours, padding)[16:]:
            self._differ(name, "its data", "other data")

    def _same_event(self, theirs: bytes, ours: bytes) -> None:
        name = self._name(theirs)
        self.seqs[HEADER.unpack_from(theirs)[2]] = HEADER.unpack_from(ours)[2]
        if len(theirs) != len(ours):
            self._differ(name, f"{len(theirs)} bytes", f"{len(ours)} bytes")
            return
        if len(theirs) <= HEADER_SIZE + REPLY_HEAD.size:
            return
        them, us = self.codec.events.decode(theirs), self.codec.events.decode(ours)
        if not them.needs_reply:
            if them.data != us.data:
                self._differ(name, str(them.data), str(us.data))
            return
        self.slips[them.vcpu] = us.state.regs.rip - them.state.regs.rip
        if _without_code(them) != _without_code(us):
            self._differ(name, str(them.data), str(us.data))
        if (them.state.mode, them.view) != (us.state.mode, us.view):
            self._differ(name, f"mode {them.state.mode} view {them.view}", f"mode {us.state.mode} view {us.view}")

    def _key(self, data: bytes) -> tuple[str, int, int]:
        message_id, size, seq = HEADER.unpack_from(data)
        framing = self.dialect.framing
        if message_id in (framing.vm_event, framing.vcpu_event) and size > REPLY_HEAD.size:
            event = self.codec.events.decode(data)
            return "event", self.dialect.event_number(event.kind), event.vcpu
        if message_id == framing.vm_event != framing.vcpu_event and data[HEADER_SIZE:] == bytes(8):
            return "event", 0, 0
        return "reply", message_id, 0 if message_id == framing.event_reply else seq

    def _name(self, data: bytes) -> str:
        kind, number, _ = self._key(data)
        if kind == "event":
            return f"event {self.dialect.event_by_id[number].kind.value}"
        row = self.dialect.command_by_id.get(number)
        if row is None:
            return f"reply {number}"
        command = self.asked.get((number, HEADER.unpack_from(data)[2]))
        return str(command)[:110] if command is not None else row.message.__name__

    def _what(self, data: bytes) -> str:
        """The name of a message that has no counterpart; with the kind of access, if it tells of one."""
        name = self._name(data)
        if self._key(data)[0] == "event" and len(data) > HEADER_SIZE + REPLY_HEAD.size:
            event = self.codec.events.decode(data)
            if isinstance(event.data, PfData):
                return f"{name} {event.data.access.name}"
        return name

    def _size(self, data: bytes) -> str:
        if self._key(data)[0] == "event":
            return f"{len(data)} bytes"
        error = REPLY_HEAD.unpack_from(data, HEADER_SIZE)[0]
        return f"error {error}" if error else f"{len(data)} bytes"

    def _differ(self, message: str, kernel: str, emulator: str) -> None:
        self.found.append(Difference(message, kernel, emulator))


def _without_code(event: Event) -> EventData | None:
    """What an event says, but for where the guest's code lies."""
    data = event.data
    return replace(data, gpa=Gpa(data.gpa - event.state.regs.rip)) if isinstance(data, BreakpointData) else data
