"""The audit log: one JSON document a line, numbered, each line naming the digest of the one before.

A thread of its own writes, so that a slow disk never keeps a vCPU waiting. What a flood makes it drop is counted in the
log itself. A line counts once its write has returned; a crash may leave the last line torn, which verification tells
from tampering.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from policyc.runtime.records import JsonObject

__all__ = ["MAX_QUEUED", "AuditError", "AuditLog", "Verification", "verify"]

MAX_QUEUED = 65536
"""Records that may wait for the disk; past that, further ones are dropped and counted."""

MAX_LINE = 1 << 20
"""No record is longer; a longer line is none of ours."""

FIRST = "0" * 64
"""What stands for the digest of the line before the first."""


class AuditError(Exception):
    """The log can't be opened or written."""


class AuditLog:
    """Appends records to a file from a thread of its own.

    Raises:
        AuditError: the file can't be opened, or isn't an audit log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.Queue[JsonObject | None] = queue.Queue(MAX_QUEUED)
        self._dropped = 0
        self._failed: OSError | None = None
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise AuditError(f"the audit log `{path}` can't be opened: {error.strerror}") from error
        self._seq, self._previous, torn = _tail(self._file, path)
        if torn:
            os.write(self._file, b"\n")
        self._thread = threading.Thread(target=self._write_all, name="policyc-audit", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> OSError | None:
        """What kept the last record from the disk, if anything did."""
        return self._failed

    def write(self, record: JsonObject) -> None:
        """Queue a record; never waits. The time is that of this call."""
        record = {"time": datetime.now(UTC).isoformat(timespec="microseconds"), **record}
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._queue.put(None)
        self._thread.join()
        os.close(self._file)

    def _write_all(self) -> None:
        while (record := self._queue.get()) is not None:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                self._append({"time": record["time"], "kind": "dropped", "severity": "critical", "records": dropped})
            self._append(record)

    def _append(self, record: JsonObject) -> None:
        line = json.dumps({"seq": self._seq + 1, "previous": self._previous, **record}, separators=(",", ":")).encode()
        try:
            rest = memoryview(line + b"\n")
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._failed = error
            self._dropped += 1
            return
        self._seq += 1
        self._previous = _digest(line)


@dataclass(frozen=True, slots=True)
class Verification:
    """What a log turned out to be: how many records are sound, where it breaks, whether the end is torn."""

    records: int
    broken_line: int | None = None
    reason: str | None = None
    torn: bool = False


def verify(path: Path) -> Verification:
    """Read a log and follow its chain.

    Raises:
        OSError: the file can't be read.
    """
    seq, previous, records = 0, FIRST, 0
    for number, line, complete in _lines(path):
        if not complete:
            return Verification(records, torn=True)
        if not line:
            continue
        found = _parse(line)
        if found is None:
            # A line that a crash tore and a restart closed: the chain goes on with the next.
            continue
        if found.get("previous") != previous or found.get("seq") != seq + 1:
            return Verification(records, number, "a record was changed, removed or put in before this line")
        seq, previous, records = seq + 1, _digest(line), records + 1
    return Verification(records)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            yield number, line.removesuffix(b"\n"), line.endswith(b"\n")


def _parse(line: bytes) -> JsonObject | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _tail(file: int, path: Path) -> tuple[int, str, bool]:
    """Number and digest of the last whole record, and whether a torn one follows."""
    size = os.fstat(file).st_size
    if not size:
        return 0, FIRST, False
    tail = os.pread(file, min(size, 2 * MAX_LINE), max(0, size - 2 * MAX_LINE))
    torn = not tail.endswith(b"\n")
    lines = tail.split(b"\n")[: -1 if not torn else None]
    for line in reversed(lines[:-1] if torn else lines):
        found = _parse(line) if line else None
        if found is not None and isinstance(seq := found.get("seq"), int):
            return seq, _digest(line), torn
    if torn and len(lines) == 1 and not _parse(lines[0]):
        return 0, FIRST, True
    raise AuditError(f"`{path}` is no audit log: nothing will be appended to it")


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
