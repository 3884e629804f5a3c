"""The audit log: appended to, chained, and honest about what was lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyc.runtime import audit
from policyc.runtime.audit import AuditError, AuditLog, Verification, verify


def written(path: Path, *kinds: str) -> Path:
    log = AuditLog(path)
    for kind in kinds:
        log.write({"kind": kind})
    log.close()
    return path


def test_log__goes_on_where_it_ended(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one", "two")
    written(path, "three")
    assert verify(path) == Verification(3)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"kind":"two"', b'"kind":"TWO"'), (b'"seq":2', b'"seq":9'), (b'"kind":"one"', b'"kind":"won"')],
)
def test_verify__finds_a_changed_record(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = written(tmp_path / "a", "one", "two", "three")
    path.write_bytes(path.read_bytes().replace(before, after))
    found = verify(path)
    assert (found.broken_line, found.torn) != (None, True)
    assert found.broken_line is not None


def test_verify__finds_a_removed_record(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one", "two", "three")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert verify(path).broken_line == 2


def test_verify__tells_a_torn_end_from_tampering(tmp_path: Path) -> None:
    path = written(tmp_path / "a", "one", "two", "three")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert verify(path) == Verification(2, torn=True)
    written(path, "four")
    assert verify(path) == Verification(3)


def test_log__refuses_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("remember the milk\n")
    with pytest.raises(AuditError, match="is no audit log"):
        AuditLog(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "remember the milk\n"


def test_log__cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="can't be opened"):
        AuditLog(tmp_path / "missing" / "a")


def test_log__counts_what_a_flood_makes_it_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(audit, "MAX_QUEUED", 4)
    gate = threading.Event()
    append = AuditLog._append

    def slow(log: AuditLog, record: dict[str, object]) -> None:
        gate.wait()
        append(log, record)

    monkeypatch.setattr(AuditLog, "_append", slow)
    log = AuditLog(tmp_path / "a")
    for number in range(20):
        log.write({"kind": "flood", "number": number})
    gate.set()
    log.close()
    import json

    records = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    dropped = sum(record["records"] for record in records if record["kind"] == "dropped")
    assert dropped + sum(record["kind"] == "flood" for record in records) == 20
    assert dropped >= 15 - 1
    assert verify(tmp_path / "a").records == len(records)
