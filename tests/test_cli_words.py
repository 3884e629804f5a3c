"""`policyc words`: what it says of words, and its documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.guest.readers import build_profile
from policyc.runtime.needs import unsupported_rules
from tests.support.policyc_command import Ran, call_policyc
from tests.support.reference_files import ROOT
from tests.support.small_kernel import SYSTEM_MAP

PROFILE = build_profile(SYSTEM_MAP.encode())


def test_words__what_an_event_and_a_field_of_one_name_mean(tmp_path: Path) -> None:
    assert call_policyc("words", "cr4", cwd=tmp_path) == Ran(
        0,
        "cr4, event: A write that changes CR4.\n"
        "  allow: new value (CONTINUE, the new value)\n"
        "  log: new value (CONTINUE, the new value)\n"
        "  pin: pinned value (CONTINUE, the new value with the pinned bits kept)\n"
        "  deny: old value (CONTINUE, the old value)\n"
        "  crash: crash (CRASH)\n"
        "cr4, field: The register CR4.\n",
        "",
    )


def test_words__where_an_effect_is_legal(tmp_path: Path) -> None:
    assert call_policyc("words", "skip", "smep", cwd=tmp_path).out == (
        "skip, effect: Step over the instruction as if it had done nothing.\n"
        "  write: skip (SET_REGISTERS with RIP past the instruction, RETRY)\n"
        "  idtr, gdtr, ldtr, tr: skip (SET_REGISTERS with RIP past the instruction, RETRY)\n"
        "skip, way: `by skip` carries a `deny` out in this way and no other.\n"
        "smep, bit: Bit 20 of cr4.\n"
    )


def test_words__bits_can_be_pinned_in_few_registers(tmp_path: Path) -> None:
    said = call_policyc("words", "pin", "cr3", "msr", cwd=tmp_path).out
    assert "  cr0, cr4, msr efer: pinned value (" in said
    assert [line.partition(":")[0] for line in said.splitlines() if line.startswith("  pin")] == ["  pin"]
    assert "pin" not in said.partition("cr3, event")[2].partition("msr, event")[0]


def test_words__the_code_of_a_diagnostic(tmp_path: Path) -> None:
    assert call_policyc("words", "P206", cwd=tmp_path) == Ran(
        0, "P206, warning: unused name. A `let` names a place that no rule uses.\n", ""
    )


def test_words__without_a_word_lists_them_all(tmp_path: Path) -> None:
    ran = call_policyc("words", cwd=tmp_path)
    lines = dict(line.split(": ", 1) for line in ran.out.splitlines())
    assert (ran.code, lines["effect"]) == (0, "allow, log, pin, skip, deny, inject, crash")
    assert lines["severity"] == "info, low, medium, high, critical"
    assert len(lines) == 18


@pytest.mark.parametrize(
    ("word", "help"),
    [("dney", "did you mean `deny`?"), ("p304", "did you mean `P304`?"), ("zzz", "`policyc words` lists them all")],
)
def test_words__an_unknown_word(tmp_path: Path, word: str, help: str) -> None:
    said = f"error: the language has no word `{word}`\n  help: {help}\n"
    assert call_policyc("words", "deny", word, cwd=tmp_path) == Ran(2, "", said)


def test_words__color(tmp_path: Path) -> None:
    assert call_policyc("words", "smep", "--color", "always", cwd=tmp_path).out == (
        "\x1b[1msmep\x1b[0m, bit: Bit 20 of cr4.\n"
    )


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("markdown", "docs/reference/words.md"),
        ("json", "editors/words.json"),
        ("textmate", "editors/policy.tmLanguage.json"),
    ],
)
def test_words__documents_are_the_files_of_the_repository(tmp_path: Path, format: str, file: str) -> None:
    assert call_policyc("words", "--format", format, cwd=tmp_path) == Ran(0, (ROOT / file).read_text(), "")


def test_words__a_document_has_all_words(tmp_path: Path) -> None:
    ran = call_policyc("words", "deny", "--format", "json", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith("Error: --format json is about all words: leave WORD out\n")


def test_words__say_what_this_version_carries_out(tmp_path: Path) -> None:
    """As the runtime itself does when it is given a plan."""
    mechanisms = json.loads(call_policyc("words", "--format", "json", cwd=tmp_path).out)["mechanisms"]
    done = {row["mechanism"] for row in mechanisms if row["carried_out"]}
    assert done >= {"pass", "new value", "old value", "pinned value", "skip or fault", "skip", "fault", "crash"}
    for effect, mechanism in (("retry 1 then crash", "retry"), ("deny", "skip or fault")):
        policy = compile_policies([Source("a.policy", f"{effect} write to idt")], PROFILE)
        assert policy.plan is not None
        assert (mechanism in done) == (not unsupported_rules(policy.plan))


def test_words__json_says_what_it_is(tmp_path: Path) -> None:
    document = json.loads(call_policyc("words", "--format", "json", cwd=tmp_path).out)
    assert (document["format"], document["version"]) == ("policyc-words", 1)
