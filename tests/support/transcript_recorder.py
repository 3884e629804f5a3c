"""Writes down one conversation: what goes into the enforcer, what comes out, and the bytes on the wire both ways."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum

from policyc.kvmi import Event, Registers
from policyc.kvmi import Reply as CommandReply
from policyc.kvmi.framing import HEADER, HEADER_SIZE
from policyc.plan.model import Plan
from policyc.runtime.steps import Disconnect, Output, Reply, Send, Write
from tests.support.scripted_kernel import Conversation, ScriptedKernel
from tests.support.tool_side import Heard

__all__ = ["Recorder", "RecordingKernel", "shortened"]

FIRST_SEQ = 0x100
"""The number of the first command that is written down."""


def shortened(data: bytes) -> str:
    """Hex in which `(00*N)` stands for N zero bytes, from four on."""
    text = data.hex(" ")
    runs = re.sub(r"\b00(?: 00){3,}\b", lambda match: f"(00*{(len(match[0]) + 1) // 3})", text)
    return runs.replace(" ", "")


class RecordingKernel(ScriptedKernel):
    """A scripted kernel that says what it reads, message by message."""

    heard: deque[str] | None = None

    def kernel_reads(self, data: bytes) -> None:
        for message in _messages(data):
            if self.heard is not None:
                self.heard.append(shortened(message))
            super().kernel_reads(message)


class Recorder(Conversation):
    """A conversation whose `lines` say what was said since `begin`."""

    def __init__(self, plan: Plan, peer: RecordingKernel) -> None:
        super().__init__(plan, peer)
        self.lines: list[str] = []
        self._heard: deque[str] = deque()
        self._unsent: deque[int] = deque()
        self._recording = False

    def begin(self) -> None:
        """From here on everything is written down."""
        assert isinstance(self.peer, RecordingKernel)
        self.peer.heard = self._heard
        # How many commands arming took is no concern of what follows.
        self.tool._next_seq = FIRST_SEQ
        self._recording = True

    def talk(self) -> None:
        super().talk()
        while self._heard:
            self.lines[self._unsent.popleft()] += f"\n  {self._heard.popleft()}"
        assert not self._unsent, "everything that was to be sent has been read"

    def hang_up(self) -> None:
        self._note("! the kernel closes the connection")
        super().hang_up()

    def _tool_reads(self, data: bytes) -> None:
        for message in _messages(data):
            self._message = message
            super()._tool_reads(message)

    def _on_heard(self, event: Heard) -> None:
        told = event.result if isinstance(event, CommandReply) else event
        self._note(f"< {_described(told)}\n  {shortened(self._message)}")
        super()._on_heard(event)

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Send(command=command):
                    self._note(f"> {_described(command)}", sent=True)
                case Reply(event=event, action=action, data=data):
                    value = f" {_described(data)}" if data is not None else ""
                    self._note(f"> {event.kind.value} seq {event.seq}: {action.name}{value}", sent=True)
                case Write(record=record):
                    self._note(f"= {json.dumps(record.to_json(self.plan))}")
                case Disconnect(reason=reason):
                    self._note(f"! disconnect: {reason}")
        super()._carry_out(outputs)

    def _note(self, line: str, *, sent: bool = False) -> None:
        if self._recording:
            if sent:
                self._unsent.append(len(self.lines))
            self.lines.append(line)


def _messages(data: bytes) -> Iterator[bytes]:
    """The messages in what was sent; a hello and its answer, which have no header, come alone."""
    while len(data) >= HEADER_SIZE:
        _, size, _ = HEADER.unpack_from(data)
        yield data[: HEADER_SIZE + size]
        data = data[HEADER_SIZE + size :]
    assert not data


def _described(value: object) -> str:
    match value:
        case Event():
            about = "" if value.data is None else f" {_described(value.data)}"
            return f"{value.kind.value} seq {value.seq}" + (
                f" vCPU {value.vcpu} at {value.rip:#x}{about}" if value.needs_reply else ""
            )
        case Registers():
            return " ".join(f"{name}={part:#x}" for name, part in value._asdict().items() if part)
        case bool() | None:
            return str(value)
        case Enum():
            return value.name or str(value)
        case int():
            return hex(value) if value > 9 or value < 0 else str(value)
        case bytes():
            return value.hex()
        case tuple() | list():
            return f"[{', '.join(map(_described, value))}]"
    if is_dataclass(value):
        parts = ", ".join(f"{field.name}={_described(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__name__}({parts})"
    return str(value)
