"""What can go wrong with a Linux guest, for its user to read."""

from __future__ import annotations

__all__ = ["BuildError", "SnapshotError"]


class BuildError(Exception):
    """The snapshot can't be built here: what is missing, or what a tool answered; `help` is what would do, or None."""

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.help = help


class SnapshotError(Exception):
    """The folder holds no snapshot that can be continued: which file, and what is wrong with it."""
