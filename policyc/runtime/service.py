"""`policyc run`: listen, guard whoever connects, log, and end with an exit code that says how it went."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from policyc.plan.model import Plan
from policyc.runtime.audit import AuditHealth, AuditLog
from policyc.runtime.enforcer import step
from policyc.runtime.locate import ArmingOptions
from policyc.runtime.needs import unsupported_rules
from policyc.runtime.records import JsonObject, Record, StateRecord
from policyc.runtime.session import MAX_IDLE, Ending, Session, SessionEnd
from policyc.runtime.state import State
from policyc.runtime.transport import Listener, Peer

__all__ = ["PlanUnsupportedError", "Service", "ServiceOptions", "leave_on_signal"]


ACCEPT_PAUSE = 1.0
"""Seconds to wait where no connection can be taken: no more file descriptors, no memory."""


class PlanUnsupportedError(Exception):
    """The plan asks for something that this version can't carry out; nothing was started."""

    def __init__(self, rules: list[str]) -> None:
        super().__init__("this version can't carry out " + ", ".join(rules))
        self.message = str(self)
        self.help = "leave these rules out; the others can be enforced without them"


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How to run.

    Attributes:
        socket: where QEMU connects.
        audit: the audit log's file, or None for no log.
        cookie: the secret that QEMU was given, if any.
        monitor: let everything through and record what would have been done.
        once: end when the first connection does.
    """

    socket: Path
    audit: Path | None = None
    cookie: bytes | None = None
    monitor: bool = False
    once: bool = False
    arming: ArmingOptions = field(default_factory=ArmingOptions)


class Service:
    """Guards one guest at a time with one plan.

    Args:
        observer: called with every record as plain data, for people who watch, and told of what keeps records out of
            the audit log. From one thread at a time, but not always the same. The guest waits for it, so it never may.

    Raises:
        PlanUnsupportedError: the plan can't be carried out.
        AuditError: the log can't be opened.
        TransportError: the socket can't be made.
    """

    def __init__(self, plan: Plan, options: ServiceOptions, observer: Callable[[JsonObject], None]) -> None:
        unsupported = unsupported_rules(plan)
        if unsupported:
            raise PlanUnsupportedError(unsupported)
        self._plan = plan
        self._options = options
        self._observer = observer
        self._observing = threading.Lock()
        self.session: Session[State] | None = None
        self._audit = AuditLog(options.audit, self._note_health) if options.audit is not None else None
        try:
            self._listener = Listener(options.socket)
        except BaseException:
            if self._audit is not None:
                self._audit.close()
            raise
        self._leaving = threading.Event()

    def leave(self) -> None:
        """Let the guest go and end; safe from signal handlers and other threads."""
        self._leaving.set()
        session = self.session
        if session is not None:
            session.leave("asked to leave")

    def run(self) -> SessionEnd | None:
        """Guard guests until told to leave, until one is refused, or, with `once`, until the first has gone.

        Returns:
            How the last connection ended; None if there was none.
        """
        end: SessionEnd | None = None
        self._note(StateRecord("LISTENING", f"waiting for a guest on {self._options.socket}"))
        try:
            while not self._leaving.is_set():
                accepted = self._accept()
                if accepted is None:
                    continue
                connection, peer = accepted
                details = {"pid": peer.pid, "uid": peer.uid, "gid": peer.gid}
                self._note(StateRecord("HANDSHAKE", f"process {peer.pid} connected", details=details))
                end = self._serve(connection)
                if self._options.once or end.ending is Ending.REFUSED:
                    break
        finally:
            self._listener.close()
            self._note(StateRecord("CLOSED", "no longer listening"))
            if self._audit is not None:
                self._audit.close()
        return end

    def _accept(self) -> tuple[socket.socket, Peer] | None:
        """The next connection; None if none came, or none could be taken at the moment."""
        try:
            return self._listener.accept(MAX_IDLE)
        except OSError as error:
            self._note(StateRecord("LISTENING", f"a connection couldn't be taken: {error.strerror}", "high"))
            self._leaving.wait(ACCEPT_PAUSE)
            return None

    def _serve(self, connection: socket.socket) -> SessionEnd:
        state = State(self._plan, arming=self._options.arming, monitor=self._options.monitor)
        self.session = Session(state, step, connection, self._note, cookie=self._options.cookie)
        if self._leaving.is_set():
            self.session.leave("asked to leave")
        end = self.session.run()
        self.session = None
        counters = state.counters
        fact = f"connection ended: {end.reason}"
        self._note(
            StateRecord(
                "LISTENING",
                fact,
                details={
                    "events": counters.events,
                    "collateral": counters.collateral,
                    "exempted": {self._plan.rules[index].id: n for index, n in sorted(counters.exempted.items())},
                    "acted": dict(sorted(counters.acted.items())),
                },
            )
        )
        return end

    def _note(self, record: Record) -> None:
        described = record.to_json(self._plan)
        if self._audit is not None:
            self._audit.write(described)
        self._observe(described)

    def _note_health(self, health: AuditHealth) -> None:
        """Say what the audit log can't say itself; called from its thread too."""
        session = self.session
        now = "LISTENING" if session is None else session.state.phase.value
        details = {"records_lost": health.lost} if health.lost else {}
        record = (
            StateRecord(now, health.fact, details=details)
            if health.sound
            else StateRecord("DEGRADED", health.fact, "critical", details)
        )
        self._observe(record.to_json(self._plan))

    def _observe(self, described: JsonObject) -> None:
        with self._observing:
            self._observer(described)


@contextmanager
def leave_on_signal(service: Service) -> Iterator[None]:
    """Have SIGINT and SIGTERM let the guest go in order; a second one ends the process as usual."""

    def handle(number: int, frame: FrameType | None) -> None:
        service.leave()
        for each in before:
            signal.signal(each, before[each])

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, handle)
    try:
        yield
    finally:
        for each in before:
            signal.signal(each, before[each])
