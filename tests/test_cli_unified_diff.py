"""The difference of two texts is what `diff -u` shows, and as long texts as one likes are compared in time."""

from __future__ import annotations

import difflib
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.cli import unified_diff as module
from policyc.cli.unified_diff import unified_diff

LINES = st.lists(
    st.sampled_from(["a\n", "b\n", "c\n", "\n", "d\r\n", "- e\n", "+ f\n", "@ g\n", "h\x0c\n"]), max_size=30
)
ENDS = st.sampled_from(["", "without an end"])
TEXTS = st.builds(lambda lines, end: "".join(lines) + end, LINES, ENDS)


def patched(old: str, diff: str) -> str:
    """What `patch` makes of the old text: a naive reading of the diff."""
    before, after, position = list(io.StringIO(old)), [], 0
    lines = list(io.StringIO(diff))[2:]
    for number, line in enumerate(lines):
        sign, content = line[0], line[1:]
        if lines[number + 1 : number + 2] == ["\\ No newline at end of file\n"]:
            content = content.removesuffix("\n")
        if sign == "@":
            start, count = re.findall(r"-(\d+)(?:,(\d+))?", line)[0]
            first = int(start) - (count != "0")
            after += before[position:first]
            position = first
        elif sign in " -":
            assert before[position] == content
            position += 1
        if sign in " +":
            after.append(content)
    return "".join(after + before[position:])


def by_difflib(old: str, new: str) -> str:
    """The same by the standard library, which says nothing of a last line without end."""
    before, after = list(io.StringIO(old)), list(io.StringIO(new))
    lines = list(difflib.unified_diff(before, after, "p", "p"))
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in [line.removesuffix("\n") + "\n" if number < 2 else line for number, line in enumerate(lines)]
    )


@given(TEXTS, TEXTS)
@settings(deadline=None)
def test_small_texts__differ_as_the_standard_library_says(old: str, new: str) -> None:
    assert unified_diff(old, new, "p") == by_difflib(old, new)


@given(TEXTS, TEXTS, st.integers(1, 8))
@settings(deadline=None)
def test_windows__leave_nothing_out(old: str, new: str, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        diff = unified_diff(old, new, "p")
    assert patched(old, diff) == new if old != new else diff == ""


def test_windows__find_changes_far_apart() -> None:
    old = [f"line {number}\n" for number in range(3000)]
    new = [*old[:1000], "more\n", *old[1000:2000], *old[2001:]]
    assert unified_diff("".join(old), "".join(new), "p") == by_difflib("".join(old), "".join(new))


def test_diff__whole() -> None:
    old, new = "a\nb\nc\nd\ne\nf", "a\nB\nc\nd\ne\nf\n"
    assert unified_diff(old, new, "my.policy") == (
        "--- my.policy\n+++ my.policy\n@@ -1,6 +1,6 @@\n a\n-b\n+B\n c\n d\n e\n-f\n\\ No newline at end of file\n+f\n"
    )


def test_diff__in_color() -> None:
    assert unified_diff("a\nb\n", "a\nc\n", "p", color=True) == (
        "\x1b[1m--- p\x1b[0m\n"
        "\x1b[1m+++ p\x1b[0m\n"
        "\x1b[36m@@ -1,2 +1,2 @@\x1b[0m\n"
        " a\n"
        "\x1b[31m-b\x1b[0m\n"
        "\x1b[32m+c\x1b[0m\n"
    )
