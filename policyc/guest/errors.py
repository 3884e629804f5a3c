"""The two ways in which guest knowledge fails, and how foreign text is quoted when it does."""

from __future__ import annotations

__all__ = ["ProfileError", "WalkLimitError", "printable"]


class ProfileError(Exception):
    """A profile, or a source of one, that can't be used.

    Attributes:
        message: one sentence of fact, lower case, no full stop, user text in backticks; never terminal control bytes.
        help: one sentence of advice, or None.
    """

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message if help is None else f"{message} ({help})")
        self.message = message
        self.help = help


class WalkLimitError(Exception):
    """A page walk was asked to cover more than its named limits allow; nothing was read for the excess."""


def printable(text: bytes | str, most: int = 60) -> str:
    """A short form of foreign text that is safe to show on a terminal."""
    whole = text.decode("ascii", "backslashreplace") if isinstance(text, bytes) else text
    safe = whole.rstrip("\r\n").encode("unicode_escape").decode("ascii")
    return safe if len(safe) <= most else safe[: most - 3] + "..."
