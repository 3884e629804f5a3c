"""What both sides say about one event, recorded once and then played again and again with other numbers.

It is recorded from a conversation with the scripted kernel of the tests, so it's what the enforcer asks today. RAX
counts along with the events: a guest that goes on never sends the same registers again and again, and the enforcer
treats one that does otherwise.
"""

from __future__ import annotations

import functools
import re
import struct
import time
from dataclasses import dataclass, replace

from benchmarks.kernel_process import Peer
from policyc.addresses import Gva
from policyc.kvmi import V7, EventKind, PageAccess, PfData
from policyc.kvmi.framing import HEADER
from policyc.plan.model import Plan
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, ScriptedKernel, gpa_of

__all__ = ["MODULE", "STORE", "TEXT_POKE", "WARM", "Exchange", "Kind", "Message", "Part", "played_seconds", "recorded"]

STORE = bytes.fromhex("488903")  # mov [rbx], rax
MODULE = 0xFFFFFFFFC0401000
STACK = 0xFFFFFFFFC0402800
TEXT_POKE = IMAGE_BASE + 0x1240
CALLER = (TEXT_POKE + SLIDE + 8).to_bytes(8, "little")
EVENTS = (V7.framing.vcpu_event, V7.framing.event_reply)
SEQ_AT = 4
_SEQ = struct.Struct("<I")
_RAX = struct.Struct("<Q")
RAX_MARK = 0x5241_585F_4D41_524B

WARM = 3
"""Events before the one that is recorded or timed: what is remembered of code is remembered then."""


@dataclass(frozen=True)
class Kind:
    """A write, and what the module's code is when it comes.

    Attributes:
        target: link address that is written.
    """

    target: int
    rip: int = MODULE
    code: bytes = STORE

    def kernel(self) -> ScriptedKernel:
        """A guest with a module's code, and a stack whose top is a return address in __text_poke."""
        kernel = ScriptedKernel(V7)
        for address, offset, content in ((MODULE, 0, self.code), (STACK, STACK & 0xFFF, CALLER)):
            page = kernel.memory.new_page()
            kernel.memory.map(kernel.root, address & ~0xFFF, page)
            kernel.memory.write(page + offset, content)
        return kernel

    def say(self, kernel: ScriptedKernel, rax: int) -> int:
        """Let the kernel send the event; returns its number."""
        fault = PfData(Gva(self.target + SLIDE), gpa_of(self.target), PageAccess.W)
        state = kernel.vcpu_state(self.rip, STACK)
        state = replace(state, regs=state.regs._replace(rax=rax))
        return kernel.kernel.send_event(EventKind.PF, 0, state, fault)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of either side.

    Attributes:
        number: its sequence number when it was recorded.
        of_event: the number is an event's, not a command's.
        marks: where RAX stands in it.
    """

    data: bytes
    number: int
    of_event: bool
    marks: tuple[int, ...]

    @property
    def key(self) -> tuple[int, bool]:
        """Events and commands are numbered apart."""
        return self.number, self.of_event

    def with_values(self, number: int, rax: int) -> bytes:
        """The same with another number, and another RAX."""
        data = bytearray(self.data)
        _SEQ.pack_into(data, SEQ_AT, number)
        for at in self.marks:
            _RAX.pack_into(data, at, rax)
        return bytes(data)


@dataclass(frozen=True, slots=True)
class Part:
    """What one side said at once."""

    by_kernel: bool
    messages: tuple[Message, ...]


def part_of(data: bytes, *, by_kernel: bool) -> Part:
    """Find the messages in bytes that came at once."""
    messages: list[Message] = []
    while data:
        message_id, size, number = HEADER.unpack_from(data)
        one, data = data[: HEADER.size + size], data[HEADER.size + size :]
        marks = tuple(found.start() for found in re.finditer(re.escape(_RAX.pack(RAX_MARK)), one))
        messages.append(Message(one, number, message_id in EVENTS, marks))
    return Part(by_kernel, tuple(messages))


def recorded(plan: Plan, kind: Kind) -> list[Part]:
    """What both sides say about one such event, in order."""
    talk = Conversation(plan, kind.kernel())
    talk.connect()
    parts: list[Part] = []
    kernel_reads, tool_reads = talk.peer.kernel_reads, talk._tool_reads

    def to_kernel(data: bytes) -> None:
        parts.append(part_of(data, by_kernel=False))
        kernel_reads(data)

    def to_tool(data: bytes) -> None:
        parts.append(part_of(data, by_kernel=True))
        tool_reads(data)

    talk.peer.kernel_reads, talk._tool_reads = to_kernel, to_tool  # type: ignore[method-assign]  # eavesdropping
    for rax in (*range(WARM), RAX_MARK):
        parts.clear()
        kind.say(talk.peer, rax)
        talk.talk()
    return parts


class Exchange:
    """Plays the kernel's parts, each when the tool's part before it has come.

    Args:
        first: the number of the first event; they go on from there.
    """

    def __init__(self, peer: Peer, parts: list[Part], first: int) -> None:
        self._peer = peer
        self._parts = parts
        self._next = first
        self._numbers: dict[tuple[int, bool], int] = {}

    def play(self, rax: int) -> None:
        """One event, from its first byte to the reply."""
        self._numbers.clear()
        for part in self._parts:
            if part.by_kernel:
                self._peer.link.sendall(b"".join([self._said(message, rax) for message in part.messages]))
            else:
                for message in part.messages:
                    self._hear(message, rax)

    def _said(self, message: Message, rax: int) -> bytes:
        if message.of_event:
            self._numbers[message.key] = self._next
            self._next += 1
        return message.with_values(self._numbers[message.key], rax)

    def _hear(self, wanted: Message, rax: int) -> None:
        """Wait for this message; whatever else the tool says before it is answered."""
        while True:
            data = self._peer.message()
            (number,) = _SEQ.unpack_from(data, SEQ_AT)
            # An event's number is ours, a command's the tool's.
            known = self._numbers.get(wanted.key, number)
            if data == wanted.with_values(known, rax):
                self._numbers[wanted.key] = known
                return
            self._peer.answer_aside(data)


def played_seconds(peer: Peer, kind: Kind, parts: list[Part], events: int) -> float:
    """Warm the tool up with events of the scripted kernel, then play so many; the seconds that those took."""
    for rax in range(WARM):
        peer.raise_event(functools.partial(kind.say, rax=rax))
    # The scripted kernel counts its events, and what it would send is never sent: the first one played takes its place.
    exchange = Exchange(peer, parts, kind.say(peer.kernel, WARM))
    peer.kernel.kernel.data_to_send()
    begin = time.perf_counter()
    for rax in range(WARM, WARM + events):
        exchange.play(rax)
    return time.perf_counter() - begin
