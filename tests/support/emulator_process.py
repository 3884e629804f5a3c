"""The guest as it is run beside a tool: over a real socket, with a real console, in a thread of the test's process."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from policyc.emulator.options import GuestOptions
from policyc.emulator.process import run_guest
from policyc.kvmi import (
    Action,
    Event,
    EventReplyData,
    Hello,
    Negotiated,
    Refused,
    Reply,
    ReplyData,
    Status,
    ToolConnection,
    ToolEvent,
)
from policyc.kvmi.messages import Command

__all__ = ["GuestThread", "SocketTool", "listening"]

PATIENCE = 20.0
"""Seconds after which a test fails instead of hanging; nothing is ever waited for that long."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A tool's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.settimeout(PATIENCE)
        server.bind(str(path))
        server.listen()
        yield server


class SocketTool:
    """A tool that has accepted a guest."""

    def __init__(self, server: socket.socket, secret: bytes | None = None) -> None:
        self.socket, _ = server.accept()
        self.socket.settimeout(PATIENCE)
        self.connection = ToolConnection()
        self._heard: list[ToolEvent] = []
        self._secret = secret

    def greet(self) -> Hello:
        """Read the hello and answer it; the version is negotiated before anything else is heard."""
        hello: Hello = self.next(Hello)
        self.connection.answer_hello(self._secret)
        self.next(Negotiated)
        return hello

    def next(self, kind: type[Any]) -> Any:
        """What comes next, which must be of this kind."""
        while not self._heard:
            self._say()
            data = self.socket.recv(65536)
            if data:
                self.connection.receive_data(data)
            else:
                self.connection.receive_eof()
            while not isinstance(event := self.connection.next_event(), Status):
                self._heard.append(event)
            if not data and not self._heard:
                raise ConnectionError("the guest has closed")
        self._say()
        event = self._heard.pop(0)
        assert isinstance(event, kind), event
        return event

    def ask(self, command: Command) -> ReplyData | Refused:
        """Send a command and wait for its reply."""
        self.connection.send(command)
        reply: Reply = self.next(Reply)
        return reply.result

    def reply(self, event: Event, action: Action = Action.CONTINUE, data: EventReplyData | None = None) -> None:
        """Answer an event."""
        self.connection.reply(event, action, data)
        self._say()

    def close(self) -> None:
        """Leave."""
        self.socket.close()

    def _say(self) -> None:
        if said := b"".join(self.connection.data_to_send()):
            self.socket.sendall(said)


class GuestThread:
    """`run_guest` with JSON output, its console and its answers being pipes."""

    def __init__(self, options: GuestOptions) -> None:
        console, self._typing = os.pipe()
        answers, out = os.pipe()
        self._answers = os.fdopen(answers, "r")
        self._reader = os.fdopen(console, "r")
        self._writer = os.fdopen(out, "w")
        self.status: int | None = None
        # A test that fails leaves it running, which must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._run, args=(replace(options, json=True),), daemon=True)
        self._thread.start()

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._typing, line.encode() + b"\n")

    def hear(self, kind: str | None = None) -> dict[str, Any]:
        """The next answer; with a kind, the next of that kind."""
        while True:
            line = self._answers.readline()
            assert line, "the guest has ended"
            answer: dict[str, Any] = json.loads(line)
            if kind is None or answer["kind"] == kind:
                return answer

    def end(self) -> int:
        """Close the console, wait for the end, give the exit status."""
        self.close_console()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._answers.close()
        self._reader.close()
        assert self.status is not None
        return self.status

    def ended(self) -> None:
        """Wait for the end, with the console still open."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close_console(self) -> None:
        """Let the console end."""
        if self._typing >= 0:
            os.close(self._typing)
            self._typing = -1

    def _run(self, options: GuestOptions) -> None:
        with self._writer:
            self.status = run_guest(options, self._reader, self._writer)
