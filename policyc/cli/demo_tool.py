"""The tool of `policyc demo`: the real service in a thread, with eyes on its records and on guest memory."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Empty, SimpleQueue

from policyc.addresses import Gpa, Gva
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.guest.profile import Profile
from policyc.kvmi import GetInfo, ReadPhysical, ReadPhysicalReply, TranslateGva, TranslateGvaReply
from policyc.plan.model import Plan
from policyc.runtime.locate import ArmingOptions
from policyc.runtime.records import JsonObject
from policyc.runtime.service import Service, ServiceOptions
from policyc.runtime.session import Session, SessionEnd
from policyc.runtime.state import State

__all__ = ["WatchedTool"]

QUIET = ArmingOptions(self_test=False)

RECORD_TIMEOUT = 30.0
"""Seconds to wait for a record that has to come."""


class WatchedTool:
    """`policyc run`, in this process, watched.

    Args:
        arming: by default nothing but what is shown makes the guest send events.
    """

    def __init__(self, plan: Plan, profile: Profile, socket: Path, audit: Path, arming: ArmingOptions = QUIET) -> None:
        self._profile = profile
        self._records: SimpleQueue[JsonObject] = SimpleQueue()
        self._service = Service(plan, ServiceOptions(socket, audit, once=True, arming=arming), self._records.put)
        self._end: SessionEnd | None = None
        self._thread = threading.Thread(target=self._run, name="demo-tool")
        self._slide = 0

    def start(self) -> None:
        """Listen."""
        self._thread.start()

    def wait_until_armed(self) -> JsonObject:
        """The record that says the guest is guarded.

        Raises:
            CommandError: it was refused or lost, or took too long.
        """
        while True:
            record = self._next(RECORD_TIMEOUT)
            if record is None:
                raise CommandError(ExitCode.TARGET_REFUSED, "the guest wasn't armed in time")
            if record.get("state") == "ARMED":
                self._slide = int(str(record["slide"]), 16)
                return record
            if record.get("state") in ("REFUSED", "LOST"):
                raise CommandError(ExitCode.TARGET_REFUSED, str(record.get("fact")))

    def wait_for(self, fact: str) -> JsonObject:
        """The next record about the state that begins so.

        Raises:
            CommandError: none came in time.
        """
        while (record := self._next(RECORD_TIMEOUT)) is not None:
            if str(record.get("fact", "")).startswith(fact):
                return record
        raise CommandError(ExitCode.TARGET_REFUSED, f"nothing was said of `{fact}` in time")

    def verdict(self) -> JsonObject | None:
        """The verdict record that has come since the last call, if any; the first, where several have."""
        # An answer to this can only come in a turn of the loop after the one that wrote the record.
        self._session.inquire(GetInfo())
        found: JsonObject | None = None
        while (record := self._next(None)) is not None:
            if record.get("kind") == "verdict" and found is None:
                found = record
        return found

    @property
    def events(self) -> int:
        """Events answered so far."""
        return self._session.state.counters.events

    @property
    def exempted(self) -> int:
        """Accesses that an exception has let through so far."""
        return sum(self._session.state.counters.exempted.values())

    def read(self, symbol: str, offset: int, size: int) -> bytes:
        """Bytes of the guest's memory at a symbol, read over KVMI.

        Raises:
            CommandError: the guest has no such memory, or didn't answer.
        """
        found = self._profile.kernel.symbol(symbol)[0]
        gva = Gva(found.gva + self._slide + offset)
        where = self._session.inquire(TranslateGva(0, gva))
        if isinstance(where, TranslateGvaReply):
            read = self._session.inquire(ReadPhysical(Gpa(where.gpa), size))
            if isinstance(read, ReadPhysicalReply):
                return read.data
        raise CommandError(ExitCode.TARGET_REFUSED, f"`{symbol}` can't be read over KVMI")

    def stop(self) -> SessionEnd | None:
        """Let the guest go; how the connection ended."""
        self._service.leave()
        if self._thread.is_alive():
            self._thread.join()
        return self._end

    @property
    def _session(self) -> Session[State]:
        session = self._service.session
        if session is None:
            raise CommandError(ExitCode.PROTECTION_LOST, "the guest is gone")
        return session

    def _next(self, timeout: float | None) -> JsonObject | None:
        try:
            return self._records.get(block=timeout is not None, timeout=timeout)
        except Empty:
            return None

    def _run(self) -> None:
        self._end = self._service.run()
