"""What is made from tables is what the tables make now, and every example in it works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from policyc.analysis.keywords import FUNCTIONS, KEYWORDS
from policyc.analysis.vocabulary import Kind, vocabulary
from policyc.catalog import (
    ACCESS_WORDS,
    CONTROL_BITS,
    EFFECTS,
    EVENTS,
    FIELDS,
    LEGALITY,
    MODES,
    MSRS,
    NOT_EVENTS,
    PLAIN_EFFECT_WORDS,
    SEVERITIES,
    VECTORS,
)
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import CODES, Severity, Source
from policyc.emulator.image import small_system_map
from policyc.guest.readers import build_profile
from policyc.lang.text_to_tree import load_parser
from policyc.runtime.needs import unsupported_rules
from tests.support.policyc_command import call_policyc
from tests.support.reference_diagnostics import CODE_EXAMPLES, OPTIONS, outcome_of
from tests.support.reference_files import FILES, REFRESH, ROOT

DOCUMENTS = [*sorted((ROOT / "docs" / "reference").glob("*.md")), ROOT / "docs" / "language.md"]


@pytest.mark.parametrize("name", FILES)
def test_file__is_what_its_tables_make(name: str) -> None:
    assert (ROOT / name).read_text() == FILES[name](), f"{name} is out of date: run `{REFRESH}`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_document__links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text())
    assert [link for link in links if not leads_somewhere(document, *link)] == []


def leads_somewhere(document: Path, path: str, anchor: str) -> bool:
    target = document.parent / path if path else document
    if not target.exists():
        return False
    headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
    return not anchor or anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- the language by example

CROOKED = {"crooked.policy", "mistakes.policy"}
"""Examples of what isn't in order."""

WARNED = {"overdue.policy": {"P412"}, "unguarded.policy": {"P401"}}


def examples_of_the_guide() -> dict[str, str]:
    text = (ROOT / "docs" / "language.md").read_text()
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("name", sorted(set(examples_of_the_guide()) - CROOKED))
def test_guide__examples_are_right_and_in_the_canonical_form(name: str, tmp_path: Path) -> None:
    files = examples_of_the_guide()
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    call_policyc("guest", "profile", "-o", "guest.profile", cwd=tmp_path)
    checked = call_policyc("check", name, "--profile", "guest.profile", "--format", "json", cwd=tmp_path)
    assert {found["code"] for found in json.loads(checked.out)["diagnostics"]} == WARNED.get(name, set())
    assert call_policyc("fmt", "--check", name, cwd=tmp_path).code == 0


def test_guide__says_what_this_version_does_not_carry_out() -> None:
    profile = build_profile(small_system_map().encode())
    plan = compile_policies([Source("a.policy", "watch idt every 5s")], profile).plan
    assert plan is not None
    refused = bool(unsupported_rules(plan))
    guide = " ".join((ROOT / "docs" / "language.md").read_text().split())
    assert ("of this version refuses a plan that has one" in guide) == refused


# ---- diagnostics


def test_codes__each_has_an_example() -> None:
    assert set(CODE_EXAMPLES) == set(CODES), "examples stand in tests/support/reference_codes_*.py"


def test_codes__few_go_without_an_example() -> None:
    """Those that no text of a sensible size brings about."""
    assert [code for code, example in CODE_EXAMPLES.items() if not example.wrong_files] == ["P100", "P125", "P504"]


@pytest.mark.parametrize("code", [code for code, example in CODE_EXAMPLES.items() if example.wrong_files])
def test_example__brings_its_code_about_and_the_fix_ends_it(code: str) -> None:
    outcome = outcome_of(code)
    assert code in {diagnostic.code for diagnostic in outcome.wrong}
    assert code not in {diagnostic.code for diagnostic in outcome.right}
    assert {diagnostic.severity for diagnostic in outcome.right} <= {Severity.NOTE}


@pytest.mark.parametrize("options", OPTIONS)
def test_options__are_those_of_the_command(options: str, tmp_path: Path) -> None:
    ran = call_policyc("check", "-", *options.split(), cwd=tmp_path, input="deny write to kernel .text")
    assert (ran.code, ran.err) == (0, "")


# ---- words


def test_words__are_all_that_the_tables_have() -> None:
    words = {(word.kind, word.word) for word in vocabulary()}
    assert len(words) == len(vocabulary())
    tables = {
        Kind.EFFECT: EFFECTS,
        Kind.ACCESS: ACCESS_WORDS,
        Kind.EVENT: EVENTS,
        Kind.NOT_EVENT: NOT_EVENTS,
        Kind.FIELD: FIELDS,
        Kind.FUNCTION: FUNCTIONS,
        Kind.BIT: [bit for bits in CONTROL_BITS.values() for bit in bits],
        Kind.MSR: MSRS,
        Kind.VECTOR: VECTORS,
        Kind.SEVERITY: SEVERITIES,
        Kind.MODE: MODES,
    }
    for kind, table in tables.items():
        assert {word for of, word in words if of is kind} == set(table)
    assert all(word.doc for word in vocabulary())


def test_keywords__are_those_of_the_grammar() -> None:
    assert set(KEYWORDS) == set(load_parser(PLAIN_EFFECT_WORDS).keywords.values())


def test_functions__are_those_of_the_compiler() -> None:
    (found,) = compile_policies([Source("a.policy", "on cr4 when nosuchfunction(smep) log")], None).diagnostics
    assert re.findall(r"`(\w+)\(BITS\)`", found.help or "") == [*FUNCTIONS]


def words_file() -> dict[str, object]:
    document = json.loads((ROOT / "editors" / "words.json").read_text())
    assert isinstance(document, dict)
    return document


def schema() -> Draft202012Validator:
    document = json.loads((ROOT / "editors" / "words.schema.json").read_text())
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document)


def test_words_file__keeps_to_its_schema() -> None:
    assert [error.message for error in schema().iter_errors(words_file())] == []


@pytest.mark.parametrize(
    "word",
    [
        {"word": "x", "kind": "nonsense", "doc": "x"},
        {"word": "x", "kind": "function", "doc": "x", "rank": 1},
        {"word": "x", "kind": "msr", "doc": "x", "number": 1},
        {"word": "x", "kind": "event", "doc": "x", "column": "No", "argument": None, "dialects": [], "kvmi": "CR"},
    ],
)
def test_schema__refuses(word: dict[str, object]) -> None:
    assert not schema().is_valid({**words_file(), "words": [word]})


def test_words_file__has_the_whole_legality_table() -> None:
    legality = words_file()["legality"]
    assert isinstance(legality, dict)
    cells = {(effect, column) for effect, row in legality.items() for column in row if effect != "retry"}
    assert len(cells) == sum(len(row) for row in LEGALITY.values())
    assert legality["deny"]["register"] == "old value"
    assert legality["deny by fault"]["hypercall"] == "fault until trap"
    assert legality["retry"] == dict.fromkeys(("write", "read_execute", "descriptor", "breakpoint"), "retry")
