"""The Linux guest that tests share: built once into the checkout, and again when what it is built by changes.

It takes Debian's packages, which not every machine can have: then the tests that need it say so, and fail where CI is
set, since nobody would read it there.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import pytest

import policyc.emulator.linux as room
from policyc.emulator.linux.build import Recipe, build
from policyc.emulator.linux.errors import BuildError, SnapshotError
from policyc.emulator.linux.snapshot import Snapshot, load_snapshot

__all__ = ["linux_folder", "linux_snapshot"]

FOLDER = Path(__file__).parent.parent.parent / ".guests" / "linux"
_BUILDERS = ("build", "capture", "gdbstub", "initrd", "qemu", "snapshot", "state")


@lru_cache(maxsize=1)
def linux_folder() -> Path:
    """The folder of the snapshot."""
    stamp = FOLDER.with_name("linux.sha256")
    built_by = _digest()
    if not (stamp.is_file() and stamp.read_text() == built_by and _usable()):
        said: list[str] = []
        try:
            build(FOLDER, Recipe(), said.append)
        except (BuildError, SnapshotError, OSError) as error:
            reason = f"the Linux guest can't be built here: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        stamp.write_text(built_by)
    return FOLDER


@lru_cache(maxsize=1)
def linux_snapshot() -> Snapshot:
    """The snapshot, loaded once."""
    return load_snapshot(linux_folder())


def _usable() -> bool:
    try:
        load_snapshot(FOLDER)
    except SnapshotError:
        return False
    return True


def _digest() -> str:
    folder = Path(room.__path__[0])
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in _BUILDERS)).hexdigest()
