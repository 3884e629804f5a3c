"""How diagnostics are drawn, sorted, counted and handed to machines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.diagnostics import (
    CODES,
    Diagnostic,
    Source,
    Span,
    did_you_mean,
    has_errors,
    printable,
    render_text,
    sort_diagnostics,
)


def at(source: Source, text: str) -> Span:
    """The span of the first occurrence of `text`."""
    start = source.text.index(text)
    return Span(source, start, start + len(text))


def drawn(text: str, underlined: str, name: str = "a.policy") -> list[str]:
    """The lines drawn for one place: from the position to the mark."""
    rendered = render_text([Diagnostic("P101", "wrong", at(Source(name, text), underlined))])
    head, *lines, empty, count, end = rendered.split("\n")
    assert (head, empty, count, end) == ("error[P101]: wrong", "", "1 error", "")
    return lines


# ---- sources and spans


def test_source__lines_and_columns() -> None:
    source = Source("p", "ab\r\n\ncd")
    assert source.line_count == 3
    assert [source.line_text(line) for line in (1, 2, 3)] == ["ab", "", "cd"]
    assert [source.position(offset) for offset in (0, 2, 4, 5, 7)] == [(1, 1), (1, 3), (2, 1), (3, 1), (3, 3)]
    assert source.position(-5) == (1, 1)
    assert source.position(99) == (3, 3)


@given(st.text(alphabet="a\n\r", max_size=20), st.integers(0, 20))
def test_source__position_counts_line_breaks(text: str, offset: int) -> None:
    before = text[: min(offset, len(text))]
    assert Source("p", text).position(offset) == (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)


def test_source__two_of_the_same_text_are_two() -> None:
    assert Source("p", "a") != Source("p", "a")


def test_span__text_and_joining() -> None:
    source = Source("p", "deny write to x")
    assert at(source, "write").text == "write"
    assert at(source, "write").to(at(source, "x")).text == "write to x"
    assert str(at(source, "write")) == "p:1:6"


# ---- the table of codes


def test_codes__are_rows_of_their_own_name() -> None:
    for name, code in CODES.items():
        assert name == code.name
        assert name[0] == "P"
        assert len(name) == 4
        assert "1" <= name[1] <= "8"
        assert code.title
        assert code.title[-1] != "."
        assert code.explanation.endswith(".")
        assert "\n" not in code.explanation


def test_diagnostic__refuses_an_unknown_code() -> None:
    with pytest.raises(ValueError, match="no such diagnostic code: P000"):
        Diagnostic("P000", "what")


def test_has_errors__looks_at_the_code() -> None:
    assert has_errors([Diagnostic("P127", "more"), Diagnostic("P101", "wrong")])
    assert not has_errors([Diagnostic("P127", "more")])


# ---- suggestions


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [("dney", "deny"), ("DENY", "deny"), ("denies", "deny"), ("xyz", None), ("", None), ("lgo", "log")],
)
def test_did_you_mean(word: str, suggestion: str | None) -> None:
    assert did_you_mean(word, ["log", "deny", "crash"]) == suggestion
    assert did_you_mean(word, iter(["crash", "deny", "log"])) == suggestion


# ---- drawing


def test_render_text__nothing() -> None:
    assert render_text([]) == ""


def test_render_text__place_note_and_help() -> None:
    source = Source("rules/a.policy", 'policy "p"\n\ndeny write to x mode monitor mode enforce\n')
    diagnostic = Diagnostic(
        "P109",
        "`mode` is given twice",
        at(source, "mode enforce"),
        "keep one of the two",
        ((at(source, "mode monitor"), "the first is here"), (None, "a policy has a mode too")),
    )
    assert (
        render_text([diagnostic])
        == """\
error[P109]: `mode` is given twice
 --> rules/a.policy:3:30
  |
3 | deny write to x mode monitor mode enforce
  |                              ^^^^^^^^^^^^
  = note: the first is here
 --> rules/a.policy:3:17
  |
3 | deny write to x mode monitor mode enforce
  |                 ^^^^^^^^^^^^
  = note: a policy has a mode too
  = help: keep one of the two

1 error
"""
    )


def test_render_text__files_are_sorted_and_counted() -> None:
    one, two = Source("1.policy", "\n" * 99 + "abc"), Source("2.policy", "abc")
    diagnostics = [
        Diagnostic("P127", "more", at(two, "c")),
        Diagnostic("P101", "later", at(one, "b")),
        Diagnostic("P101", "sooner", at(one, "a"), notes=((at(two, "a"), "see"),)),
        Diagnostic("P100", "no place"),
    ]
    assert (
        render_text(diagnostics)
        == """\
error[P100]: no place

error[P101]: sooner
   --> 1.policy:100:1
    |
100 | abc
    | ^
    = note: see
   --> 2.policy:1:1
    |
  1 | abc
    | ^

error[P101]: later
   --> 1.policy:100:2
    |
100 | abc
    |  ^

note[P127]: more
 --> 2.policy:1:3
  |
1 | abc
  |   ^

3 errors, 1 note
"""
    )


def test_render_text__in_color_says_the_same() -> None:
    source = Source("a.policy", "deny\twrite")
    diagnostics = [Diagnostic("P101", "wrong", at(source, "write"), "right it"), Diagnostic("P127", "more")]
    colored = render_text(diagnostics, color=True)
    assert "\x1b[1;31merror[P101]\x1b[0m\x1b[1m: wrong\x1b[0m" in colored
    assert "\x1b[1;31m^^^^^\x1b[0m" in colored
    plain = colored
    for style in ("0", "1", "1;31", "1;32", "1;34", "1;36"):
        plain = plain.replace(f"\x1b[{style}m", "")
    assert plain == render_text(diagnostics)


def test_render_text__a_point_at_the_end() -> None:
    source = Source("a.policy", "let x =\n")
    assert (
        render_text([Diagnostic("P102", "early", Span(source, 7, 7))])
        == """\
error[P102]: early
 --> a.policy:1:8
  |
1 | let x =
  |        ^

1 error
"""
    )


def test_render_text__an_empty_source() -> None:
    rendered = render_text([Diagnostic("P126", "empty", Span(Source("-", ""), 0, 0))])
    assert rendered == "error[P126]: empty\n --> -:1:1\n  |\n1 |\n  | ^\n\n1 error\n"


def test_render_text__tabs_and_wide_characters_keep_the_mark_below() -> None:
    assert drawn("\tdeny 漢字 e\u0301 to", "to")[2:] == [
        "1 |     deny 漢字 e\u0301 to",
        "  |                 ^^",
    ]
    assert drawn("漢字", "漢字")[2:] == ["1 | 漢字", "  | ^^^^"]
    assert drawn("a\tb c", "\tb")[2:] == ["1 | a    b c", "  |  ^^^^^"]


def test_render_text__a_place_of_several_lines() -> None:
    assert drawn("on cr4\n    when a\n\n    deny now", "cr4\n    when a\n\n    deny") == [
        " --> a.policy:1:4",
        "  |",
        "1 | on cr4",
        "  |    ^^^",
        "2 |     when a",
        "  |     ^^^^^^",
        "3 |",
        "4 |     deny now",
        "  |     ^^^^",
    ]


def test_render_text__a_place_of_many_lines_is_cut() -> None:
    text = "".join(f"line {number}\n" for number in range(1, 21))
    lines = drawn(text, text)
    assert [line for line in lines if "^" not in line] == [
        "  --> a.policy:1:1",
        "   |",
        " 1 | line 1",
        " 2 | line 2",
        " 3 | line 3",
        "...",
        "18 | line 18",
        "19 | line 19",
        "20 | line 20",
    ]


def test_render_text__a_long_line_is_cut_around_the_place() -> None:
    lines = drawn("a" * 5000 + " wrong " + "b" * 5000, "wrong")
    assert lines[2:] == [
        "1 | ..." + "a" * 29 + " wrong " + "b" * 64 + "...",
        "  |    " + " " * 30 + "^^^^^",
    ]
    lines = drawn("wrong" * 100, "wrong" * 100)
    assert lines[2:] == ["1 | " + "wrong" * 20 + "...", "  | " + "^" * 100]


def test_render_text__nothing_of_the_input_reaches_the_terminal_raw() -> None:
    source = Source("evil\x1b[2J.policy", 'deny "\x1b[31m\x07\u202ex" here\r\n')
    diagnostic = Diagnostic("P101", "wrong `\x1b`", at(source, "here"), "not `\x9b`", ((None, "\x00"),))
    assert (
        render_text([diagnostic])
        == """\
error[P101]: wrong `<U+001B>`
 --> evil<U+001B>[2J.policy:1:17
  |
1 | deny "<U+001B>[31m<U+0007><U+202E>x" here
  |                                      ^^^^
  = note: <U+0000>
  = help: not `<U+009B>`

1 error
"""
    )


@given(st.text(max_size=300), st.integers(0, 300), st.integers(0, 300))
def test_render_text__is_safe_for_any_text_and_place(text: str, start: int, size: int) -> None:
    source = Source(text[:10], text)
    span = Span(source, min(start, len(text)), min(start + size, len(text)))
    rendered = render_text([Diagnostic("P101", text, span, text, ((span, text),))])
    assert all(char.isprintable() or char == "\n" for char in rendered)
    assert "^" in rendered


def test_printable() -> None:
    assert printable("plain text") == "plain text"
    assert printable("é 漢 \n\ud800") == "é 漢 <U+000A><U+D800>"


# ---- order and machines


def test_sort_diagnostics__by_file_place_and_code() -> None:
    one, two = Source("1", "ab"), Source("2", "ab")
    wanted = [
        Diagnostic("P101", "no place"),
        Diagnostic("P101", "x", Span(one, 0, 1)),
        Diagnostic("P101", "y", Span(one, 0, 1)),
        Diagnostic("P102", "x", Span(one, 0, 1)),
        Diagnostic("P101", "x", Span(one, 1, 2)),
        Diagnostic("P101", "x", Span(two, 0, 1)),
    ]
    assert sort_diagnostics(reversed(wanted)) == wanted


def test_to_json__holds_everything() -> None:
    source = Source("a.policy", "deny\nwrite to x")
    diagnostic = Diagnostic(
        "P101", "wrong", at(source, "write"), "right it", ((None, "a note"), (at(source, "x"), "x"))
    )
    place = {"file": "a.policy", "line": 2, "end_line": 2}
    assert json.loads(json.dumps(diagnostic.to_json())) == {
        "code": "P101",
        "severity": "error",
        "title": CODES["P101"].title,
        "message": "wrong",
        "span": {**place, "start": 5, "end": 10, "column": 1, "end_column": 6},
        "help": "right it",
        "notes": [
            {"span": None, "message": "a note"},
            {"span": {**place, "start": 14, "end": 15, "column": 10, "end_column": 11}, "message": "x"},
        ],
    }
