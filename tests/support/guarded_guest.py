"""A guest's process and the service that guards it, for as many connections as a test needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from policyc.cli.demo_guest import GuestProcess
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.image import small_system_map
from policyc.guest.readers import build_profile
from policyc.kvmi import GetInfo
from policyc.plan.model import Plan
from policyc.runtime.locate import ArmingOptions
from policyc.runtime.service import Service, ServiceOptions
from tests.support.audit_schema import check_record

__all__ = ["GuardService", "compiled", "guarded", "unguarded"]

PATIENCE = 30.0
"""Seconds after which a test fails instead of hanging."""

Record = Mapping[str, Any]


def compiled(*sources: Source | str) -> Plan:
    """A plan for the small guest."""
    given = [
        source if isinstance(source, Source) else Source(f"{n}.policy", source) for n, source in enumerate(sources)
    ]
    compilation = compile_policies(given, build_profile(small_system_map().encode()))
    assert compilation.plan is not None, compilation.diagnostics
    return compilation.plan


class GuardService:
    """`policyc run` in a thread, and everything that it records."""

    def __init__(self, plan: Plan, socket: Path, audit: Path) -> None:
        self.records: list[Record] = []
        self._new: SimpleQueue[Record] = SimpleQueue()
        options = ServiceOptions(
            socket, audit, arming=ArmingOptions(poll=0.02, stop_limit=5.0, verify=0.0, self_test=False)
        )
        self._service = Service(plan, options, self._new.put)
        self._audit = audit
        self._thread = threading.Thread(target=self._service.run)
        self._thread.start()

    def wait(self, wanted: Callable[[Record], bool]) -> Record:
        """The next record that is wanted; those before it are among `records`."""
        while True:
            try:
                record = self._new.get(timeout=PATIENCE)
            except Empty:
                raise AssertionError(f"no such record came; the last were {self.records[-5:]}") from None
            self.records.append(record)
            if wanted(record):
                return record

    def state(self, *names: str) -> Record:
        """The next record of the connection's life with one of these states."""
        return self.wait(lambda record: record.get("state") in names)

    def verdicts(self) -> list[Record]:
        """The verdict records that have come and weren't taken yet."""
        session = self._service.session
        if session is not None:
            # An answer to this can only come in a turn of the loop after the one that wrote the last record.
            session.inquire(GetInfo())
        taken = []
        while not self._new.empty():
            taken.append(self._new.get())
        self.records += taken
        return [record for record in taken if record["kind"] == "verdict"]

    def stop(self) -> None:
        """Let the guest go, and hold what was written against the log's schema."""
        self._service.leave()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        for line in self._audit.read_text().splitlines():
            check_record(json.loads(line))


@contextmanager
def guarded(
    plan: Plan, dialect: str, folder: Path, *arguments: str, socket: Path | None = None
) -> Iterator[tuple[GuardService, GuestProcess]]:
    """A guest and a service, not necessarily armed yet.

    Args:
        arguments: the guest's command line.
        socket: where the guest connects, if not to the service itself.
    """
    service = GuardService(plan, folder / "s", folder / "audit.ndjson")
    try:
        guest = GuestProcess(socket or folder / "s", dialect, *arguments)
        try:
            yield service, guest
        finally:
            guest.stop()
    finally:
        service.stop()


@contextmanager
def unguarded(socket: Path, dialect: str, *arguments: str) -> Iterator[GuestProcess]:
    """A guest whose tool isn't there yet."""
    guest = GuestProcess(socket, dialect, *arguments)
    try:
        yield guest
    finally:
        guest.stop()
