"""What the tool tells people about their input: places in a text, the table of codes, and the drawing of both.

A mistake of the author is a `Diagnostic`, a value that is collected and never raised. Each carries a stable code from
`CODES`, one sentence of fact, and, where one is known, a place and one sentence of help. `render_text` draws them for
a terminal; `Diagnostic.to_json` gives the same facts to machines.

How messages are written: lower case, no full stop, the author's text in backticks, one line; the help apart.
"""

from __future__ import annotations

import bisect
import difflib
import enum
import re
import unicodedata
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "CODES",
    "Code",
    "Diagnostic",
    "Severity",
    "Source",
    "Span",
    "did_you_mean",
    "has_errors",
    "printable",
    "render_text",
    "sort_diagnostics",
]

MAX_LINE_WIDTH: Final = 100
"""Columns of a source line that are drawn; a longer one is cut around the place."""

MAX_SPAN_LINES: Final = 6
"""Lines of one place that are drawn; of a longer one, the first and the last three."""

CUT_CONTEXT: Final = 30
"""Columns kept before the place where a long line is cut."""

TAB_WIDTH: Final = 4


class Severity(enum.Enum):
    """How much a diagnostic weighs: an error stops the work, a warning doesn't, a note only informs."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Code:
    """One row of the table of codes: its name, its weight, a title, and what it means in one sentence."""

    name: str
    severity: Severity
    title: str
    explanation: str


def _table(*rows: Code) -> Mapping[str, Code]:
    """The rows by name.

    Raises:
        ValueError: two rows share a name, or the rows aren't in order.
    """
    names = [row.name for row in rows]
    if names != sorted(set(names)):
        raise ValueError("codes must be unique and ascending")
    return MappingProxyType({row.name: row for row in rows})


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

# One row a code; a code is never reused for something else. P1xx syntax and input, P2xx names, P3xx legality,
# P4xx overlap, P5xx lowering, P6xx artifact, P7xx binding, P8xx tests.
CODES: Final = _table(
    Code("P100", _E, "unreadable input", "The file can't be opened or read."),
    Code("P101", _E, "unexpected text", "The text breaks the grammar at this place."),
    Code("P102", _E, "unfinished statement", "The statement ends before it is complete."),
    Code("P103", _E, "stray character", "The character begins nothing that the language has."),
    Code("P104", _E, "unclosed text", "A quoted text isn't closed on its line."),
    Code("P105", _E, "unclosed bracket", "A bracket or brace has no counterpart."),
    Code("P106", _E, "unknown statement", "A statement begins with a word that begins no statement."),
    Code("P107", _E, "wrong order", "The words are known here but stand in the wrong order."),
    Code("P108", _E, "exception without reason", "An exception must say `because` and its reason."),
    Code("P109", _E, "clause given twice", "A clause that can stand once in a statement stands there again."),
    Code("P110", _E, "section glued to image", "An image and its section are two words with a blank between."),
    Code("P111", _E, "misplaced header", "The header stands once, before every other statement."),
    Code("P112", _E, "number out of range", "A number doesn't fit its place; none is larger than 2**64."),
    Code("P113", _E, "malformed number", "The text begins like a number and isn't one."),
    Code("P114", _E, "no such day", "A date names a day that the calendar doesn't have."),
    Code("P115", _E, "control character in text", "A quoted text holds a character that terminals and logs act on."),
    Code("P120", _E, "not UTF-8", "A policy file is text in UTF-8, and this one isn't."),
    Code("P121", _E, "binary file", "The file holds a NUL character, which no text does."),
    Code("P122", _E, "file too large", "The file is larger than a policy file may be."),
    Code("P123", _E, "line too long", "A line is longer than a line may be."),
    Code("P124", _E, "nested too deeply", "Brackets, `not`, `~` or `retry` are nested deeper than they may be."),
    Code("P125", _E, "too many statements", "The file has more statements than one file may have."),
    Code("P126", _E, "empty policy", "The file says nothing: it has no rule, watch, name, test or import."),
    Code("P127", _N, "more errors", "Further errors aren't shown because there are too many."),
    Code("P128", _E, "statement too long", "A statement is longer than one statement may be."),
    Code("P202", _E, "unknown section", "The profile doesn't know where this section lies."),
    Code("P203", _E, "unknown symbol", "The profile doesn't know where this symbol or module lies."),
    Code("P204", _E, "unknown name", "No `let` gives this name a place."),
    Code("P205", _E, "name given twice", "Two things of one file have the same name."),
    Code("P206", _W, "unused name", "A `let` names a place that no rule uses."),
    Code("P207", _E, "no bytes", "A place covers no bytes, or bytes that no address reaches."),
    Code("P208", _E, "name defined by itself", "A `let` contains its own name."),
    Code("P209", _E, "unknown word", "The word isn't one of those that can stand here."),
    Code("P210", _E, "unknown event", "No event of the guest is called that, or none that a rule can be about."),
    Code("P211", _E, "unknown platform", "No profile can describe guests of this system."),
    Code("P212", _E, "policy name taken", "Two files say that they are the same policy."),
    Code("P213", _E, "unknown policy", "`overriding` names a policy that isn't among the files."),
    Code("P214", _E, "ambiguous code", "A name that an exception relies on stands for several functions."),
    Code("P215", _E, "import not read", "An imported file can't be read, or its path is none that may stand there."),
    Code("P216", _E, "imports in a circle", "A file imports itself, by way of others or at once."),
    Code("P217", _E, "too many imports", "More files are imported, or in a longer chain, than may be."),
    Code("P301", _E, "event incomplete", "What follows the event's word isn't what belongs there."),
    Code("P302", _E, "value not allowed", "The value isn't among those that are safe or make sense here."),
    Code("P303", _E, "MSR out of reach", "No kernel can intercept writes to this MSR."),
    Code("P304", _E, "effect impossible", "No reply to this event brings the effect about."),
    Code("P305", _E, "clause out of place", "The clause means nothing in this rule."),
    Code("P306", _E, "not in this dialect", "The event doesn't exist in every dialect that the plan is for."),
    Code("P307", _E, "no such field here", "The event that the rule is about doesn't carry this field."),
    Code("P308", _E, "doesn't go together", "The parts of a condition can't be joined or compared with each other."),
    Code("P309", _E, "condition too long", "A condition is longer than one may be that is evaluated at each event."),
    Code("P310", _E, "code can't be restored", "Bytes that a vCPU may be executing can't be written from outside."),
    Code("P401", _W, "excepted code unguarded", "Code that an exception trusts could be rewritten by anyone."),
    Code("P404", _W, "rule never matches", "Nothing that a guest can do ever fits this rule."),
    Code("P405", _W, "rule stands twice", "The same rule stands in the policy already."),
    Code("P406", _E, "test without cases", "A test that claims nothing can't fail."),
    Code("P407", _W, "condition always holds", "The condition is true whenever it is asked, so it says nothing."),
    Code("P408", _W, "exception without effect", "Nothing that the rule is about ever fits the exception."),
    Code("P409", _E, "exception without limit", "The exception lifts the rule whenever the rule would apply."),
    Code(
        "P410", _W, "rule decides nothing", "Stricter rules, always in force, cover everything that the rule is about."
    ),
    Code("P411", _W, "allow without effect", "There is no rule that this `allow` could set aside."),
    Code("P412", _W, "exception past its end", "The exception was meant to end, and it is still in force."),
    Code("P413", _N, "exception near its end", "The exception is meant to end within a month."),
    Code(
        "P414", _W, "code named in a condition", "A condition trusts addresses, and not the code that was bound there."
    ),
    Code(
        "P415", _W, "busy pages", "The guest often uses what shares pages with what is guarded, or the guarded itself."
    ),
    Code("P416", _W, "freed after boot", "The kernel gives this memory to others once it runs."),
    Code("P417", _N, "size inferred", "A size is the distance to the next symbol, since the profile has none."),
    Code("P418", _N, "rights widened", "The hardware can't hold exactly these rights, so more is denied."),
    Code("P419", _W, "event not reported", "On the hosts that the plan is for, the event doesn't come."),
    Code("P420", _W, "denial can be lifted", "The guest can map the address elsewhere, and the old frame is let go."),
    Code("P502", _E, "rights that hardware lacks", "No page can be given the rights that the rule needs."),
    Code("P503", _E, "foreign code on guarded pages", "Pages that may not be executed hold other code too."),
    Code("P504", _E, "plan too large", "The policies come to more than a plan may hold."),
    Code("P801", _E, "test failed", "The policy decides otherwise than a case of a test expects."),
    Code("P802", _E, "test undecided", "The policy's verdict turns on a fact that the case doesn't give."),
)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One text and the name it is shown under. Lines and columns count from 1, columns in characters."""

    name: str
    text: str
    _line_starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = (0, *(match.end() for match in re.finditer("\n", self.text)))
        object.__setattr__(self, "_line_starts", starts)

    @property
    def line_count(self) -> int:
        """Lines of the text; a last line without end counts, even when it is empty."""
        return len(self._line_starts)

    def position(self, offset: int) -> tuple[int, int]:
        """The line and column of an offset; an offset outside the text counts as the nearest one inside."""
        offset = max(0, min(offset, len(self.text)))
        line = bisect.bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line_start(self, line: int) -> int:
        """The offset at which `line` begins."""
        return self._line_starts[line - 1]

    def line_text(self, line: int) -> str:
        """The text of `line` without its end, be it LF or CRLF."""
        start = self._line_starts[line - 1]
        end = self._line_starts[line] - 1 if line < len(self._line_starts) else len(self.text)
        return self.text[start:end].removesuffix("\r")


@dataclass(frozen=True, slots=True)
class Span:
    """The characters from offset `start` up to, not including, `end` of a source. An empty one is a point."""

    source: Source
    start: int
    end: int

    @property
    def text(self) -> str:
        """The characters covered."""
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """The span from the start of this one to the end of `other`, in the same source."""
        return Span(self.source, self.start, other.end)

    def __str__(self) -> str:
        line, column = self.source.position(self.start)
        return f"{printable(self.source.name)}:{line}:{column}"

    def to_json(self) -> dict[str, object]:
        """The place as plain data: file, offsets, and lines and columns from 1 (the end is exclusive)."""
        line, column = self.source.position(self.start)
        end_line, end_column = self.source.position(self.end)
        return {
            "file": self.source.name,
            "start": self.start,
            "end": self.end,
            "line": line,
            "column": column,
            "end_line": end_line,
            "end_column": end_column,
        }


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing to tell the author. `notes` are further facts, each with its own place or none.

    Raises:
        ValueError: the code has no row in `CODES`.
    """

    code: str
    message: str
    span: Span | None = None
    help: str | None = None
    notes: tuple[tuple[Span | None, str], ...] = ()

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"no such diagnostic code: {self.code}")

    @property
    def severity(self) -> Severity:
        """The weight of the code."""
        return CODES[self.code].severity

    def to_json(self) -> dict[str, object]:
        """The diagnostic as plain data, fit for `json.dumps`."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "title": CODES[self.code].title,
            "message": self.message,
            "span": self.span.to_json() if self.span else None,
            "help": self.help,
            "notes": [{"span": span.to_json() if span else None, "message": text} for span, text in self.notes],
        }


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate nearest to `word`, or None if none is near. The order of candidates doesn't matter."""
    by_folded = {candidate.casefold(): candidate for candidate in sorted(candidates, reverse=True)}
    near = difflib.get_close_matches(word.casefold(), sorted(by_folded), n=1, cutoff=0.6)
    return by_folded[near[0]] if near else None


def has_errors(diagnostics: Iterable[Diagnostic]) -> bool:
    """Whether one of them is an error."""
    return any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics)


def sort_diagnostics(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """By file, place, code and message; those without a place come first."""

    def key(diagnostic: Diagnostic) -> tuple[str, int, int, str, str]:
        span = diagnostic.span
        place = (span.source.name, span.start, span.end) if span else ("", -1, -1)
        return (*place, diagnostic.code, diagnostic.message)

    return sorted(diagnostics, key=key)


def render_text(diagnostics: Iterable[Diagnostic], color: bool = False) -> str:
    """All of them drawn for a terminal, in the order of their places, with a line of counts at the end.

    Nothing that the text or a file name holds reaches the terminal raw: control characters, escapes and marks that
    turn the direction of writing are shown as visible signs. No diagnostics give an empty string.
    """
    ordered = sort_diagnostics(diagnostics)
    if not ordered:
        return ""
    paint = _Paint(color)
    blocks = ["\n".join(_draw(diagnostic, paint)) for diagnostic in ordered]
    return "\n\n".join([*blocks, _count_line(ordered, paint)]) + "\n"


def printable(text: str) -> str:
    """`text` with every character that isn't safe to print made visible, such as `<U+001B>` for an escape."""
    return text if text.isascii() and text.isprintable() else "".join(map(_visible, text))


# ---- drawing


class _Paint:
    """Terminal colours, or none."""

    _STYLES: Final = {
        "error": "1;31",
        "warning": "1;33",
        "note": "1;36",
        "help": "1;32",
        "bold": "1",
        "gutter": "1;34",
    }

    def __init__(self, color: bool) -> None:
        self._color = color

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{self._STYLES[style]}m{text}\x1b[0m" if self._color and text else text


def _draw(diagnostic: Diagnostic, paint: _Paint) -> list[str]:
    word = diagnostic.severity.value
    places = [diagnostic.span, *(span for span, _ in diagnostic.notes)]
    gutter = max((len(str(_last_line(span))) for span in places if span), default=1)
    lines = [paint(word, f"{word}[{diagnostic.code}]") + paint("bold", f": {printable(diagnostic.message)}")]
    if diagnostic.span:
        lines += _draw_place(diagnostic.span, gutter, word, paint)
    for span, text in diagnostic.notes:
        lines.append(f"{' ' * gutter} {paint('gutter', '=')} {paint('note', 'note:')} {printable(text)}")
        if span:
            lines += _draw_place(span, gutter, "note", paint)
    if diagnostic.help:
        lines.append(f"{' ' * gutter} {paint('gutter', '=')} {paint('help', 'help:')} {printable(diagnostic.help)}")
    return lines


def _draw_place(span: Span, gutter: int, style: str, paint: _Paint) -> list[str]:
    bar = paint("gutter", "|")
    blank = f"{' ' * gutter} {bar}"
    lines = [f"{' ' * gutter}{paint('gutter', '-->')} {span}", blank]
    first, last = span.source.position(span.start)[0], _last_line(span)
    for number in _lines_to_draw(first, last):
        if number is None:
            lines.append(paint("gutter", "..."))
            continue
        text, mark = _draw_line(span, number)
        lines.append(f"{paint('gutter', str(number).rjust(gutter))} {bar} {text}".rstrip())
        if mark:
            lines.append(f"{blank} {' ' * (len(mark) - len(mark.lstrip()))}{paint(style, mark.lstrip())}")
    return lines


def _last_line(span: Span) -> int:
    """The line of the last character covered: a span that ends with a line break ends on that line."""
    return span.source.position(max(span.start, span.end - 1))[0]


def _lines_to_draw(first: int, last: int) -> Sequence[int | None]:
    """The numbers of the lines to show; None stands for those left out."""
    if last - first < MAX_SPAN_LINES:
        return range(first, last + 1)
    half = MAX_SPAN_LINES // 2
    return [*range(first, first + half), None, *range(last - half + 1, last + 1)]


def _draw_line(span: Span, number: int) -> tuple[str, str]:
    """One source line made safe and cut to width, and the marks to go under it."""
    raw, offset = span.source.line_text(number), span.source.line_start(number)
    begins_here = span.start >= offset
    start = span.start - offset if begins_here else len(raw) - len(raw.lstrip())
    start = min(start, len(raw))
    low, high = _cut(raw, start)
    end = max(start, min(span.end - offset, high))
    before = ("..." if low else "") + _cells(raw[low:start])
    inside = _cells(raw[start:end])
    after = _cells(raw[end:high]) + ("..." if high < len(raw) else "")
    width = max(_width(inside), begins_here)  # a point is marked too
    return before + inside + after, " " * _width(before) + "^" * width if width else ""


def _cut(raw: str, start: int) -> tuple[int, int]:
    """Which characters of a line to show, so that `start` is among them."""
    if len(raw) <= MAX_LINE_WIDTH and _width(_cells(raw)) <= MAX_LINE_WIDTH:
        return 0, len(raw)
    low = high = max(0, start - CUT_CONTEXT)
    width = 0
    while high < len(raw) and (high <= start or width < MAX_LINE_WIDTH):
        width += _width(_cells(raw[high]))
        high += 1
    return low, high


def _cells(text: str) -> str:
    """`text` as it is drawn: tabs as blanks, unsafe characters as visible signs."""
    return "".join(" " * TAB_WIDTH if char == "\t" else _visible(char) for char in text)


def _visible(char: str) -> str:
    """The character itself where it is harmless to print, else its code point in angle brackets."""
    if char.isprintable():
        return char
    return f"<U+{ord(char):04X}>"


def _width(text: str) -> int:
    """Terminal columns of drawn text: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _count_line(diagnostics: Sequence[Diagnostic], paint: _Paint) -> str:
    counts = [(severity.value, sum(d.severity is severity for d in diagnostics)) for severity in Severity]
    parts = [paint(word, f"{n} {word}{'' if n == 1 else 's'}") for word, n in counts if n]
    return ", ".join(parts)
