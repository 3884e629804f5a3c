"""One guest's connection, from accept to close: the only loop that touches a socket and a clock.

Bytes are read up to 64 KiB at once, everything in them is answered, and all answers leave in one write; records are
formatted after that. The loop blocks in `recv` until the next deadline, so an idle guest costs nothing.
"""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from policyc.kvmi import CLOSED, NEED_DATA, Command, Refused, RemoteProtocolError, ReplyData, ToolConnection
from policyc.kvmi import Reply as CommandReply
from policyc.runtime.locate import Refusal
from policyc.runtime.records import Record, StateRecord
from policyc.runtime.state import GUARDING, Phase
from policyc.runtime.steps import (
    Answered,
    Connected,
    Disconnect,
    GreetVmm,
    Input,
    Inquire,
    Leave,
    Lost,
    Output,
    Reply,
    Send,
    TimePassed,
    Told,
    Write,
)
from policyc.runtime.transport import set_timeout

__all__ = ["MAX_IDLE", "Ending", "Served", "Session", "SessionEnd"]

READ_SIZE = 1 << 16

MAX_IDLE = 0.25
"""The longest the loop sleeps in `recv`: how soon it notices a request to leave."""

PARTIAL_TIMEOUT = 10.0
"""Seconds for the rest of a message whose beginning has come."""

SEND_TIMEOUT = 10.0
"""Seconds for a peer to take what we send."""


PEER_CLOSED = "the peer closed the connection"


class Ending(Enum):
    """How a connection came to its end."""

    LEFT = "we let the guest go"
    REFUSED = "the guest can't be guarded by this plan"
    LOST = "the guest was guarded and the connection is gone"
    NEVER_ARMED = "the connection ended before the guest was guarded"


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How it ended, and why in one sentence; `fault` where the peer broke the protocol."""

    ending: Ending
    reason: str
    fault: RemoteProtocolError | None = None


class Served(Protocol):
    """What a session needs to know of the state that its step function works on."""

    @property
    def deadline(self) -> float | None:
        """When to call the step function with `TimePassed` at the latest."""

    @property
    def phase(self) -> Phase:
        """How far it has come."""

    @property
    def outcome(self) -> Refusal | None:
        """Why the guest was refused, if it was."""


S = TypeVar("S", bound=Served)


class Session(Generic[S]):
    """Serves one connection: what comes goes to `step`, and what that wants done is done.

    Args:
        state: a fresh state, of the enforcer or of whoever else talks to a guest.
        step: takes the state, the time and one input, and gives outputs.
        connection: the socket, accepted; closed by `run`.
        on_record: called with every record after what goes with it has been sent.
        cookie: the secret that QEMU was given, if it was given one.
    """

    def __init__(
        self,
        state: S,
        step: Callable[[S, float, Input], list[Output]],
        connection: socket.socket,
        on_record: Callable[[Record], None],
        *,
        cookie: bytes | None = None,
    ) -> None:
        self.state = state
        self._step = step
        self._socket = connection
        # Whether the guest's processor holds such pages is for the binding to decide.
        self._wire = ToolConnection(execute_only=True)
        self._on_record = on_record
        self._cookie = cookie
        self._tickets: dict[int, int] = {}
        self._records: list[Record] = []
        self._requests: deque[Input] = deque()
        self._inquiries: dict[int, tuple[threading.Event, list[ReplyData | Refused | None]]] = {}
        self._next_inquiry = 0
        self._timeout: float | None = None
        self._partial_since: float | None = None
        self._end: str | None = None
        self._fault: RemoteProtocolError | None = None

    def leave(self, reason: str) -> None:
        """Ask the loop to let the guest go; safe from a signal handler and from other threads."""
        self._requests.append(Leave(reason))

    def inquire(self, command: Command, timeout: float = 10.0) -> ReplyData | Refused | None:
        """Have a harmless command sent, from another thread; None if nothing came of it in time."""
        done = threading.Event()
        box: list[ReplyData | Refused | None] = [None]
        self._next_inquiry += 1
        self._inquiries[self._next_inquiry] = (done, box)
        self._requests.append(Inquire(self._next_inquiry, command))
        done.wait(timeout)
        return box[0]

    def run(self) -> SessionEnd:
        """Serve the connection until its end."""
        self._feed(Connected())
        set_timeout(self._socket, SEND_TIMEOUT, option=socket.SO_SNDTIMEO)
        try:
            while self._end is None:
                self._turn()
        except Exception as error:
            # A defect of ours costs one connection, never the service and with it every guest to come.
            self._end = f"a defect of policyc ended the session: {type(error).__name__}: {error}"
            details = {"traceback": traceback.format_exc()}
            self._records.append(StateRecord(self.state.phase.value, self._end, "critical", details))
        finally:
            guarded = self.state.phase in GUARDING
            self._socket.close()
            self._feed(Lost(self._end or "the session failed"))
            self._write_records()
        return SessionEnd(self._ending(guarded), self._end, self._fault)

    def _ending(self, guarded: bool) -> Ending:
        outcome = self.state.outcome
        if outcome is not None:
            return Ending.NEVER_ARMED if outcome.transient else Ending.REFUSED
        if guarded:
            return Ending.LOST
        return Ending.LEFT if self.state.phase is Phase.UNHOOKING else Ending.NEVER_ARMED

    def _turn(self) -> None:
        """Read once, answer everything that was read, write once, then the records."""
        data = self._receive()
        now = time.monotonic()
        if data is not None:
            self._take(data, now)
        while self._requests and self._end is None:
            self._feed(self._requests.popleft())
        deadline = self.state.deadline
        if deadline is not None and now >= deadline and self._end is None:
            self._feed(TimePassed())
        self._check_partial(now)
        self._send()
        self._write_records()

    def _receive(self) -> bytes | None:
        deadline = self.state.deadline
        wait = MAX_IDLE if deadline is None else min(MAX_IDLE, max(0.0, deadline - time.monotonic()))
        if wait != self._timeout:
            set_timeout(self._socket, wait)
            self._timeout = wait
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            self._end = _broken(error)
            return None

    def _take(self, data: bytes, now: float) -> None:
        """Give the bytes to the protocol and everything that they say to the enforcer."""
        wire, state, step = self._wire, self.state, self._step
        if data:
            wire.receive_data(data)
        else:
            wire.receive_eof()
        try:
            while (event := wire.next_event()) is not NEED_DATA:
                self._partial_since = None
                if event is CLOSED:
                    self._end = PEER_CLOSED
                    return
                if isinstance(event, CommandReply):
                    ticket = self._tickets.pop(event.seq)
                    self._carry_out(step(state, now, Answered(ticket, event.result)))
                else:
                    self._carry_out(step(state, now, event))
        except RemoteProtocolError as error:
            self._end = f"the peer broke the protocol: {error}"
            self._fault = error

    def _feed(self, input: Input) -> None:
        self._carry_out(self._step(self.state, time.monotonic(), input))

    def _carry_out(self, outputs: list[Output]) -> None:
        wire = self._wire
        for output in outputs:
            if type(output) is Reply:
                wire.reply(output.event, output.action, output.data)
            elif type(output) is Write:
                self._records.append(output.record)
            elif type(output) is Send:
                self._tickets[wire.send(output.command)] = output.ticket
            elif type(output) is GreetVmm:
                wire.answer_hello(self._cookie)
            elif type(output) is Told:
                done, box = self._inquiries.pop(output.number)
                box[0] = output.result
                done.set()
            elif type(output) is Disconnect:
                self._end = output.reason

    def _send(self) -> None:
        parts = self._wire.data_to_send()
        if not parts:
            return
        try:
            self._socket.sendall(b"".join(parts))
        except BlockingIOError:
            self._end = f"the peer took nothing for {SEND_TIMEOUT:g} seconds"
        except OSError as error:
            self._end = _broken(error)

    def _check_partial(self, now: float) -> None:
        if not self._wire.unread:
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = now
        elif now - self._partial_since > PARTIAL_TIMEOUT:
            self._end = f"the peer began a message and was silent for {PARTIAL_TIMEOUT:g} seconds"

    def _write_records(self) -> None:
        for record in self._records:
            self._on_record(record)
        self._records.clear()


def _broken(error: OSError) -> str:
    closed = isinstance(error, (BrokenPipeError, ConnectionResetError))
    return PEER_CLOSED if closed else f"the connection broke: {error.strerror}"
