"""Explains syntax errors in the words of the language.

Lark says where a text stops being a policy and which terminals could have stood there. `MISTAKES` holds what people
get wrong: each entry looks at the words around the place and says what happened, or passes. What none of them knows is
told as what was found and what was expected.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from policyc.diagnostics import Diagnostic, Span, did_you_mean
from policyc.lang import misplaced
from policyc.lang.expected import CLAUSES, EFFECTS, describe
from policyc.lang.scan import GLUED, MALFORMED_NUMBER, STRAY
from policyc.lang.surroundings import Surroundings, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from policyc.lang.scan import Lexeme

__all__ = ["MISTAKES", "explain"]

FOREIGN_SIGNS: Final = (
    ("&&", "", "write `and` between conditions"),
    ("||", "", "write `or` between conditions"),
    ("!", "", "write `not`"),
    ("=", "_ARROW", "write `=>`"),
    ("=", "COMPARISON", "write `==` to compare"),
    (";", "", "a statement ends where the next one begins; take the `;` out"),
    ("'", "", 'quoted texts stand in `"`'),
    ("\u201c", "", 'quoted texts stand in plain `"`'),
    ("\u201d", "", 'quoted texts stand in plain `"`'),
    ("->", "", "write `=>`"),
    ("//", "", "a comment begins with `#`"),
    ("/*", "", "a comment begins with `#` and ends with its line"),
    (
        ":",
        "",
        "a symbol is one word, as in `kernel:schedule`; a label has its colon directly behind it and a blank next",
    ),
    ("*", "", "a pattern is part of a symbol, as in `kernel:ftrace_*`"),
    ("^", "", "sets of bits are joined with `|` and `&`"),
    ("@", "", "`@` stands in symbols alone"),
)
"""Signs that other languages use here; the terminal that must be expected, if any; and what to write instead."""

MODULE_FILES: Final = (".sys", ".dll", ".exe", ".ko")

DATE_LIKE: Final = re.compile(r"[0-9]+(?:[-./][0-9]+)*")


def explain(failure: Surroundings) -> Diagnostic:
    """The diagnostic for a syntax error."""
    found = (mistake(failure) for mistake in MISTAKES)
    return next((diagnostic for diagnostic in found if diagnostic), None) or _unexpected(failure)


# ---- words that are wrong in themselves


def _unclosed_text(failure: Surroundings) -> Diagnostic | None:
    if not (failure.found.kind == STRAY and failure.found.text == '"'):
        return None
    source = failure.source
    line = source.position(failure.start)[0]
    end = source.line_start(line) + len(source.line_text(line).rstrip())
    span = Span(source, failure.start, max(end, failure.start + 1))
    return failure.report("P104", "the quoted text isn't closed on its line", 'add the closing `"`', span)


def _glued_section(failure: Surroundings) -> Diagnostic | None:
    text = failure.found.text
    if failure.found.kind != GLUED:
        return None
    image, _, section = text.partition(".")
    help = f"write `{image} .{section}`"
    if text.endswith(MODULE_FILES):
        help = f'quote the file name of a module, as in `module "{text}" .text`'
    return failure.report("P110", f"{quoted(text)} runs an image and its section together", help)


def _malformed_number(failure: Surroundings) -> Diagnostic | None:
    found, expected = failure.found, failure.expected
    if found.kind == "NUMBER" and "DURATION" in expected:
        return failure.report("P113", f"the time {quoted(found.text)} has no unit", f"write `{found.text}s`")
    if "DATE" in expected and "NUMBER" not in expected and found.text[:1].isdigit():
        written = DATE_LIKE.match(failure.source.text, failure.start)
        span = Span(failure.source, failure.start, written.end() if written else found.end)
        return failure.report("P113", f"{quoted(span.text)} is no date", "write a date as in `2027-06-30`", span)
    if found.kind == MALFORMED_NUMBER and "DURATION" in expected:
        help = "a time is a number and `ms`, `s`, `m` or `h`, as in `5s`"
        return failure.report("P113", f"{quoted(found.text)} is no time", help)
    if found.kind == MALFORMED_NUMBER or (found.kind == "DURATION" and "NUMBER" in expected):
        help = "a number is decimal or `0x` and hexadecimal digits, and K, M or G may follow"
        return failure.report("P113", f"{quoted(found.text)} is no number", help)
    return None


def _foreign_sign(failure: Surroundings) -> Diagnostic | None:
    text = failure.source.text
    for sign, terminal, help in FOREIGN_SIGNS:
        # Of a doubled sign the grammar may know the first half.
        start = failure.start - (sign in ("&&", "||") and not text.startswith(sign, failure.start))
        if text.startswith(sign, start) and (not terminal or terminal in failure.expected):
            code = "P103" if failure.found.kind == STRAY else "P101"
            return failure.report(
                code, f"`{sign}` isn't used here", help, Span(failure.source, start, start + len(sign))
            )
    return None


def _stray_character(failure: Surroundings) -> Diagnostic | None:
    text = failure.found.text
    if failure.found.kind != STRAY:
        return None
    shown = f"`{text}`" if text.isascii() else f"`{text}` (U+{ord(text):04X})"
    help = "names are made of ASCII letters, digits, `_` and `-`" if text.isalnum() else None
    return failure.report("P103", f"{shown} begins nothing that the language has", help)


# ---- brackets


def _unclosed_bracket(failure: Surroundings) -> Diagnostic | None:
    for close, terminal in ((")", "RPAR"), ("}", "RBRACE")):
        opened = _open_bracket(failure, close)
        if opened and terminal in failure.expected and (failure.at_end or failure.begins_something_else):
            message, help = f"the `{opened.text}` is never closed", f"add the closing `{close}`"
            return failure.report("P105", message, help, failure.span(opened))
    return None


def _bracket_without_partner(failure: Surroundings) -> Diagnostic | None:
    text = failure.found.text
    if text not in (")", "}") or _open_bracket(failure, text):
        return None
    return failure.report("P105", f"this `{text}` closes nothing", "take it out")


def _open_bracket(failure: Surroundings, close: str) -> Lexeme | None:
    """The innermost bracket before the place that `close` would close."""
    opened: list[Lexeme] = []
    for word in failure.before:
        if word.text == {")": "(", "}": "{"}[close]:
            opened.append(word)
        elif word.text == close and opened:
            opened.pop()
    return opened[-1] if opened else None


# ---- words that begin nothing


def _misspelt_effect(failure: Surroundings) -> Diagnostic | None:
    """The last word of an event rule without effect was meant to be one: `on cr4 dney`."""
    word = failure.previous
    if not (failure.expected >= EFFECTS and "WHEN" in failure.expected and word.kind == "NAME"):
        return None
    if not (failure.at_end or failure.begins_something_else) or len(failure.sentence) < 3:
        return None
    near = did_you_mean(word.text, failure.words_of(EFFECTS))
    if near is None:
        return None
    return failure.report(
        "P106", f"no effect is called {quoted(word.text)}", f"did you mean `{near}`?", failure.span(word)
    )


def _unknown_statement(failure: Surroundings) -> Diagnostic | None:
    found = failure.found
    if not failure.complete or found.kind not in ("NAME", "SYMBOL", "NUMBER", "STRING", "SECTION"):
        return None
    if failure.before and not failure.begins_line:
        return None
    near = did_you_mean(found.text, failure.words_of(failure.parser.statement_starts | failure.expected & CLAUSES))
    help = "a statement begins with an effect such as `deny`, or with `on`, `let`, `watch`, `test` or `import`"
    if near:
        help = f"did you mean `{near}`?"
    elif found.text in failure.words_of(CLAUSES):
        help = "a clause stands behind the rule that it belongs to"
    kinds = "statement or clause" if failure.before else "statement"
    return failure.report("P106", f"no {kinds} begins with {quoted(found.text)}", help)


# ---- the rest


def _unfinished(failure: Surroundings) -> Diagnostic | None:
    if not failure.at_end:
        return None
    expected, word = describe(failure.expected, failure.parser, failure.previous), failure.previous.text
    help = f"`{word}` is read as a name here" if word in failure.words_of(EFFECTS & failure.expected) else None
    return failure.report("P102", f"the statement ends too early: expected {expected}", help)


def _unexpected(failure: Surroundings) -> Diagnostic:
    found = failure.found
    near = did_you_mean(found.text, failure.words_of(failure.expected)) if found.kind == "NAME" else None
    help = f"did you mean `{near}`?" if near else None
    if failure.expected == {"STRING"} and found.kind in ("NAME", "SYMBOL", "NUMBER", GLUED):
        help = f'write `"{found.text}"`'
    expected = describe(failure.expected, failure.parser, failure.previous)
    return failure.report("P101", f"expected {expected}, found {quoted(found.text)}", help)


MISTAKES: Final[Sequence[Callable[[Surroundings], Diagnostic | None]]] = (
    _unclosed_text,
    misplaced.exception_without_reason,
    misplaced.exception_without_subject,
    _unclosed_bracket,
    _glued_section,
    _malformed_number,
    _bracket_without_partner,
    misplaced.effect_before_event,
    misplaced.mechanism_first,
    misplaced.restore_before_time,
    misplaced.condition_without_when,
    misplaced.range_without_kind,
    misplaced.comma_between_bits,
    _foreign_sign,
    _stray_character,
    misplaced.late_header,
    misplaced.header_without_name,
    misplaced.detail_of_exception,
    misplaced.label_glued,
    misplaced.missing_preposition,
    misplaced.missing_comma,
    misplaced.section_without_dot,
    misplaced.narrowing_behind_effect,
    _misspelt_effect,
    _unknown_statement,
    _unfinished,
)
"""What people get wrong, tried in this order."""
