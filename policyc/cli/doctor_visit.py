"""The visit that `policyc doctor` waits for: listens, examines whoever comes first, and lets it go.

A signal ends it in order: no socket stays behind, and nothing in the guest.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from policyc.cli.progress import progress
from policyc.guest.profile import Profile
from policyc.runtime.doctor import Checkup, conclude, step
from policyc.runtime.doctor_case import Case
from policyc.runtime.doctor_chart import Chart, Stage
from policyc.runtime.doctor_host import look_at_host
from policyc.runtime.doctor_place import Place, find_place, survey_site
from policyc.runtime.doctor_processes import process
from policyc.runtime.frame_trials import Watch
from policyc.runtime.records import Record
from policyc.runtime.session import Session
from policyc.runtime.transport import Listener, Peer, TransportError

__all__ = ["VisitOptions", "visit"]

PATIENCE = 0.25
"""Seconds of one wait: how often the progress moves."""

ASKED = "asked to end"


@dataclass(frozen=True, slots=True)
class VisitOptions:
    """What the operator wants.

    Attributes:
        socket: absolute path.
        wait: seconds for a guest to come.
        secret: what QEMU was given, if anything.
        profile: the kernel to look for, if any.
        probe: whether to make the write test.
    """

    socket: Path
    wait: float
    secret: bytes | None = None
    profile: Profile | None = None
    probe: bool = False


def visit(options: VisitOptions) -> Case:
    """Listen, wait, examine, and bring together what there is."""
    with _in_order() as stop:
        place = find_place(options.socket)
        try:
            listener = Listener(options.socket)
        except TransportError as error:
            return _unlistened(options, place, error)
        try:
            site = survey_site(options.socket)
            accepted = _wait(listener, options.wait, stop)
        finally:
            listener.close()
        peer, chart = None, Chart(stage=Stage.NOBODY)
        if accepted is not None:
            connection, credentials = accepted
            peer = process(credentials.pid)
            chart = _examine(connection, options, stop)
        return Case(
            place,
            site,
            look_at_host(),
            chart,
            peer=peer,
            waited=options.wait,
            has_secret=options.secret is not None,
            is_probed=options.probe,
        )


def _unlistened(options: VisitOptions, place: Place, error: TransportError) -> Case:
    return Case(
        place,
        survey_site(options.socket),
        look_at_host(),
        Chart(stage=Stage.NOBODY),
        listened=False,
        problem=error.message,
        remedy=error.help,
        has_secret=options.secret is not None,
        is_probed=options.probe,
    )


def _wait(listener: Listener, seconds: float, stop: _Stop) -> tuple[socket.socket, Peer] | None:
    """The first that connects; None if nobody does."""
    end = time.monotonic() + seconds
    with progress("waiting for a guest", max(1, round(seconds / PATIENCE))) as tick:
        while True:
            left = end - time.monotonic()
            accepted = listener.accept(max(0.0, min(PATIENCE, left)))
            if accepted is not None or left <= 0 or stop.number is not None:
                return accepted
            tick()


def _examine(connection: socket.socket, options: VisitOptions, stop: _Stop) -> Chart:
    checkup = Checkup(options.profile, Watch() if options.probe else None)
    with _telling() as tell:
        session = Session(checkup, step, connection, tell, cookie=options.secret)
        stop.leave = session.leave
        if stop.number is not None:
            session.leave(ASKED)
        end = session.run()
    return conclude(checkup, end.reason, end.fault)


@contextmanager
def _telling() -> Iterator[Callable[[Record], None]]:
    """Gives the function that shows on a terminal what the examination is at."""
    if not sys.stderr.isatty():
        yield lambda record: None
        return
    # Imported here: a twentieth of a second that only a terminal pays.
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda record: status.update(Text(str(getattr(record, "fact", ""))))


class _Stop:
    """Handles SIGINT and SIGTERM: notes which came, and asks for an end."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.leave: Callable[[str], None] = lambda reason: None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.leave(ASKED)


@contextmanager
def _in_order() -> Iterator[_Stop]:
    """Hold signals back until the work has ended in order; then they do what they always do."""
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stop.number is not None:
            signal.raise_signal(stop.number)
