"""Prints records from a thread of its own, so that a terminal that stands still never keeps a guest waiting.

A guest's vCPU waits while its event is decided. Whoever watches may stop the terminal, close the pipe or fill the disk
behind it; none of that may reach the loop that decides.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

import click

__all__ = ["MAX_WAITING", "RecordPrinter"]

MAX_WAITING = 10_000
"""Records that may wait for the terminal; what comes on top is counted and not shown."""

FAREWELL_SECONDS = 1.0
"""How long the end waits for a terminal that takes nothing."""

Record = Mapping[str, object]


class RecordPrinter:
    """Called with a record, it prints one line, soon; as a context, it has printed them all when it is left.

    Args:
        line: how a record is said.
        write: prints one line; an OSError from it means that nobody reads any more.
    """

    def __init__(self, line: Callable[[Record], str], write: Callable[[str], None] | None = None) -> None:
        context = click.get_current_context(silent=True)
        color = context.color if context is not None else None
        self._line = line
        # click knows the context, and with it the colour, in this thread only.
        self._write = write or (lambda text: click.echo(text, color=color))
        self._waiting: queue.Queue[Record | None] = queue.Queue(MAX_WAITING)
        # Each count is written by one thread alone: dropped by the caller's, told by the printer's.
        self._dropped = 0
        self._told = 0
        self._thread = threading.Thread(target=self._print_all, name="record-printer", daemon=True)

    def __call__(self, record: Record) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def __enter__(self) -> RecordPrinter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._waiting.put(None, timeout=FAREWELL_SECONDS)
        except queue.Full:
            return
        self._thread.join(FAREWELL_SECONDS)

    def _print_all(self) -> None:
        try:
            while (record := self._waiting.get()) is not None:
                self._tell_dropped()
                self._write(self._line(record))
            self._tell_dropped()
        except OSError:
            # Nobody reads what is printed. The audit log goes on, and so does the guard.
            while self._waiting.get() is not None:
                pass

    def _tell_dropped(self) -> None:
        dropped = self._dropped
        if dropped != self._told:
            self._write(self._line({"kind": "dropped", "severity": "high", "records": dropped - self._told}))
            self._told = dropped
