"""How large a policy may be.

Every limit is checked before the work that it bounds, and exceeding one is a diagnostic.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "JOINED_PIECES",
    "MAX_DEPTH",
    "MAX_DURATION_MS",
    "MAX_ERRORS",
    "MAX_FILE_BYTES",
    "MAX_LINE_LENGTH",
    "MAX_NUMBER",
    "MAX_STATEMENTS",
    "MAX_STATEMENT_LENGTH",
    "MAX_UNCLOSED",
]

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""Bytes of one file: some 50 000 rules of ordinary length."""

MAX_LINE_LENGTH: Final = 10_000
"""Characters of one line."""

MAX_STATEMENT_LENGTH: Final = 512 * 1024
"""Characters of one statement, with the blanks and comments in it. Bounds the parser's tree."""

MAX_STATEMENTS: Final = 250_000
"""Statements of one file."""

MAX_DEPTH: Final = 64
"""Brackets, `not`, `~` and `retry` inside each other."""

MAX_NUMBER: Final = 1 << 64
"""The largest number: one past the last address, since a half-open range may end there."""

MAX_DURATION_MS: Final = 366 * 24 * 3600 * 1000
"""The longest time, in milliseconds: a year."""

MAX_ERRORS: Final = 100
"""Syntax errors of one file that are reported; behind the last, reading stops."""

JOINED_PIECES: Final = (0, 1, 2, 3, 5, 7, 11, 15, 23, 31, 47, 63)
"""How many more lines that look like the start of a statement are added to an unfinished one, from try to try.

The steps grow, so that an unfinished statement before many others costs a few times its own length.
"""

MAX_UNCLOSED: Final = 10
"""Braces that never close behind which statements are looked for again; each costs a walk through the file."""
