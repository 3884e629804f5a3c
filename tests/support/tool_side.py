"""The tool's end of a conversation that is held without sockets: a connection object, and what the outputs do to it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from policyc.kvmi import (
    NEED_DATA,
    Command,
    Event,
    EventReplyRefused,
    Hello,
    Negotiated,
    Status,
    ToolConnection,
)
from policyc.kvmi import Reply as CommandReply
from policyc.runtime.records import Record
from policyc.runtime.steps import Answered, Disconnect, GreetVmm, Input, Output, Reply, Send, Told, Write

__all__ = ["Heard", "ToolSide"]

Heard = Hello | Negotiated | Event | EventReplyRefused | CommandReply
"""What comes over the wire."""


class ToolSide(ABC):
    """Carries out what an enforcer, or an examination, wants done.

    Attributes:
        tool: the connection.
        records: what was written down.
        told: what came of inquiries.
        disconnected: why it closed, if it did.
    """

    def _begin(self, tool: ToolConnection) -> None:
        self.tool = tool
        self.records: list[Record] = []
        self.told: list[Told] = []
        self.disconnected: str | None = None
        self._tickets: dict[int, int] = {}

    @abstractmethod
    def _step(self, input: Input) -> list[Output]:
        """What is to be done about an input, at this moment."""

    def _take(self, input: Input) -> None:
        self._carry_out(self._step(input))

    def _tool_reads(self, data: bytes) -> None:
        self.tool.receive_data(data)
        while (event := self.tool.next_event()) is not NEED_DATA:
            assert not isinstance(event, Status)
            self._on_heard(event)

    def _on_heard(self, event: Heard) -> None:
        if isinstance(event, CommandReply):
            self._take(Answered(self._tickets.pop(event.seq), event.result))
        else:
            self._take(event)

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Reply(event, action, data):
                    self.tool.reply(event, action, data)
                case Send(ticket, command):
                    self._send(ticket, command)
                case GreetVmm():
                    self.tool.answer_hello()
                case Write(record):
                    self.records.append(record)
                case Told():
                    self.told.append(output)
                case Disconnect(reason):
                    self._close(reason)

    def _send(self, ticket: int, command: Command) -> None:
        self._tickets[self.tool.send(command)] = ticket

    def _close(self, reason: str) -> None:
        self.disconnected = reason
