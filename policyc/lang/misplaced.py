"""Mistakes of people who know the words and not their order: a word too early, too late, or left out between two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyc.diagnostics import did_you_mean
from policyc.lang.expected import CLAUSES, PLACES
from policyc.lang.surroundings import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policyc.diagnostics import Diagnostic
    from policyc.lang.surroundings import Surroundings

__all__ = [
    "comma_between_bits",
    "condition_without_when",
    "detail_of_exception",
    "effect_before_event",
    "exception_without_reason",
    "exception_without_subject",
    "header_without_name",
    "label_glued",
    "late_header",
    "mechanism_first",
    "missing_comma",
    "missing_preposition",
    "narrowing_behind_effect",
    "range_without_kind",
    "restore_before_time",
    "section_without_dot",
]


# ---- rules


def effect_before_event(failure: Surroundings) -> Diagnostic | None:
    """`log on hypercall 34/24`."""
    effect = failure.previous
    if not (failure.found.text == "on" and failure.is_effect(effect)):
        return None
    event = _written(word.text for word in failure.after)
    help = f"write `on {event} {effect.text}`" if 0 < len(failure.after) <= 5 else "write `on EVENT EFFECT`"
    return failure.report("P107", f"the effect `{effect.text}` stands before its event", help, failure.span(effect))


def mechanism_first(failure: Surroundings) -> Diagnostic | None:
    """`deny by fault write to kernel .text`."""
    effect = failure.previous
    if not (failure.found.text == "by" and failure.is_effect(effect) and failure.after):
        return None
    clause = f"by {failure.after[0].text}"
    span = failure.span(failure.found, failure.after[0])
    return failure.report(
        "P107", f"`{clause}` stands before the access", f"write `{effect.text} ACCESS to PLACE {clause}`", span
    )


def narrowing_behind_effect(failure: Surroundings) -> Diagnostic | None:
    """`on msr lstar deny write`."""
    found, sentence = failure.found, failure.sentence
    if not (found.kind in ("NAME", "NUMBER") and failure.complete and not failure.begins_line):
        return None
    if not (len(sentence) > 2 and sentence[0].text == "on" and failure.is_effect(sentence[-1])):
        return None
    if did_you_mean(found.text, failure.words_of(CLAUSES)):
        return None
    words = [*(word.text for word in sentence[:-1]), found.text, sentence[-1].text]
    return failure.report("P107", f"{quoted(found.text)} stands behind the effect", f"write `{_written(words)}`")


def missing_preposition(failure: Surroundings) -> Diagnostic | None:
    """`deny write kernel .text`."""
    found = failure.found
    if not {"TO", "OF"} <= failure.expected or found.kind not in ("NAME", "SYMBOL", "NUMBER"):
        return None
    if did_you_mean(found.text, ("to", "of")) and failure.after:
        return None
    message = f"`to` is missing before {quoted(found.text)}"
    return failure.report("P101", message, f"write `{failure.previous.text} to {found.text}`")


def condition_without_when(failure: Surroundings) -> Diagnostic | None:
    """`on cr4 clears(smep) deny`, `on msr lstar old != 0 deny`."""
    found, word = failure.found, failure.previous
    if "WHEN" not in failure.expected or word.kind != "NAME":
        return None
    if found.text not in ("(", "&", "|", "in") and found.kind != "COMPARISON":
        return None
    written = f"{word.text}(…)" if found.text == "(" else f"{word.text} {found.text} …"
    return failure.report(
        "P101", "a condition begins with `when`", f"write `when {written}`", failure.span(word, found)
    )


def comma_between_bits(failure: Surroundings) -> Diagnostic | None:
    """`on cr0 pin wp, pg`."""
    if not (failure.found.text == "," and "VBAR" in failure.expected):
        return None
    return failure.report("P101", "bits aren't joined with `,`", "write `|` between them")


def restore_before_time(failure: Surroundings) -> Diagnostic | None:
    """`watch idt restore every 1s`."""
    if not (failure.found.text == "restore" and "EVERY" in failure.expected):
        return None
    time = failure.after[1].text if len(failure.after) > 1 else "5s"
    return failure.report("P107", "`restore` stands before the time", f"write `every {time} restore`")


def label_glued(failure: Surroundings) -> Diagnostic | None:
    """`guard:deny write to kernel .text`."""
    found = failure.found
    label, _, word = found.text.partition(":")
    if found.kind != "SYMBOL" or not failure.complete or word not in failure.words_of(failure.parser.statement_starts):
        return None
    return failure.report("P101", "a blank is missing behind the label", f"write `{label}: {word}`")


# ---- exceptions and headers


def exception_without_reason(failure: Surroundings) -> Diagnostic | None:
    """`except from kernel:x`, and nothing more."""
    if "BECAUSE" not in failure.expected or failure.complete:
        return None
    if not (failure.at_end or failure.begins_something_else or failure.found.text in ("owner", "until")):
        return None
    first = next((word for word in reversed(failure.before) if word.text == "except"), None)
    if first is None:
        return None
    help = 'add `because "…"`: why may this code do what the rule forbids'
    return failure.report("P108", "the exception gives no reason", help, failure.span(first, failure.previous))


def exception_without_subject(failure: Surroundings) -> Diagnostic | None:
    """`except because "…"`."""
    if not (failure.found.text == "because" and failure.previous.text == "except"):
        return None
    help = 'write `except from CODE because "…"` or `except when CONDITION because "…"`'
    return failure.report("P101", "the exception doesn't say for what", help, failure.span(failure.previous))


def detail_of_exception(failure: Surroundings) -> Diagnostic | None:
    """An `owner` or `until` that doesn't stand directly behind the exception it belongs to."""
    found = failure.found
    if not failure.complete or found.text not in ("owner", "until"):
        return None
    if found.text == "until":
        help = 'write it directly behind the exception\'s `because "…"`'
        return failure.report("P107", "`until` belongs to an exception", help)
    help = "the rule's owner stands before the first exception, that of an exception directly behind its reason"
    return failure.report("P107", "`owner` stands too late", help)


def late_header(failure: Surroundings) -> Diagnostic | None:
    """`policy "name"` behind a statement."""
    if not (failure.found.text == "policy" and failure.complete and "POLICY" not in failure.expected):
        return None
    return failure.report("P111", "the header stands once, before every other statement", "move it to the top")


def header_without_name(failure: Surroundings) -> Diagnostic | None:
    """`for linux x86_64`, with nothing before it."""
    word = failure.found.text
    if word not in ("for", "version", "mode") or failure.before or "POLICY" not in failure.expected:
        return None
    return failure.report("P107", f"`{word}` belongs to a header", f'write `policy "name" {word} …`')


# ---- places


def section_without_dot(failure: Surroundings) -> Diagnostic | None:
    """`kernel text`, `nt PAGE`."""
    found, image = failure.found, failure.previous
    if not {"SECTION", "STRING"} <= failure.expected or found.kind != "NAME" or failure.begins_line:
        return None
    if found.text in failure.parser.keywords.values():
        return None
    if failure.after and did_you_mean(found.text, failure.words_of(failure.expected)):
        return None
    help = f'write `{image.text} .{found.text}`, or `{image.text} "{found.text}"` if its name has no dot'
    return failure.report("P101", f"{quoted(found.text)} isn't written as a section", help, failure.span(image, found))


def range_without_kind(failure: Surroundings) -> Diagnostic | None:
    """`0x1000..0x2000`, `0x1000 size 16`."""
    found, start = failure.found, failure.previous
    if found.text not in ("..", "size") or start.kind != "NUMBER":
        return None
    joint = ".." if found.text == ".." else " size "
    written = f"{start.text}{joint}{failure.after[0].text if failure.after else '…'}"
    help = f"write `virtual {written}` or `physical {written}`"
    return failure.report("P101", "a range of addresses says of which kind they are", help, failure.span(start))


def missing_comma(failure: Surroundings) -> Diagnostic | None:
    """`deny write to kernel:a kernel:b`."""
    found = failure.found
    if "COMMA" not in failure.expected or not failure.complete:
        return None
    if found.kind not in ("SYMBOL", "NUMBER") and found.text not in failure.words_of(PLACES):
        return None
    return failure.report("P101", f"a `,` is missing before {quoted(found.text)}", "write `,` between places")


def _written(words: Iterable[str]) -> str:
    """Words joined as people write them: no blank around `/`, none before `,`."""
    return " ".join(words).replace(" / ", "/").replace(" , ", ", ")
