"""The grammar itself: no conflicts, words told apart, and examples that are right."""

from __future__ import annotations

import functools
import re

import pytest
from lark import Lark
from lark.exceptions import GrammarError, LexError
from lark.parsers.lalr_analysis import LALR_Analyzer

from policyc.lang import expected
from policyc.lang.text_to_tree import grammar_text, load_parser
from policyc.lang.tree_to_ast import CASES, STATEMENTS
from policyc.lang.tree_to_parts import EXPRESSIONS, PLACES
from tests.support.lang_nodes import EFFECT_WORDS, parsed
from tests.support.lang_texts import DATES, DURATIONS, LABELS, NAMES, NUMBERS, SECTIONS, SYMBOLS, TEXTS


def analyze(grammar: str) -> None:
    """Build the parser's tables as Lark does in its strict mode, where every conflict is an error."""
    lark = Lark(grammar, parser="lalr", start=["policy_file", "access_case", "event_case"])
    analyzer = LALR_Analyzer(lark.parser.parser_conf, strict=True)
    analyzer.compute_lalr()  # type: ignore[no-untyped-call]


def test_grammar__has_no_conflicts() -> None:
    analyze(grammar_text())


def test_grammar__a_conflict_would_be_seen() -> None:
    ambiguous = grammar_text().replace("(_clause | owner)* (exemption _clause*)*", "(_clause | owner | exemption)*")
    assert ambiguous != grammar_text()
    with pytest.raises(GrammarError, match="Shift/Reduce conflict for terminal OWNER"):
        analyze(ambiguous)


def load_strictly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the parser as it is, but for Lark's strict mode: no conflicts, and no text that two terminals would match.

    (Of terminals with the same priority, where the grammar allows both.)
    """
    monkeypatch.setattr("lark.Lark", functools.partial(Lark, strict=True))
    load_parser.__wrapped__(EFFECT_WORDS)


def test_grammar__is_accepted_by_strict_lark(monkeypatch: pytest.MonkeyPatch) -> None:
    load_strictly(monkeypatch)


def test_grammar__strict_lark_would_see_a_word_of_two_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.lang.text_to_tree.KEYWORD_PRIORITY", 0)
    with pytest.raises(LexError, match="Collision between Terminals"):
        load_strictly(monkeypatch)


@pytest.mark.parametrize(
    ("terminal", "samples"),
    [
        ("NAME", NAMES),
        ("NUMBER", NUMBERS),
        ("STRING", TEXTS),
        ("LABEL", LABELS),
        ("SYMBOL", SYMBOLS),
        ("SECTION", SECTIONS),
        ("DATE", DATES),
        ("DURATION", DURATIONS),
    ],
)
def test_scanner__tells_words_apart(terminal: str, samples: tuple[str, ...]) -> None:
    scanner = load_parser(EFFECT_WORDS).scanner
    for sample in samples:
        (word,) = scanner.words(f"{sample} ")
        assert (word.kind, word.text) == (terminal, sample)


def test_scanner__leaves_nothing_out() -> None:
    text = "guard: deny\twrite kernel.text # no\n12ab \x1b é 'x' \"open"
    lexemes = list(load_parser(EFFECT_WORDS).scanner.lexemes(text))
    assert "".join(lexeme.text for lexeme in lexemes) == text


def test_keywords__end_where_words_end() -> None:
    parser = load_parser(EFFECT_WORDS)
    assert parser.keywords["TO"] == "to"
    assert set(parser.keywords.values()) >= {"policy", "on", "let", "retry", "restore", "physical"}
    for terminal, word in parser.keywords.items():
        assert re.match(parser.patterns[terminal], word)
        for end in ("x", "_", "-", "9"):
            assert not re.match(parser.patterns[terminal], word + end)


def test_load_parser__the_same_words_give_the_same_parser() -> None:
    assert load_parser(("allow", "deny")) is load_parser(("allow", "deny"))
    assert load_parser(("allow", "deny")) is not load_parser(("allow",))


@pytest.mark.parametrize("words", [(), ("",), ("deny|x",), ("Deny",), ("no-way",)])
def test_load_parser__refuses_what_is_no_word(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not a list of effects"):
        load_parser(words)


def test_load_parser__an_effect_may_begin_like_another() -> None:
    parser = load_parser(("log", "log_twice"))
    assert re.fullmatch(parser.patterns["EFFECT"], "log_twice")


def test_every_terminal__has_a_name_that_an_author_knows() -> None:
    parser = load_parser(EFFECT_WORDS)
    known = {*parser.keywords, *expected.TERMINALS, "NAME", "BLANK", "COMMENT"}
    assert set(parser.patterns) <= known


def test_every_form__becomes_a_node() -> None:
    lark = Lark(grammar_text(), parser="lalr", start="policy_file")
    forms: dict[str, set[str]] = {}
    for rule in lark.rules:
        forms.setdefault(str(rule.origin.name), set()).add(rule.alias or "")
    assert forms["place"] == set(PLACES)
    assert {*STATEMENTS, *CASES} <= forms.keys()
    aliases = {alias for names in forms.values() for alias in names if alias}
    assert {"negation", "complement", "call", "number"} <= aliases
    assert set(EXPRESSIONS) <= aliases | forms.keys()


def test_examples_in_the_grammar__are_right() -> None:
    reference = grammar_text().partition("= the file\n")[2]
    text = "\n".join(re.findall(r"^//   (.*)$", reference, re.MULTILINE))
    file = parsed(text)
    assert file.header
    assert len(file.statements) > 10


def test_examples_of_the_two_kinds_of_rule__each_alone() -> None:
    assert len(parsed("deny write to kernel .text").rules) == 1
    assert len(parsed("on hypercall 34/24 log").rules) == 1
