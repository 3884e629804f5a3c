"""What each mistake in a policy's text is called, where it is underlined, and what help is given."""

from __future__ import annotations

from pathlib import Path

import pytest

import policyc.lang
from policyc.diagnostics import CODES, Source, has_errors
from policyc.lang.limits import MAX_DEPTH, MAX_ERRORS
from policyc.lang.parse import parse
from tests.support.lang_nodes import EFFECT_WORDS, parsed


def found(text: str) -> list[tuple[str, str, str]]:
    """Code, underlined text and message of all that is wrong with a text."""
    file, diagnostics = parse(Source("test.policy", text), EFFECT_WORDS)
    assert (file is None) == has_errors(diagnostics)
    assert all(diagnostic.span for diagnostic in diagnostics)
    return [(d.code, d.span.text, d.message) for d in diagnostics if d.span]


MISTAKES = [
    (
        "dney write to kernel .text",
        "P106",
        "dney",
        "no statement begins with `dney`",
        "did you mean `deny`?",
    ),
    (
        "write to kernel .text deny",
        "P106",
        "write",
        "no statement begins with `write`",
        "a statement begins with an effect such as `deny`, or with `on`, `let`, `watch`, `test` or `import`",
    ),
    (
        "severity high",
        "P106",
        "severity",
        "no statement begins with `severity`",
        "a clause stands behind the rule that it belongs to",
    ),
    (
        "deny write to kernel .text denied",
        "P101",
        "denied",
        "expected a clause or a new statement, found `denied`",
        "did you mean `deny`?",
    ),
    (
        "deny write to kernel.text",
        "P110",
        "kernel.text",
        "`kernel.text` runs an image and its section together",
        "write `kernel .text`",
    ),
    (
        "deny write to win32k.sys .text",
        "P110",
        "win32k.sys",
        "`win32k.sys` runs an image and its section together",
        'quote the file name of a module, as in `module "win32k.sys" .text`',
    ),
    (
        "deny write kernel .text",
        "P101",
        "kernel",
        "`to` is missing before `kernel`",
        "write `write to kernel`",
    ),
    (
        "deny write too kernel .text",
        "P101",
        "too",
        "expected `to`, `of` or `,`, found `too`",
        "did you mean `to`?",
    ),
    (
        "deny write tokernel .text",
        "P101",
        "tokernel",
        "`to` is missing before `tokernel`",
        "write `write to tokernel`",
    ),
    (
        "deny write to kernel text",
        "P101",
        "kernel text",
        "`text` isn't written as a section",
        'write `kernel .text`, or `kernel "text"` if its name has no dot',
    ),
    (
        "deny write to nt PAGE",
        "P101",
        "nt PAGE",
        "`PAGE` isn't written as a section",
        'write `nt .PAGE`, or `nt "PAGE"` if its name has no dot',
    ),
    (
        "deny write to kernel:a kernel:b",
        "P101",
        "kernel:b",
        "a `,` is missing before `kernel:b`",
        "write `,` between places",
    ),
    (
        "deny write to 0x1000..0x2000",
        "P101",
        "0x1000",
        "a range of addresses says of which kind they are",
        "write `virtual 0x1000..0x2000` or `physical 0x1000..0x2000`",
    ),
    (
        "deny write to 0x1000 size 16",
        "P101",
        "0x1000",
        "a range of addresses says of which kind they are",
        "write `virtual 0x1000 size 16` or `physical 0x1000 size 16`",
    ),
    (
        "deny write to physical 0x1000 + 16",
        "P101",
        "+",
        "expected `..` or `size`, found `+`",
        None,
    ),
    (
        "deny write to kernel: text",
        "P103",
        ":",
        "`:` isn't used here",
        "a symbol is one word, as in `kernel:schedule`; a label has its colon directly behind it and a blank next",
    ),
    (
        "deny write to physical 12abc size 3",
        "P113",
        "12abc",
        "`12abc` is no number",
        "a number is decimal or `0x` and hexadecimal digits, and K, M or G may follow",
    ),
    (
        "deny write to physical 5s size 3",
        "P113",
        "5s",
        "`5s` is no number",
        "a number is decimal or `0x` and hexadecimal digits, and K, M or G may follow",
    ),
    (
        "deny write to kernel:x + 99999999999999999999",
        "P112",
        "99999999999999999999",
        "`99999999999999999999` is larger than 2**64",
        None,
    ),
    (
        "deny by fault write to kernel .text",
        "P107",
        "by fault",
        "`by fault` stands before the access",
        "write `deny ACCESS to PLACE by fault`",
    ),
    (
        "deny write to x by",
        "P102",
        "",
        "the statement ends too early: expected `skip` or `fault`",
        None,
    ),
    (
        "deny write to x severity",
        "P102",
        "",
        "the statement ends too early: expected a severity such as `high`",
        None,
    ),
    (
        "deny write to x tag high",
        "P101",
        "high",
        "expected a text in quotes, found `high`",
        'write `"high"`',
    ),
    (
        "deny write to x at most 5 second",
        "P101",
        "second",
        "expected `per`, found `second`",
        None,
    ),
    (
        'deny write to x because "a" because "b"',
        "P109",
        'because "b"',
        "`because` is given twice",
        "keep one of the two",
    ),
    (
        "deny write to x severity low severity high",
        "P109",
        "severity high",
        "`severity` is given twice",
        "keep one of the two",
    ),
    (
        "deny write to x except from kernel:a",
        "P108",
        "except from kernel:a",
        "the exception gives no reason",
        'add `because "…"`: why may this code do what the rule forbids',
    ),
    (
        "deny write to x except from kernel:a severity high",
        "P108",
        "except from kernel:a",
        "the exception gives no reason",
        'add `because "…"`: why may this code do what the rule forbids',
    ),
    (
        "deny write to x except from kernel:a until 2027-06-30",
        "P108",
        "except from kernel:a",
        "the exception gives no reason",
        'add `because "…"`: why may this code do what the rule forbids',
    ),
    (
        "deny write to x except when cpl",
        "P108",
        "except when cpl",
        "the exception gives no reason",
        'add `because "…"`: why may this code do what the rule forbids',
    ),
    (
        'deny write to x except because "why"',
        "P101",
        "except",
        "the exception doesn't say for what",
        'write `except from CODE because "…"` or `except when CONDITION because "…"`',
    ),
    (
        "deny write to x until 2027-06-30",
        "P107",
        "until",
        "`until` belongs to an exception",
        'write it directly behind the exception\'s `because "…"`',
    ),
    (
        'deny write to x except from a because "b" severity low owner "me"',
        "P107",
        "owner",
        "`owner` stands too late",
        "the rule's owner stands before the first exception, that of an exception directly behind its reason",
    ),
    (
        'deny write to x except from a because "y" until 2027-02-30',
        "P114",
        "2027-02-30",
        "`2027-02-30` is no day of the calendar",
        "a date is written YEAR-MONTH-DAY",
    ),
    (
        'deny write to x except from a because "y" until 2027-6-30',
        "P113",
        "2027-6-30",
        "`2027-6-30` is no date",
        "write a date as in `2027-06-30`",
    ),
    (
        'deny write to x because "y',
        "P104",
        '"y',
        "the quoted text isn't closed on its line",
        'add the closing `"`',
    ),
    (
        'deny write to "',
        "P104",
        '"',
        "the quoted text isn't closed on its line",
        'add the closing `"`',
    ),
    (
        "deny write to 'x'",
        "P103",
        "'",
        "`'` isn't used here",
        'quoted texts stand in `"`',
    ),
    (
        "deny write to “x”",
        "P103",
        "“",
        "`“` isn't used here",
        'quoted texts stand in plain `"`',
    ),
    (
        "deny write to x;",
        "P103",
        ";",
        "`;` isn't used here",
        "a statement ends where the next one begins; take the `;` out",
    ),
    (
        "deny write to x // no",
        "P101",
        "//",
        "`//` isn't used here",
        "a comment begins with `#`",
    ),
    (
        "deny write to d\u0435ny",
        "P103",
        "\u0435",
        "`\u0435` (U+0435) begins nothing that the language has",
        "names are made of ASCII letters, digits, `_` and `-`",
    ),
    (
        "deny write to x)",
        "P105",
        ")",
        "this `)` closes nothing",
        "take it out",
    ),
    (
        "guard:deny write to x",
        "P101",
        "guard:deny",
        "a blank is missing behind the label",
        "write `guard: deny`",
    ),
    (
        "let x =",
        "P102",
        "",
        "the statement ends too early: expected a place such as `kernel .text`",
        None,
    ),
    (
        "let = kernel:x",
        "P101",
        "=",
        "expected a name, found `=`",
        None,
    ),
    (
        "let log",
        "P102",
        "",
        "the statement ends too early: expected `=`",
        None,
    ),
    (
        "log on hypercall 34/24",
        "P107",
        "log",
        "the effect `log` stands before its event",
        "write `on hypercall 34/24 log`",
    ),
    (
        "log on msr 1 2 3 4 5 6",
        "P107",
        "log",
        "the effect `log` stands before its event",
        "write `on EVENT EFFECT`",
    ),
    (
        "on cr4 dney",
        "P106",
        "dney",
        "no effect is called `dney`",
        "did you mean `deny`?",
    ),
    (
        "on cr4",
        "P102",
        "",
        "the statement ends too early: expected an effect such as `deny`, a name, a number or `when`",
        None,
    ),
    (
        "on trap gp inject",
        "P102",
        "",
        "the statement ends too early: expected an exception such as `gp` or a number",
        None,
    ),
    (
        "on msr lstar deny write",
        "P107",
        "write",
        "`write` stands behind the effect",
        "write `on msr lstar write deny`",
    ),
    (
        "on msr lstar deny when old != 0",
        "P107",
        "when old != 0",
        "the `when` of an event rule stands before its effect",
        "write `on EVENT when CONDITION EFFECT`",
    ),
    (
        "on cr4 clears(smep) deny",
        "P101",
        "clears(",
        "a condition begins with `when`",
        "write `when clears(…)`",
    ),
    (
        "on msr lstar old != 0 deny",
        "P101",
        "old !=",
        "a condition begins with `when`",
        "write `when old != …`",
    ),
    (
        "on msr lstar when old = 0 deny",
        "P101",
        "=",
        "`=` isn't used here",
        "write `==` to compare",
    ),
    (
        "on cr4 when a && b deny",
        "P101",
        "&&",
        "`&&` isn't used here",
        "write `and` between conditions",
    ),
    (
        "on cr4 when a || b deny",
        "P101",
        "||",
        "`||` isn't used here",
        "write `or` between conditions",
    ),
    (
        "on cr4 when !a deny",
        "P103",
        "!",
        "`!` isn't used here",
        "write `not`",
    ),
    (
        "on cr4 when (a and b deny",
        "P105",
        "(",
        "the `(` is never closed",
        "add the closing `)`",
    ),
    (
        "on cr4 when a b deny",
        "P101",
        "b",
        "expected an operator such as `==` or `and` or an effect such as `deny`, found `b`",
        None,
    ),
    (
        "on cr4 when deny",
        "P102",
        "",
        "the statement ends too early: expected an operator such as `==` or `and` or an effect such as `deny`",
        "`deny` is read as a name here",
    ),
    (
        "on cr0 pin wp, pg",
        "P101",
        ",",
        "bits aren't joined with `,`",
        "write `|` between them",
    ),
    (
        "on cr0 retry then log",
        "P101",
        "then",
        "expected a number, found `then`",
        None,
    ),
    (
        "on hypercall 34/ log",
        "P101",
        "log",
        "expected a number, found `log`",
        None,
    ),
    (
        "watch idt restore every 1s",
        "P107",
        "restore",
        "`restore` stands before the time",
        "write `every 1s restore`",
    ),
    (
        "watch idt every 5",
        "P113",
        "5",
        "the time `5` has no unit",
        "write `5s`",
    ),
    (
        "watch idt every 5x",
        "P113",
        "5x",
        "`5x` is no time",
        "a time is a number and `ms`, `s`, `m` or `h`, as in `5s`",
    ),
    (
        "watch idt every 0s",
        "P112",
        "0s",
        "`0s` isn't a time between 1ms and a year",
        None,
    ),
    (
        "watch idt every 9999h",
        "P112",
        "9999h",
        "`9999h` isn't a time between 1ms and a year",
        None,
    ),
    (
        'test "t" { write x -> deny }',
        "P101",
        "->",
        "`->` isn't used here",
        "write `=>`",
    ),
    (
        'test "t" { write x }',
        "P101",
        "}",
        "expected `=>`, `from` or `with`, found `}`",
        None,
    ),
    (
        'test "t" {',
        "P105",
        "{",
        "the `{` is never closed",
        "add the closing `}`",
    ),
    (
        'test "t" { write x = deny }',
        "P101",
        "=",
        "`=` isn't used here",
        "write `=>`",
    ),
    (
        "}",
        "P105",
        "}",
        "this `}` closes nothing",
        "take it out",
    ),
    (
        "for linux x86_64",
        "P107",
        "for",
        "`for` belongs to a header",
        'write `policy "name" for …`',
    ),
    (
        'deny write to x policy "late"',
        "P111",
        "policy",
        "the header stands once, before every other statement",
        "move it to the top",
    ),
    (
        'policy "a" mode monitor mode enforce on cr0 log',
        "P109",
        "mode enforce",
        "`mode` is given twice",
        "keep one of the two",
    ),
    (
        "policy linux",
        "P101",
        "linux",
        "expected a text in quotes, found `linux`",
        'write `"linux"`',
    ),
    (
        "import base",
        "P101",
        "base",
        "expected a text in quotes, found `base`",
        'write `"base"`',
    ),
]


@pytest.mark.parametrize(("text", "code", "underlined", "message", "help"), MISTAKES)
def test_mistake(text: str, code: str, underlined: str, message: str, help: str | None) -> None:
    file, diagnostics = parse(Source("test.policy", text), EFFECT_WORDS)
    assert file is None
    (diagnostic,) = diagnostics
    assert diagnostic.span
    assert (diagnostic.code, diagnostic.span.text, diagnostic.message, diagnostic.help) == (
        code,
        underlined,
        message,
        help,
    )


def test_mistake__at_the_end_is_placed_behind_the_last_word() -> None:
    _, (diagnostic,) = parse(Source("p", "let x =   # a place\n\n"), EFFECT_WORDS)
    assert diagnostic.span
    assert (diagnostic.span.start, diagnostic.span.end) == (7, 7)


def test_clause_twice__the_note_shows_the_first() -> None:
    _, (diagnostic,) = parse(Source("p", 'deny write to x tag "a" mode monitor mode enforce'), EFFECT_WORDS)
    ((span, text),) = diagnostic.notes
    assert span
    assert (span.text, text) == ("mode monitor", "the first is here")


# ---- many mistakes at once


def test_all_mistakes_are_reported__one_a_statement() -> None:
    text = """policy "p"
dney write to kernel .text
deny write to kernel.text
    severity high
let x =
deny write to kernel .rodata
    except from kernel:a
    severity high
on cr4 deny
hurz
foo bar
    baz
inject
crash write to
"""
    assert [(code, underlined) for code, underlined, _ in found(text)] == [
        ("P106", "dney"),
        ("P110", "kernel.text"),
        ("P102", ""),
        ("P108", "except from kernel:a"),
        ("P106", "hurz"),
        ("P106", "foo"),
        ("P102", ""),
        ("P102", ""),
    ]


def test_mistakes_of_syntax_and_of_clauses_are_reported_together() -> None:
    text = "deny write to x mode monitor mode enforce\ndeny write\nwatch x every 0s\n"
    assert [code for code, _, _ in found(text)] == ["P109", "P102", "P112"]


def test_an_unfinished_statement__does_not_swallow_the_next() -> None:
    assert found("on cr4 when cpl\nlet x = kernel:y\n") == [
        (
            "P102",
            "",
            "the statement ends too early: expected an operator such as `==` or `and` or an effect such as `deny`",
        )
    ]


def test_an_indented_line__belongs_to_the_statement_before() -> None:
    assert found("on cr4\n  deny\n  sevrity high\n") == [
        ("P106", "sevrity", "no statement or clause begins with `sevrity`")
    ]


def test_test_block__reports_each_case() -> None:
    text = """test "t" {
    write idt => foo
    write idt
        from kernel:x => deny
    write => deny
    on cr4 wiht old = 0 => deny
    on cr4 => log
}
deny write to kernel.text
"""
    assert [(code, underlined) for code, underlined, _ in found(text)] == [
        ("P101", "foo"),
        ("P101", "=>"),
        ("P101", "="),
        ("P110", "kernel.text"),
    ]


def test_test_block__unclosed_leaves_the_statements_below_readable() -> None:
    block = "{\n    write idt => deny\n"
    text = f'test "t" {block}\ndeny write to a.b\ntest "u" {block}}}\ndeny write to c.d\n'
    assert [(code, underlined) for code, underlined, _ in found(text)] == [
        ("P105", "{"),
        ("P110", "a.b"),
        ("P110", "c.d"),
    ]


def test_braces_in_texts_and_comments_do_not_count() -> None:
    file = parsed('deny write to x because "{" # {\ntest "}" { # }\n on cr4 => log\n}\non cr0 log')
    assert len(file.statements) == 3


def test_header__late_or_twice() -> None:
    late = ("P111", 'policy "b"', "the header stands once, before every other statement")
    assert found('on cr0 log\npolicy "b"') == [late]
    assert found('policy "a"\npolicy "b"\non cr0 log') == [late]


# ---- limits and characters


def test_empty_policy() -> None:
    for text in ("", "\n# nothing\n", 'policy "p" mode monitor'):
        assert found(text) == [("P126", "", "the policy is empty")]


def test_depth__at_the_limit_and_over_it() -> None:
    parsed(f"on cr3 when {'not ' * MAX_DEPTH}cpl deny")
    parsed(f"on cr3 when {'(' * 1000}cpl{')' * 1000} deny")
    parsed(f"on cr3 {'retry 1 then ' * MAX_DEPTH}deny")
    message = f"this is nested more than {MAX_DEPTH} deep"
    assert found(f"on cr3 when {'not ' * (MAX_DEPTH + 1)}cpl deny") == [("P124", "n", message)]
    assert found(f"on cr3 when {'~' * 5000}cpl deny") == [("P124", "~", message)]
    assert found(f"on cr3 {'retry 1 then ' * (MAX_DEPTH + 1)}deny") == [("P124", "r", message)]


def test_errors__no_more_than_the_limit_are_shown() -> None:
    shown = found("dney write to x\n" * (MAX_ERRORS + 50))
    assert [code for code, _, _ in shown] == ["P106"] * MAX_ERRORS + ["P127"]


def test_statement__longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ", ".join(["kernel:some_symbol"] * 10)
    text = f"let x = {names}\n"
    monkeypatch.setattr("policyc.lang.parse.MAX_STATEMENT_LENGTH", len(text))
    assert found(text) == []
    too_long = ("P128", "l", f"the statement is longer than {len(text)} characters")
    assert found(f"let x = {names},\n{names}\nlet y = idt\n") == [too_long]
    assert found(f"let x = kernel:x kernel:y, {names}\nlet y = idt\n{text}, idt") == [
        ("P101", "kernel:y", "a `,` is missing before `kernel:y`"),
        too_long,
    ]


def test_statements__more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.lang.parse.MAX_STATEMENTS", 3)
    assert len(parsed("on cr0 log\n" * 3).statements) == 3
    assert found("on cr0 log\n" * 5) == [("P125", "o", "the file has more than 3 statements")]


@pytest.mark.parametrize(
    "character", ["\x00", "\x1b", "\x7f", "\x85", "\u200b", "\u202e", "\u2028", "\ufeff", "\ud800"]
)
def test_unseen_characters__are_reported_wherever_they_stand(character: str) -> None:
    message = f"the character U+{ord(character):04X} can't be seen or is acted on where it is printed"
    wanted = [("P115", character, message)]
    assert found(f'on cr0 log because "a{character}b"') == wanted
    assert found(f"on cr0 log # a{character}b") == wanted
    assert found(f"on cr0 {character}log") == wanted


def test_carriage_return__stands_before_a_line_feed_alone() -> None:
    assert len(parsed("on cr0 log\r\non cr3 log\r\n").statements) == 2
    assert [code for code, _, _ in found("on cr0 log # harmless\ron cr3 log")] == ["P115"]


def test_messages__follow_the_house_style() -> None:
    for text, *_ in MISTAKES:
        for diagnostic in parse(Source("p", text), EFFECT_WORDS)[1]:
            for sentence in (diagnostic.message, diagnostic.help or "fine"):
                assert "\n" not in sentence
                assert not sentence.endswith(".")
                assert not sentence[0].isupper()
                assert sentence.count("`") % 2 == 0
            assert diagnostic.code in CODES


def test_codes__each_of_this_stage_is_used() -> None:
    folder = Path(policyc.lang.__file__).parent
    used = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    for code in CODES:
        assert (f'"{code}"' in used) == code.startswith("P1")
