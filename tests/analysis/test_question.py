"""Questions in the words of a case: what they come to, and what is said about those that aren't one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.analysis.question import MAX_QUESTION_LENGTH, ask
from policyc.catalog import Access
from policyc.compiler.profile_lookup import ProfileLookup
from policyc.plan.model import EventKey
from tests.support.decided import small_profile

LOOKUP = ProfileLookup(small_profile())


@pytest.mark.parametrize("end", ["", " => deny", "\n", "  # why?", " # why => deny?\n=> log"])
def test_ask__an_access(end: str) -> None:
    """What it expects, and what stands around it, makes no difference."""
    case, found = ask(f"write kernel:schedule + 5 from 0xffffffffc0401000{end}", LOOKUP)
    assert found == []
    assert case is not None
    assert (case.access, case.size, case.asked_span.text) == (Access.W, 1, "kernel:schedule + 5")


def test_ask__an_event() -> None:
    case, found = ask("on cr4 with old = smep, new = 0", LOOKUP)
    assert (found, case and case.event and case.event.key) == ([], EventKey("cr4"))
    assert case is not None
    assert case.fields == {"old": 1 << 20, "new": 0}


MISTAKES = {
    "empty": ("", "P126", None, "the question is empty"),
    "blank": ("  \n", "P126", None, "the question is empty"),
    "no place": ("write", "P101", "", "expected a place such as `kernel .text`, and the question ends"),
    "unfinished": ("write physical 0x1000 ", "P101", "", "expected `..` or `size`, and the question ends"),
    "unknown symbol": (
        "write kernel:scheduel",
        "P203",
        "kernel:scheduel",
        "there is no symbol `kernel:scheduel`",
    ),
    "unknown field": ("on cr4 with odl = 1", "P209", "odl", "there is no field `odl`"),
    "another statement": ("deny write to idt", "P101", "to", None),
    "two": ("write idt => allow write gdt", "P101", None, None),
    "out of the braces": (
        'write idt => allow } deny write to idt test "" {',
        "P101",
        'write idt => allow } deny write to idt test "" {',
        "this isn't one question",
    ),
    "two cases": (
        "write idt => allow write gdt => allow",
        "P101",
        "write idt => allow write gdt => allow",
        "this isn't one question",
    ),
    "too long": ("write " + "x" * MAX_QUESTION_LENGTH, "P128", None, None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_ask__mistakes_are_shown_in_the_question(name: str) -> None:
    text, code, underlined, message = MISTAKES[name]
    case, found = ask(text, LOOKUP)
    assert (case, [d.code for d in found]) == (None, [code])
    span = found[0].span
    assert message in (None, found[0].message)
    assert span is None or (span.source.text, span.source.name) == (text, "<question>")
    assert underlined is None or (span is not None and span.text == underlined)


def test_ask__without_lookup_places_have_no_bytes() -> None:
    case, found = ask("write kernel:whatever", None)
    assert (found, case is not None) == ([], True)


WORDS = st.sampled_from(["write", "on", "idt", "cr4", "=>", "allow", "}", "{", '"', "test", "with", "=", "1", ",", "+"])


@given(st.text(max_size=60) | st.lists(WORDS).map(" ".join))
def test_ask__says_something_about_any_text(text: str) -> None:
    """No text escapes from its braces: there is one case, or there are reasons, and they lie in the text."""
    case, found = ask(text, LOOKUP)
    assert (case is None) == any(d.severity.value == "error" for d in found)
    for span in (d.span for d in found if d.span is not None):
        assert 0 <= span.start <= span.end <= len(text)
