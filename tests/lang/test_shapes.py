"""Statements of a known shape are built without Lark, and are what Lark makes of them."""

from __future__ import annotations

import gc
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.diagnostics import Diagnostic, Source
from policyc.lang.limits import MAX_DEPTH
from policyc.lang.parse import parse
from policyc.lang.shapes import MAX_SHAPES, MAX_WORDS, Shapes
from policyc.lang.text_to_tree import Failure, Parser, load_parser
from policyc.lang.tree_to_ast import tree_to_statements
from tests.support.lang_nodes import EFFECT_WORDS, shown
from tests.support.lang_texts import BLANKS, DATES, DURATIONS, NAMES, NUMBERS, SECTIONS, SYMBOLS, TEXTS, statements

if TYPE_CHECKING:
    from policyc.lang import ast

LITERALS = (NAMES, NUMBERS, TEXTS, SYMBOLS, SECTIONS, DATES, DURATIONS)


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Parser:
    """The parser, with no shape known."""
    parser = load_parser(EFFECT_WORDS)
    monkeypatch.setattr(parser, "shapes", Shapes(parser.patterns, [*parser.keywords.values(), *EFFECT_WORDS]))
    return parser


def by_lark(source: Source) -> tuple[list[ast.Statement], list[Diagnostic]]:
    """What Lark makes of the whole text."""
    tree = load_parser(EFFECT_WORDS).to_tree(source.text)
    assert not isinstance(tree, Failure)
    diagnostics: list[Diagnostic] = []
    return tree_to_statements(tree, source, 0, diagnostics)[1], diagnostics


def varied(words: list[str], rng: random.Random) -> str:
    """The words with other literals and another layout, as lines that begin in the first column."""
    chosen = [next((rng.choice(kind) for kind in LITERALS if word in kind), word) for word in words]
    return "".join(word + rng.choice(BLANKS) for word in chosen) + "\n"


@given(st.lists(statements, min_size=1, max_size=3), st.integers(0, 2**32))
def test_a_known_shape__gives_the_tree_that_lark_gives(many: list[list[str]], seed: int) -> None:
    rng = random.Random(seed)
    source = Source("p", "".join(varied(words, rng) for _ in range(4) for words in many))
    wanted, found = by_lark(source)
    file, diagnostics = parse(source, EFFECT_WORDS)
    assert diagnostics == found
    assert file
    assert shown(file.statements) == shown(tuple(wanted))


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("guard: deny write to kernel:x\n", "other:  deny write to nt:sched_fork  # why\n"),
        ("on hypercall 34/24 log\n", "on msr 0xc000_0082/7 log\n"),
        (
            'deny write to kernel:x + 8 size 4K except from a because "b" owner "c" until 2027-06-30\n',
            'deny read to nt:y + 0x10 size 1 except from d because "" owner "#" until 2030-01-01\n',
        ),
        ("watch idt every 5s restore at most 3 per second\n", "watch gdt every 500ms restore at most 7 per minute\n"),
        ("on cr4 when ~(old | 3) & new != 0x10 and rip in module m .text deny\n", None),
        ('test "t" {\n    write kernel:x from 0x10 with cpl = 3 => deny\n    on cr0 => inject gp\n}\n', None),
        ('import "a"\n', 'import "b"\n'),
        ("log read of kernel:x + 8, kernel:y - 8\n", "log read of nt:a + 0x1_0,  nt:b -  4K\n"),
    ],
)
def test_a_shape__is_known_when_it_comes_for_the_third_time(parser: Parser, first: str, other: str | None) -> None:
    other = other or first
    source = Source("p", first + first + other)
    parse(source, EFFECT_WORDS)
    start = 2 * len(first)
    built = parser.shapes.build(source, start, len(source.text))
    assert built is not None
    (wanted,) = by_lark(source)[0][2:]
    assert shown(built) == shown((wanted,))
    assert parser.shapes.build(Source("p", first), 0, len(first)) is not None


@pytest.mark.parametrize(
    ("first", "other", "code"),
    [
        ("deny write to 5\n", "deny write to 99999999999999999999\n", "P112"),
        ("watch a every 5s\n", "watch a every 0s\n", "P112"),
        (
            'log write to a except when b because "c" until 2027-06-30\n',
            'log write to a except when b because "c" until 2027-02-30\n',
            "P114",
        ),
    ],
)
def test_a_known_shape__with_a_literal_out_of_range_is_diagnosed(
    parser: Parser, first: str, other: str, code: str
) -> None:
    source = Source("p", first * 3 + other)
    file, diagnostics = parse(source, EFFECT_WORDS)
    assert file is None
    assert diagnostics == by_lark(source)[1]
    assert [diagnostic.code for diagnostic in diagnostics] == [code]


def test_a_known_shape__does_not_hide_the_mistake_of_another(parser: Parser) -> None:
    right = "deny write to kernel .text\n"
    assert parse(Source("p", right * 3), EFFECT_WORDS)[0]
    for wrong in ("deny write to kernel.text\n", "dney write to kernel .text\n", "deny write to kernel text\n"):
        (diagnostic,) = parse(Source("p", right * 3 + wrong + right), EFFECT_WORDS)[1]
        assert diagnostic.span
        assert diagnostic.span.source.position(diagnostic.span.start)[0] == 4


def test_a_header__is_no_shape(parser: Parser) -> None:
    for _ in range(3):
        file, diagnostics = parse(Source("p", 'policy "a"\non cr0 log\n'), EFFECT_WORDS)
        assert file
        assert file.header
        assert not diagnostics


def test_shapes__long_and_many_ones_are_not_remembered(parser: Parser, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "let a = " + ", ".join(["b"] * MAX_WORDS) + "\n"
    source = Source("p", long)
    for _ in range(3):
        parse(source, EFFECT_WORDS)
    assert parser.shapes.build(source, 0, len(long)) is None
    assert MAX_SHAPES > 1
    monkeypatch.setattr("policyc.lang.shapes.MAX_SHAPES", 1)
    for text in ("on cr0 log\n", "on cr0 pin wp\n"):
        for _ in range(3):
            parse(Source("p", text), EFFECT_WORDS)
    assert parser.shapes.build(Source("p", "on cr4 log\n"), 0, 11) is not None
    assert parser.shapes.build(Source("p", "on cr0 pin pg\n"), 0, 14) is None


def test_shapes__forgetting_the_classes_of_words_changes_nothing(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("policyc.lang.shapes.MAX_CLASSIFIED", 5)
    source = Source("p", "".join(f"g{n}: deny write to kernel:s{n} + {n} severity high # {n}\n" for n in range(9)))
    file, diagnostics = parse(source, EFFECT_WORDS)
    assert diagnostics == []
    assert file
    assert shown(file.statements) == shown(tuple(by_lark(source)[0]))


def test_shapes__the_deepest_nesting_is_remembered_too(parser: Parser) -> None:
    text = f"on cr3 when {'not ' * (MAX_DEPTH - 1)}cpl deny\n"
    source = Source("p", text * 3)
    file, diagnostics = parse(source, EFFECT_WORDS)
    assert diagnostics == []
    assert file
    assert shown(file.statements) == shown(tuple(by_lark(source)[0]))
    built = parser.shapes.build(source, 2 * len(text), len(source.text))
    assert built is not None
    assert shown(built) == shown(file.statements[2:])


def test_shapes__a_text_without_statements_has_one_too(parser: Parser) -> None:
    for _ in range(3):
        assert [found.code for found in parse(Source("p", "# nothing\n"), EFFECT_WORDS)[1]] == ["P126"]
    assert parser.shapes.build(Source("p", " # nothing at all"), 0, 17) == ()


def test_parse__leaves_the_garbage_collector_as_it_was() -> None:
    assert gc.isenabled()
    parse(Source("p", "on cr0 log"), EFFECT_WORDS)
    assert gc.isenabled()
    gc.disable()
    try:
        parse(Source("p", "on cr0 log"), EFFECT_WORDS)
        assert not gc.isenabled()
    finally:
        gc.enable()
