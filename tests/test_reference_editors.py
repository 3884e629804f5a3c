"""The TextMate grammar gives every word of the language the scope that is meant for it, and no text a wrong one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest
from hypothesis import given

from policyc import __version__
from policyc.analysis.keywords import KEYWORDS
from policyc.analysis.vocabulary import Kind, Word, vocabulary
from policyc.catalog import EFFECTS, FIELDS
from policyc.cli.policy_files import POLICY_SUFFIX
from policyc.cli.words_textmate import ROLE_SCOPES, SCOPE_NAME, SCOPES
from tests.support.lang_texts import laid_out, policies
from tests.support.reference_files import FILES, ROOT
from tests.support.reference_textmate import Grammar

TEXT = FILES["editors/policy.tmLanguage.json"]()
GRAMMAR = Grammar(TEXT)

SENTENCES: Mapping[Kind, str] = {
    Kind.KEYWORD: "{} x",
    Kind.EFFECT: "{} write to idt",
    Kind.WAY: "deny write to x by {}",
    Kind.ACCESS: "deny {} of x",
    Kind.EVENT: "guard: on {} log",
    Kind.NOT_EVENT: "on {} log",
    Kind.FIELD: "when x and {} == 1",
    Kind.FUNCTION: "when {}(x)",
    Kind.BIT: "pin x | {}",
    Kind.MSR: "on msr {} when x",
    Kind.VECTOR: "retry 3 then inject {}",
    Kind.IMAGE: "deny write to {} .text",
    Kind.SECTION: "deny write to kernel {}",
    Kind.TABLE: "watch x, {} every 1s",
    Kind.SEVERITY: "severity {} tag",
    Kind.MODE: "mode {}",
    Kind.PLATFORM: "for {}",
    Kind.UNIT: "at most 3 per {}",
}
"""A sentence in which each word of a kind is what the kind says."""


def scope_of(word: Word) -> str:
    """The scope that is meant for it."""
    if word.kind is not Kind.KEYWORD:
        return f"{SCOPES[word.kind]}.policy"
    return f"{ROLE_SCOPES[KEYWORDS[word.word][0]]}.policy"


def keyword_sentence(word: str) -> str:
    """`size` is a keyword before a number and a field elsewhere."""
    return f"kernel:x {word} 8" if word in FIELDS else SENTENCES[Kind.KEYWORD].format(word)


@pytest.mark.parametrize("word", vocabulary(), ids=lambda word: f"{word.kind.value}-{word.word}")
def test_word__has_its_scope_and_no_other(word: Word) -> None:
    sentence = keyword_sentence(word.word) if word.kind is Kind.KEYWORD else SENTENCES[word.kind].format(word.word)
    assert [scope for text, scope in GRAMMAR.tokens(sentence) if text == word.word] == [scope_of(word)]


@pytest.mark.parametrize("word", sorted({*KEYWORDS, *EFFECTS, *FIELDS}))
@pytest.mark.parametrize("form", ["to{}", "{}ing", "{}-x", "x-{}", "{}_", "{}9"])
def test_word__inside_a_name_is_none(word: str, form: str) -> None:
    name = form.format(word)
    assert GRAMMAR.tokens(f"{name}") == [(name, "variable.other.name.policy")]
    assert GRAMMAR.tokens(f"kernel:{name.replace('-', '_')}")[-1][1] == "entity.name.function.policy"


TOKENS = {
    "# a comment": ["# a comment: comment.line.number-sign"],
    'tag "a # b" # c': [
        "tag: keyword.other.clause",
        '"a # b": string.quoted.double',
        "# c: comment.line.number-sign",
    ],
    'tag "open': ["tag: keyword.other.clause", '"open: invalid.illegal.unclosed'],
    "guard: deny": ["guard:: entity.name.label", "deny: keyword.control.effect"],
    "kernel:ftrace_* + 0x10 size 4K": [
        "kernel: entity.name.namespace",
        ":: punctuation.separator",
        "ftrace_*: entity.name.function",
        "+: keyword.operator.arithmetic",
        "0x10: constant.numeric.integer",
        "size: storage.modifier.place",
        "4K: constant.numeric.integer",
    ],
    "kernel.text": ["kernel.text: invalid.illegal.glued"],
    "module ext4 .text": [
        "module: storage.modifier.place",
        "ext4: entity.name.namespace",
        ".text: entity.name.section",
    ],
    'module "win32k.sys" "INIT"': [
        "module: storage.modifier.place",
        '"win32k.sys": entity.name.namespace',
        '"INIT": entity.name.section',
    ],
    "let deny = gdt": [
        "let: keyword.control.statement",
        "deny: entity.name.variable",
        "=: keyword.operator.assignment",
        "gdt: support.variable.table",
    ],
    "virtual 0..0x1000": [
        "virtual: storage.modifier.place",
        "0: constant.numeric.integer",
        "..: keyword.operator.range",
        "0x1000: constant.numeric.integer",
    ],
    "34/24 12ab": [
        "34: constant.numeric.integer",
        "/: keyword.operator.arithmetic",
        "24: constant.numeric.integer",
        "12ab: invalid.illegal.number",
    ],
    "until 2027-06-30 every 500ms": [
        "until: keyword.other.clause",
        "2027-06-30: constant.numeric.date",
        "every: keyword.other.joint",
        "500ms: constant.numeric.duration",
    ],
    "on vcpu created log": [
        "on: keyword.control.statement",
        "vcpu: support.class.event",
        "created: support.class.event",
        "log: keyword.control.effect",
    ],
    "(new & ~wp) != 0 => {": [
        "(: punctuation.section",
        "new: variable.language.field",
        "&: keyword.operator.bitwise",
        "~: keyword.operator.bitwise",
        "wp: support.constant.bit",
        "): punctuation.section",
        "!=: keyword.operator.comparison",
        "0: constant.numeric.integer",
        "=>: keyword.operator.arrow",
        "{: punctuation.section",
    ],
}


@pytest.mark.parametrize("text", TOKENS)
def test_text__is_split_so(text: str) -> None:
    assert [f"{piece}: {scope.removesuffix('.policy')}" for piece, scope in GRAMMAR.tokens(text)] == TOKENS[text]


@given(laid_out(policies))
def test_any_policy__has_a_scope_everywhere_and_nothing_wrong(text: str) -> None:
    tokens = GRAMMAR.tokens(text)
    assert "".join("".join(piece.split()) for piece, _ in tokens) == "".join(text.split())
    assert [token for token in tokens if not token[1] or token[1].startswith("invalid.")] == []


def test_policies_of_the_repository__have_nothing_wrong() -> None:
    folders = ("policies", "examples", "policyc")
    texts = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.policy")]
    assert len(texts) > 3
    for text in texts:
        assert [token for token in GRAMMAR.tokens(text) if not token[1] or token[1].startswith("invalid.")] == []


# ---- the grammar as a file


@pytest.mark.parametrize("pattern", [rule.pattern.pattern for rule in GRAMMAR.rules])
def test_pattern__means_the_same_to_every_engine(pattern: str) -> None:
    """What Python's `re` and Oniguruma read alike: plain escapes, no named groups, no flags, no classes by name."""
    assert set(re.findall(r"\\(.)", pattern)) <= set('.trn(*+|"')
    assert set(re.findall(r"\((\?[^:=!<]|\?<[^!])", pattern)) == set()
    assert "&&" not in pattern
    assert "[[" not in pattern


def test_groups_with_scopes__are_all_the_groups_of_their_pattern() -> None:
    for rule in GRAMMAR.rules:
        assert rule.pattern.match("") is None, f"{rule.pattern.pattern} matches nothing"
        if rule.captures:
            assert [*rule.captures] == [*range(1, rule.pattern.groups + 1)]


def test_every_pattern__is_needed() -> None:
    """Each is the first to match something in the samples above."""
    sentences = [SENTENCES[word.kind].format(word.word) for word in vocabulary()]
    sentences += [keyword_sentence(word) for word in KEYWORDS] + [*TOKENS]
    scopes = {scope for sentence in sentences for _, scope in GRAMMAR.tokens(sentence)}
    meant = {scope for rule in GRAMMAR.rules for scope in (rule.captures.values() or [rule.name])}
    assert meant - scopes == set()


# ---- the folder as an extension


def test_extension__names_files_that_are_there() -> None:
    editors = ROOT / "editors"
    manifest = json.loads((editors / "package.json").read_text())
    (language,) = manifest["contributes"]["languages"]
    (grammar,) = manifest["contributes"]["grammars"]
    assert (manifest["version"], language["extensions"]) == (__version__, [POLICY_SUFFIX])
    assert (grammar["language"], grammar["scopeName"]) == (language["id"], SCOPE_NAME)
    assert Grammar((editors / grammar["path"]).read_text()).scope_name == SCOPE_NAME
    settings = json.loads((editors / language["configuration"]).read_text())
    assert GRAMMAR.tokens(f"{settings['comments']['lineComment']} x")[0][1] == "comment.line.number-sign.policy"
