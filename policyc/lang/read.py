"""From bytes to a source: what a policy file must be before anyone looks at its words."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

from policyc.diagnostics import Diagnostic, Source, Span
from policyc.lang.limits import MAX_ERRORS, MAX_FILE_BYTES, MAX_LINE_LENGTH

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["check_text", "decode_source", "read_source"]

BYTE_ORDER_MARK: Final = "\ufeff"

# What a terminal acts on or a reader can't see: controls but tab, LF and CRLF, marks that turn the direction of
# writing, invisible separators, tags, and halves of surrogate pairs. (Joiners are left alone: scripts need them.)
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]|\r(?!\n)"
)

_LONG_LINE: Final = re.compile(rf"^[^\n]{{{MAX_LINE_LENGTH + 1},}}", re.MULTILINE)


def read_source(path: Path | None, stdin: BinaryIO) -> Source | Diagnostic:
    """The policy text in the file at `path`, or on `stdin` if that is None; or why there is none."""
    name = "<stdin>" if path is None else str(path)
    try:
        if path is None:
            data = stdin.read(MAX_FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Diagnostic("P100", f"`{name}` can't be read: {reason.lower()}")
    return decode_source(name, data)


def decode_source(name: str, data: bytes) -> Source | Diagnostic:
    """The policy text in `data`, shown under `name`; or why it isn't one. A byte order mark is left out."""
    if len(data) > MAX_FILE_BYTES:
        return Diagnostic(
            "P122", f"`{name}` is larger than {MAX_FILE_BYTES} bytes", None, "split it into several files"
        )
    if (position := data.find(b"\0")) >= 0:
        return Diagnostic("P121", f"`{name}` holds a NUL character at byte {position}", None, "a policy is a text file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"`{name}` isn't UTF-8: byte {data[error.start]:#04x} on line {line}"
        return Diagnostic("P120", message, None, "save the file as UTF-8")
    return Source(name, text.removeprefix(BYTE_ORDER_MARK))


def check_text(source: Source) -> list[Diagnostic]:
    """What is wrong with a text before its words are read: lines too long, and characters that can't be seen."""
    return [*_long_lines(source), *_controls(source)]


def _long_lines(source: Source) -> list[Diagnostic]:
    message, help = f"the line is longer than {MAX_LINE_LENGTH} characters", "a statement may stand on several lines"
    starts = (match.start() for match in _LONG_LINE.finditer(source.text))
    return [
        Diagnostic("P123", message, Span(source, start, start + 1), help)
        for start in itertools.islice(starts, MAX_ERRORS)
    ]


def _controls(source: Source) -> list[Diagnostic]:
    return [
        Diagnostic(
            "P115",
            f"the character U+{ord(match[0]):04X} can't be seen or is acted on where it is printed",
            Span(source, match.start(), match.end()),
            "take it out",
        )
        for match in itertools.islice(_CONTROL.finditer(source.text), MAX_ERRORS + 1)
    ]
