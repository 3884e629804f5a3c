"""The audit log: one JSON document a line, numbered, each line naming the digest of the one before.

A thread of its own writes, so that a slow disk never keeps a vCPU waiting. What can't be written is counted, and the
log itself tells the count as soon as it can be written again. A line counts once its write has returned; a crash may
leave the last line torn, which verification tells from tampering and the next start says in the log.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from policyc.runtime.audit_chain import MAX_LINE, MAX_RECORD, TORN_MARK, End, Verification, digest, find_end, verify
from policyc.runtime.records import JsonObject

__all__ = ["CLOSE_SECONDS", "MAX_QUEUED", "AuditError", "AuditHealth", "AuditLog", "Verification", "verify"]

MAX_QUEUED = 65536
"""Records that may wait for the disk; past that, further ones are dropped and counted."""

CLOSE_SECONDS = 5.0
"""How long closing waits for the disk to take what is queued."""


class AuditError(Exception):
    """The log can't be opened or written."""

    def __init__(self, message: str, help: str) -> None:
        super().__init__(message)
        self.message = message
        self.help = help


@dataclass(frozen=True, slots=True)
class AuditHealth:
    """Whether records reach the disk, said when it changes and when the log is closed with records missing.

    Attributes:
        sound: whether they do.
        fact: the same in a sentence, with the reason.
        lost: records that aren't in the log and that no line in it tells of, as far as is known by now.
    """

    sound: bool
    fact: str
    lost: int = 0


class AuditLog:
    """Appends records to a file from a thread of its own. Nobody else may while it is open.

    Args:
        on_health: told when records can't be written, once, and when they can be again, once; at the end, told of
            those that aren't in the log. Called from the log's thread or from that of `write` and `close`, one call
            at a time. It may neither wait nor call the log.

    Raises:
        AuditError: the file can't be opened, is another's, or isn't an audit log.
    """

    def __init__(self, path: Path, on_health: Callable[[AuditHealth], None]) -> None:
        self._path = path
        self._on_health = on_health
        self._queue: queue.SimpleQueue[JsonObject | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._dropped = 0
        self._sound = True
        self._abandoned = False
        self._torn_from: int | None = None
        self._file = _open(path)
        try:
            self._end = _read_end(self._file, path)
            self._mend(self._size() - self._end.torn)
        except OSError as error:
            os.close(self._file)
            raise AuditError(f"the audit log `{path}` can't be written: {error.strerror}", SOMEWHERE_ELSE) from error
        except AuditError:
            os.close(self._file)
            raise
        self._thread = threading.Thread(target=self._write_all, name="policyc-audit", daemon=True)
        self._thread.start()

    def write(self, record: JsonObject) -> None:
        """Queue a record; never waits. The time is that of this call."""
        if self._queue.qsize() >= MAX_QUEUED:
            self._lose(f"{MAX_QUEUED} records wait for the disk")
            return
        self._queue.put({"time": _now(), **record})

    def close(self) -> None:
        """Write what is queued and close the file; gives up on a disk that takes nothing for `CLOSE_SECONDS`."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)
        with self._lock:
            self._abandoned = self._thread.is_alive()
            # With a thread that stands still, one record is in its hands, and the end is queued behind the others.
            lost = self._dropped + (self._queue.qsize() if self._abandoned else 0)
            if self._abandoned:
                self._sound = False
                fact = f"the disk didn't take the audit log's last records within {CLOSE_SECONDS:g} seconds"
                self._on_health(AuditHealth(False, fact, lost))
            elif lost:
                self._on_health(AuditHealth(False, "the audit log ends without its last records", lost))

    def _write_all(self) -> None:
        try:
            while (record := self._queue.get()) is not None:
                if self._abandoned:
                    self._lose("the log was closed")
                elif self._tell_dropped():
                    self._write(record)
                else:
                    self._lose("it misses records and can't tell of them")
                self._recover()
            self._tell_dropped()
            self._recover()
        finally:
            # The lock on the file goes with it.
            os.close(self._file)

    def _write(self, record: JsonObject) -> None:
        try:
            self._append(record)
        except OSError as error:
            self._lose(error.strerror or str(error))

    def _lose(self, reason: str) -> None:
        with self._lock:
            self._dropped += 1
            if self._sound:
                self._sound = False
                self._on_health(AuditHealth(False, f"the audit log can't be written: {reason}", self._dropped))

    def _tell_dropped(self) -> bool:
        """Have the log tell what isn't in it; whether it does. The count stands until that line has been written."""
        dropped = self._dropped
        if not dropped:
            return True
        try:
            self._append({"time": _now(), "kind": "dropped", "severity": "critical", "records": dropped})
        except OSError:
            return False
        with self._lock:
            self._dropped -= dropped
        return True

    def _recover(self) -> None:
        if self._sound:
            return
        with self._lock:
            # Under a flood, the log is no sounder for the moment's room.
            if not self._dropped and not self._abandoned and self._queue.qsize() <= MAX_QUEUED // 2:
                self._sound = True
                self._on_health(AuditHealth(True, "the audit log can be written again; it says how much it misses"))

    def _append(self, record: JsonObject) -> None:
        """Write one record as the next of the chain, or leave the file as it was.

        Raises:
            OSError: it isn't written.
        """
        if self._torn_from is not None:
            self._mend(self._torn_from)
            self._torn_from = None
        self._put(b"", record)

    def _mend(self, start: int) -> None:
        """Close what is torn from `start` on, and have the log tell of it at once."""
        torn = self._size() - start
        if torn > 0:
            self._put(TORN_MARK, {"time": _now(), "kind": "restarted", "severity": "high", "torn": torn})

    def _put(self, before: bytes, record: JsonObject) -> None:
        line = _line(self._end, record)
        start = self._size()
        rest = memoryview(before + line + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            self._cut(start)
            raise
        self._end = End(self._end.seq + 1, digest(line))

    def _cut(self, start: int) -> None:
        try:
            os.ftruncate(self._file, start)
        except OSError:
            # A file that may only grow. What a mending that failed left belongs to what it was to mend.
            self._torn_from = start if self._torn_from is None else self._torn_from

    def _size(self) -> int:
        return os.fstat(self._file).st_size


SOMEWHERE_ELSE = "give `--audit` a file on a disk with room that this user may write"


def _open(path: Path) -> int:
    """The file, open for appending and locked."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise AuditError(f"the audit log `{path}` can't be opened: {error.strerror}", SOMEWHERE_ELSE) from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise AuditError(f"the audit log `{path}` isn't a regular file", SOMEWHERE_ELSE)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise AuditError(
            f"the audit log `{path}` is being written by somebody else",
            "give each `policyc run` an audit log of its own, or end the one that has this log open",
        ) from error
    except OSError as error:
        os.close(file)
        raise AuditError(f"the audit log `{path}` can't be locked: {error.strerror}", SOMEWHERE_ELSE) from error
    except AuditError:
        os.close(file)
        raise
    return file


def _read_end(file: int, path: Path) -> End:
    size = os.fstat(file).st_size
    if not size:
        return End()
    start = max(0, size - 2 * MAX_LINE)
    end = find_end(os.pread(file, size - start, start), whole=not start)
    if end is None:
        raise AuditError(
            f"`{path}` is no audit log, or its end was changed: nothing will be appended to it",
            "keep it for whoever looks into it, and give `--audit` another file",
        )
    return end


def _line(end: End, record: JsonObject) -> bytes:
    """The record's line as the next after `end`, without its end; a record that is too long is replaced."""
    place = {"seq": end.seq + 1, "previous": end.previous}
    line = _encode({**place, **record})
    if len(line) < MAX_RECORD:
        return line
    short = {"time": record["time"], "kind": "too_long", "severity": record.get("severity", "critical")}
    return _encode({**place, **short, "of": record.get("kind"), "bytes": len(line)})


def _encode(document: JsonObject) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
