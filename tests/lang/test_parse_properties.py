"""What holds for every text: nothing raises, and reading piece by piece changes nothing of what Lark says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policyc.diagnostics import CODES, Diagnostic, Severity, Source, has_errors, render_text
from policyc.lang.parse import parse
from policyc.lang.read import decode_source
from policyc.lang.text_to_tree import Failure, load_parser
from policyc.lang.tree_to_ast import tree_to_statements
from tests.support.lang_nodes import EFFECT_WORDS, shown
from tests.support.lang_texts import any_words, laid_out, policies

PARSER = load_parser(EFFECT_WORDS)


def check_is_explained(text: str) -> None:
    """Parse any text, and look at what is said about it."""
    source = Source("any.policy", text)
    file, diagnostics = parse(source, EFFECT_WORDS)
    assert (file is None) == has_errors(diagnostics)
    terminals = set(PARSER.patterns) - {word.upper() for word in PARSER.keywords.values()}
    for diagnostic in diagnostics:
        assert diagnostic.code in CODES
        assert diagnostic.code.startswith("P1")
        assert diagnostic.span
        assert 0 <= diagnostic.span.start <= diagnostic.span.end <= len(text)
        said = diagnostic.message + (diagnostic.help or "")
        assert "\n" not in said
        for terminal in terminals:
            assert terminal not in said.replace(diagnostic.span.text, "").split()
    assert all(char.isprintable() or char == "\n" for char in render_text(diagnostics))


@given(laid_out(any_words))
def test_any_words__are_explained(text: str) -> None:
    check_is_explained(text)


@given(st.text(max_size=60))
def test_any_text__is_explained(text: str) -> None:
    check_is_explained(text)


@given(st.binary(max_size=60))
def test_any_bytes__are_explained(data: bytes) -> None:
    source = decode_source("any.policy", data)
    if isinstance(source, Source):
        check_is_explained(source.text)
    else:
        assert source.severity is Severity.ERROR


@given(laid_out(policies), st.integers(0, 400), st.integers(0, 3))
def test_a_policy_with_a_piece_cut_out__is_explained(text: str, at: int, size: int) -> None:
    check_is_explained(text[:at] + text[at + size :])


@given(laid_out(policies))
def test_a_policy__is_what_the_grammar_says_of_the_whole_text(text: str) -> None:
    source = Source("right.policy", text)
    tree = PARSER.to_tree(text)
    assert not isinstance(tree, Failure)
    header, statements = tree_to_statements(tree, source, 0, [])
    file, diagnostics = parse(source, EFFECT_WORDS)
    assert diagnostics == []
    assert file
    assert shown((file.header, file.statements)) == shown((header, tuple(statements)))


@given(laid_out(any_words | policies))
def test_a_text__is_wrong_exactly_if_the_grammar_refuses_it(text: str) -> None:
    source = Source("any.policy", text)
    _, diagnostics = parse(source, EFFECT_WORDS)
    tree = PARSER.to_tree(text)
    if isinstance(tree, Failure):
        assert diagnostics
    else:
        wanted: list[Diagnostic] = []
        tree_to_statements(tree, source, 0, wanted)
        assert [d for d in diagnostics if d.code not in ("P115", "P126")] == wanted
