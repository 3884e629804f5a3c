"""What can go wrong with a Linux guest, for its user to read."""

from __future__ import annotations

__all__ = ["BuildError", "SnapshotError"]


class BuildError(Exception):
    """The snapshot can't be built here: what is missing, or what a tool answered."""


class SnapshotError(Exception):
    """The folder holds no snapshot that can be continued: which file, and what is wrong with it."""
