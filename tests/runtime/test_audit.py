"""The audit log: appended to, chained, and honest about what was lost."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.kvmi import V7, EventKind
from policyc.plan.verdicts import Verdict
from policyc.runtime import audit
from policyc.runtime.audit import AuditError, AuditHealth, AuditLog, Verification, verify
from policyc.runtime.audit_chain import MAX_LINE, TORN_MARK, End, find_end
from policyc.runtime.records import JsonObject, VerdictRecord
from policyc.runtime.service import Service, ServiceOptions
from tests.support.audit_schema import check_record, check_records
from tests.support.scripted_kernel import Conversation, ScriptedKernel, compile_plan

WRITE = os.write
TRUNCATE = os.ftruncate


def written(path: Path, *kinds: str) -> Path:
    log = AuditLog(path, unexpected)
    for kind in kinds:
        log.write({"kind": kind})
    log.close()
    return path


def unexpected(health: AuditHealth) -> None:
    raise AssertionError(health)


def records(path: Path) -> list[JsonObject]:
    """The whole records of a log."""
    return [json.loads(line) for line in path.read_bytes().splitlines() if not line.endswith(TORN_MARK.strip())]


def kinds(path: Path) -> list[object]:
    return [record["kind"] for record in records(path)]


class Health:
    """What a log said of itself, and a way to wait for it."""

    def __init__(self) -> None:
        self.said: list[AuditHealth] = []
        self._sound, self._unsound = threading.Event(), threading.Event()

    def __call__(self, health: AuditHealth) -> None:
        self.said.append(health)
        (self._sound if health.sound else self._unsound).set()

    def wait(self, *, sound: bool) -> None:
        assert (self._sound if sound else self._unsound).wait(30)


class Disk:
    """The disk below a log: it has room for so many bytes, refuses so many writes, stands still, cuts no files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cuts: bool = True) -> None:
        self.room = 1 << 40
        self.refusals = 0
        self.moving = threading.Event()
        self.moving.set()
        self.reached = threading.Event()
        self.cuts = cuts
        monkeypatch.setattr(os, "write", self._write)
        monkeypatch.setattr(os, "ftruncate", self._truncate)

    def _write(self, file: int, data: bytes) -> int:
        if threading.current_thread().name != "policyc-audit":
            return WRITE(file, data)
        self.reached.set()
        assert self.moving.wait(30)
        if not self.room or self.refusals:
            self.refusals = max(0, self.refusals - 1)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = WRITE(file, data[: self.room])
        self.room -= done
        return done

    def _truncate(self, file: int, size: int) -> None:
        if not self.cuts:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        TRUNCATE(file, size)


# --- the chain ---


def test_log__goes_on_where_it_ended(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one", "two")
    written(path, "three")
    assert verify(path) == Verification(3)
    assert kinds(path) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (b'"kind":"two"', b'"kind":"TWO"', 3),
        (b'"seq":2', b'"seq":9', 2),
        (b'"kind":"one"', b'"kind":"won"', 2),
        (b'"kind":"one"}', b'"kind":"one"', 1),
    ],
)
def test_verify__finds_a_changed_record(tmp_path: Path, before: bytes, after: bytes, line: int) -> None:
    path = written(tmp_path / "a", "one", "two", "three")
    path.write_bytes(path.read_bytes().replace(before, after))
    found = verify(path)
    assert (found.records, found.broken_line, found.torn) == (line - 1, line, False)


def test_verify__finds_a_removed_record(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one", "two", "three")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert verify(path).broken_line == 2


@pytest.mark.parametrize("text", [b"\n", b"not json\n", b"[]\n", b"what a crash left (torn)\n"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_verify__finds_text_put_in(tmp_path: Path, text: bytes, after: int) -> None:
    path = written(tmp_path / "a", "one", "two", "three")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:after], text, *lines[after:]]))
    found = verify(path)
    assert (found.records, found.broken_line, found.torn) == (after, after + 1, False)


def test_verify__finds_a_line_longer_than_any_record(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one", "two")
    with path.open("ab") as file:
        file.write(b"x" * (2 * MAX_LINE) + b"\n")
    assert verify(path) == Verification(2, 3, "a line is longer than any record")


# --- a torn end ---


def test_verify__tells_a_torn_end_from_tampering(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one", "two", "three")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert verify(path) == Verification(2, torn=True)
    written(path, "four")
    assert verify(path) == Verification(4)
    torn = len(whole.splitlines()[2]) + 1 - 10
    restarted = records(path)[2]
    assert {key: restarted[key] for key in ("kind", "severity", "torn")} == {
        "kind": "restarted",
        "severity": "high",
        "torn": torn,
    }
    check_record(restarted)


@given(st.data())
def test_log__survives_every_torn_end_again_and_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Wherever a crash tears it, whether in a record or in what closes an earlier tear, the log goes on."""
    path = written(tmp_path_factory.mktemp("torn") / "a", *data.draw(st.sampled_from([["one"], ["one", "two"]])))
    for _ in range(3):
        whole = path.read_bytes()
        last = whole[:-1].rfind(b"\n") + 1
        start = max(0, last - len(TORN_MARK)) if whole[:last].endswith(TORN_MARK) else last
        path.write_bytes(whole[: data.draw(st.integers(start + 1, len(whole) - 1))])
        sound = verify(path)
        assert (sound.broken_line, sound.torn) == (None, True)
        written(path)
        assert verify(path) == Verification(sound.records + 1)
        assert kinds(path)[-1] == "restarted"
        written(path)
        assert verify(path) == Verification(sound.records + 1)


@pytest.mark.parametrize("change", [lambda torn: torn[1:], lambda torn: torn + b"x", lambda torn: b""])
def test_verify__finds_a_changed_length_of_what_was_torn(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path / "a", "one", "two")
    path.write_bytes(path.read_bytes()[:-10])
    written(path, "three")
    first, torn, *others = path.read_bytes().splitlines(keepends=True)
    fragment = change(torn.removesuffix(TORN_MARK))
    path.write_bytes(b"".join([first, fragment + TORN_MARK if fragment else b"", *others]))
    assert verify(path) == Verification(1, 2, "what was torn isn't what the restart after it found")


# --- opening ---


@pytest.mark.parametrize("text", ["remember the milk\n", "remember the milk", '{"seq":7}\n', "[]\n", "\n"])
def test_log__refuses_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes").write_text(text)
    for _ in range(2):
        with pytest.raises(AuditError, match="is no audit log"):
            AuditLog(tmp_path / "notes", unexpected)
    assert (tmp_path / "notes").read_text() == text


def test_log__refuses_a_log_with_text_behind_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one")
    path.write_bytes(path.read_bytes() + b"text\n")
    with pytest.raises(AuditError, match="its end was changed"):
        AuditLog(path, unexpected)


def test_find_end__needs_a_record_in_what_it_is_given() -> None:
    assert find_end(b"x" * 10 + TORN_MARK, whole=False) is None
    assert find_end(b'{"se', whole=True) == End(torn=4)
    assert find_end(b'{"se', whole=False) is None


def test_log__cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="can't be opened") as raised:
        AuditLog(tmp_path / "missing" / "a", unexpected)
    assert raised.value.help


def test_log__refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AuditError, match="isn't a regular file"):
        AuditLog(tmp_path / "pipe", unexpected)


def test_log__has_one_writer(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a", unexpected)
    with pytest.raises(AuditError, match="is being written by somebody else") as raised:
        AuditLog(tmp_path / "a", unexpected)
    assert "give each `policyc run` an audit log of its own" in raised.value.help
    log.write({"kind": "one"})
    log.close()
    written(tmp_path / "a", "two")
    assert verify(tmp_path / "a") == Verification(2)


# --- what can't be written ---


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("room", [0, 1, 6, 7, 50, 130, 300])
def test_log__goes_on_after_a_write_that_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: bool, room: int
) -> None:
    """Also where the file can't be cut, as one that may only grow, and where closing the torn line breaks off too."""
    path = written(tmp_path / "a", "one")
    disk, health = Disk(monkeypatch, cuts=cuts), Health()
    log = AuditLog(path, health)
    disk.room = min(room, 50)
    log.write({"kind": "two"})
    health.wait(sound=False)
    assert verify(path) == Verification(1, torn=room > 0 and not cuts)
    disk.room = room
    log.write({"kind": "three"})
    log.close()
    disk.room = 1 << 40
    written(path, "four")
    found = verify(path)
    assert (found.broken_line, found.torn) == (None, False)
    assert ("restarted" in kinds(path)) == (room > 0 and not cuts)
    assert [health.sound for health in health.said] == [False, False]
    told = sum(int(str(each["records"])) for each in records(path) if each["kind"] == "dropped")
    assert health.said[-1] == AuditHealth(False, "the audit log ends without its last records", 2 - told)


def test_log__tells_how_many_writes_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, health = Disk(monkeypatch), Health()
    log = AuditLog(tmp_path / "a", health)
    disk.refusals = 1000
    for _ in range(1000):
        log.write({"kind": "lost"})
    log.write({"kind": "kept"})
    log.close()
    assert [(each["kind"], each.get("records")) for each in records(tmp_path / "a")] == [
        ("dropped", 1000),
        ("kept", None),
    ]
    assert health.said == [
        AuditHealth(False, "the audit log can't be written: No space left on device", 1),
        AuditHealth(True, "the audit log can be written again; it says how much it misses"),
    ]


def test_log__tells_failures_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, health = Disk(monkeypatch), Health()
    log = AuditLog(tmp_path / "a", health)
    disk.room = 0
    log.write({"kind": "lost"})
    health.wait(sound=False)
    disk.room = 1 << 30
    log.close()
    assert [(record["kind"], record["records"]) for record in records(tmp_path / "a")] == [("dropped", 1)]
    assert [each.sound for each in health.said] == [False, True]


def test_log__counts_what_a_flood_makes_it_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_QUEUED", 4)
    disk, health = Disk(monkeypatch), Health()
    log = AuditLog(tmp_path / "a", health)
    disk.moving.clear()
    log.write({"kind": "flood"})
    assert disk.reached.wait(30)
    for _ in range(20):
        log.write({"kind": "flood"})
    disk.moving.set()
    log.close()
    assert kinds(tmp_path / "a") == ["flood", "dropped", "flood", "flood", "flood", "flood"]
    assert records(tmp_path / "a")[1]["records"] == 16
    assert verify(tmp_path / "a") == Verification(6)
    assert health.said == [
        AuditHealth(False, "the audit log can't be written: 4 records wait for the disk", 1),
        AuditHealth(True, "the audit log can be written again; it says how much it misses"),
    ]


def test_log__ends_on_a_disk_that_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full queue as well; once the disk moves again, the log tells how much it misses."""
    monkeypatch.setattr(audit, "MAX_QUEUED", 4)
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 0.01)
    disk, health = Disk(monkeypatch), Health()
    log = AuditLog(tmp_path / "a", health)
    disk.moving.clear()
    log.write({"kind": "flood"})
    assert disk.reached.wait(30)
    for _ in range(10):
        log.write({"kind": "flood"})
    log.close()
    assert [(each.sound, each.lost) for each in health.said] == [(False, 1), (False, 11)]
    disk.moving.set()
    log._thread.join(30)
    assert [record.get("records") for record in records(tmp_path / "a")] == [None, 10]
    assert len(health.said) == 2
    written(tmp_path / "a", "next")


def test_log__replaces_a_record_that_is_too_long(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a", unexpected)
    log.write({"kind": "verdict", "severity": "high", "instruction": "x" * MAX_LINE})
    log.write({"kind": "state", "severity": "info", "state": "CLOSED", "fact": "no longer listening"})
    log.close()
    long, state = records(tmp_path / "a")
    assert (long["kind"], long["of"], long["severity"]) == ("too_long", "verdict", "high")
    check_record(long)
    check_record(state)
    assert verify(tmp_path / "a") == Verification(2)


def test_verdict__names_so_many_rules_and_counts_the_others() -> None:
    talk = Conversation(compile_plan("on hypercall 34/24 log"), ScriptedKernel(V7))
    talk.connect()
    talk.event(EventKind.HYPERCALL, rip=0xFFFFFFFF81000000)
    (logged,) = (record for record in talk.records if isinstance(record, VerdictRecord))
    many = Verdict(None, None, (0,) * 33, (0,) * 32, (0,) * 1000)
    record = replace(logged, verdict=many).to_json(talk.plan)
    check_records([record])
    lists = {key: record[key] for key in ("rules", "set_aside", "exempted")}
    assert [len(each) for each in lists.values() if isinstance(each, list)] == [32, 32, 32]
    assert {key: value for key, value in record.items() if key.startswith("more_")} == {
        "more_rules": 1,
        "more_exempted": 968,
    }


def test_service__says_what_keeps_records_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    disk.room = 0
    said: list[JsonObject] = []
    unsound = threading.Event()

    def observe(record: JsonObject) -> None:
        said.append(record)
        if record["state"] == "DEGRADED":
            disk.room = 1 << 30
            unsound.set()

    service = Service(compile_plan("on hypercall 34/24 log"), ServiceOptions(tmp_path / "s", tmp_path / "a"), observe)
    thread = threading.Thread(target=service.run)
    thread.start()
    assert unsound.wait(30)
    service.leave()
    thread.join(30)
    check_records(said)
    health = [(each["state"], each["severity"], each["fact"]) for each in said if "audit log" in str(each["fact"])]
    assert health == [
        ("DEGRADED", "critical", "the audit log can't be written: No space left on device"),
        ("LISTENING", "info", "the audit log can be written again; it says how much it misses"),
    ]
    assert kinds(tmp_path / "a") == ["dropped", "state"]
