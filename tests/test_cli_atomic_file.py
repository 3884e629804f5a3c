"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from policyc.cli.atomic_file import write_atomically


def test_new_file__gets_the_permissions_of_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    usual = tmp_path / "usual"
    usual.touch()
    write_atomically(path, b"plan")
    assert (path.read_bytes(), path.stat().st_mode) == (b"plan", usual.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [path, usual]


def test_old_file__is_replaced_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old and longer")
    path.chmod(0o640)
    write_atomically(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)


def test_reader__keeps_the_old_file_open(tmp_path: Path) -> None:
    """What is replaced is the name: nobody who has the old file open sees it change."""
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomically(path, b"new")
        assert (reader.read(), path.read_bytes()) == (b"old", b"new")


def test_link__still_points_at_the_file(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "plan.json"
    target.parent.mkdir()
    link = tmp_path / "plan.json"
    link.symlink_to(target)
    write_atomically(link, b"plan")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"plan")


def test_fifo__is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write_atomically(path, b"plan")
    reader.join()
    assert (read, stat.S_ISFIFO(path.stat().st_mode)) == ([b"plan"], True)


def test_interrupted__leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == {path: b"old"}


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("missing/plan.json", FileNotFoundError, "No such file or directory"),
        ("file/plan.json", NotADirectoryError, "Not a directory"),
        ("folder", IsADirectoryError, "Is a directory"),
        ("loop", OSError, "Too many levels of symbolic links"),
    ],
)
def test_unwritable__names_the_path_that_was_asked_for(
    tmp_path: Path, path: str, error: type[OSError], reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        write_atomically(tmp_path / path, b"plan")
    assert (caught.value.strerror, caught.value.filename) == (reason, str(tmp_path / path))
    assert sorted(tmp_path.rglob("*")) == before
