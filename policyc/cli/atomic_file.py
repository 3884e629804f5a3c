"""Writes a file whole or not at all, so that nobody ever reads half a plan."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace what is at `path`, or leave it as it was.

    A link keeps pointing at the file that is replaced; an existing file keeps its permissions. What isn't a regular
    file, such as `/dev/stdout` or a FIFO, is written to as it is.

    Raises:
        OSError: the folder or the file can't be written; its `filename` is `path`.
    """
    # Path.resolve() would raise RuntimeError for links that loop, in some versions of Python.
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(content)
        else:
            _replace(target, content)
    except OSError as error:
        # The user never named the temporary file; what can't be written is the path that was asked for.
        raise type(error)(error.errno, error.strerror, str(path)) from error


def _replace(target: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, _permissions(target))
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _permissions(target: Path) -> int:
    """Those of the file to be replaced, else those that a new file gets here."""
    try:
        return target.stat().st_mode & 0o7777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
