"""Imports: every file read once, whatever imports it, and no circle or chain without end."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from policyc.compiler.imports import MAX_IMPORT_DEPTH, MAX_IMPORTED_FILES, read_files
from policyc.compiler.pipeline import CompileResult, compile_policies
from policyc.diagnostics import Diagnostic, Source, Span, render_text
from policyc.guest.readers import build_profile
from policyc.plan.store import core_bytes
from tests.support.small_kernel import SYSTEM_MAP

PROFILE = build_profile(SYSTEM_MAP.encode())


@dataclass
class Folder:
    """Files by their paths, and which of them were read."""

    files: Mapping[str, str]
    read: list[str] = field(default_factory=list)

    def load(self, importer: str, path: str) -> Source | Diagnostic:
        name = posixpath.normpath(posixpath.join(posixpath.dirname(importer), path))
        self.read.append(name)
        if name == "secret.policy":
            raise PermissionError(13, "Permission denied")
        if name not in self.files:
            raise FileNotFoundError(2, "No such file or directory")
        if name == "binary.policy":
            return Diagnostic("P121", "the file is binary", Span(Source(name, ""), 0, 0))
        return Source(name, self.files[name])

    def compile(self, *inputs: str) -> CompileResult:
        return compile_policies([Source(name, self.files[name]) for name in inputs], PROFILE, load=self.load)


def codes(result: CompileResult) -> list[tuple[str, str]]:
    return [(found.code, found.message) for found in result.diagnostics]


RULES = {
    "main.policy": 'policy "main" import "lib/text.policy" import "lib/tables.policy" log write to gdt',
    "lib/text.policy": 'policy "text" import "common.policy" deny write to kernel .text',
    "lib/tables.policy": 'policy "tables" import "../lib/common.policy" log write to idt',
    "lib/common.policy": 'policy "common" on hypercall 34/24 log',
}


def test_import__each_policy_is_one_of_its_own() -> None:
    result = Folder(RULES).compile("main.policy")
    assert result.diagnostics == ()
    assert result.plan is not None
    assert [policy.name for policy in result.plan.policies] == ["common", "main", "tables", "text"]
    assert [rule.policy for rule in result.plan.rules] == [0, 1, 2, 3]
    assert [source.path for source in result.plan.sources] == sorted(RULES)


def test_import__what_is_imported_or_given_or_both_is_the_same_plan() -> None:
    plans = set()
    for inputs in (["main.policy"], ["main.policy", "lib/common.policy"], sorted(RULES), sorted(RULES)[::-1]):
        plan = Folder(RULES).compile(*inputs).plan
        assert plan is not None
        plans.add(core_bytes(plan))
    assert len(plans) == 1


def test_import__the_files_given_come_first_then_theirs_in_the_order_of_imports() -> None:
    sources = [Source(name, RULES[name]) for name in ("lib/tables.policy", "main.policy")]
    files, found = read_files(sources, Folder(RULES).load)
    assert found == []
    assert [file.source.name for file in files] == [
        "lib/tables.policy",
        "main.policy",
        "lib/common.policy",
        "lib/text.policy",
    ]


def test_let__is_known_in_its_own_file_alone() -> None:
    files = {
        "a.policy": 'import "b.policy" deny write to patchers',
        "b.policy": 'policy "b" let patchers = kernel .text log write to patchers',
    }
    result = Folder(files).compile("a.policy")
    assert codes(result) == [("P204", "there is no place called `patchers`")]


def test_let__two_files_may_use_one_name_for_different_places() -> None:
    files = {
        "a.policy": 'import "b.policy" let here = kernel .text log write to here',
        "b.policy": 'policy "b" let here = kernel .data log write to here',
    }
    plan = Folder(files).compile("a.policy").plan
    assert plan is not None
    assert [str(place.place) for place in plan.places] == ["kernel .data", "kernel .text"]


@pytest.mark.parametrize(
    ("files", "message", "notes"),
    [
        ({"a.policy": 'import "a.policy" log write to idt'}, "the file imports itself", []),
        ({"a.policy": 'import "./x/../a.policy" log write to idt'}, "the file imports itself", []),
        (
            {
                "a.policy": 'import "b.policy" log write to idt',
                "b.policy": 'policy "b" import "c.policy"',
                "c.policy": 'policy "c" import "a.policy"',
            },
            "files import each other in a circle: a.policy -> b.policy -> c.policy -> a.policy",
            ['b.policy:1:19 "c.policy"', 'a.policy:1:8 "b.policy"'],
        ),
        (
            {
                "a.policy": 'import "b.policy" log write to idt',
                "b.policy": 'policy "b" import "c.policy"',
                "c.policy": 'policy "c" import "b.policy"',
            },
            "files import each other in a circle: b.policy -> c.policy -> b.policy",
            ['b.policy:1:19 "c.policy"'],
        ),
    ],
)
def test_circle__is_told_with_its_chain(files: Mapping[str, str], message: str, notes: list[str]) -> None:
    (found,) = Folder(files).compile("a.policy").diagnostics
    assert (found.code, found.message) == ("P216", message)
    assert [f"{span} {span.text}" for span, _ in found.notes if span] == notes


def test_circle__is_told_once_whichever_files_are_given() -> None:
    files = {"a.policy": 'import "b.policy"', "b.policy": 'policy "b" import "a.policy"'}
    for inputs in itertools.permutations(files):
        assert [code for code, _ in codes(Folder(files).compile(*inputs))] == ["P216"]


def test_diamond__is_no_circle_and_is_parsed_once() -> None:
    folder = Folder({**RULES, "lib/common.policy": 'policy "common" on hypercal 34/24 log'})
    assert [code for code, _ in codes(folder.compile("main.policy"))] == ["P210"]


MISTAKES: dict[str, tuple[str, str, str, str | None]] = {
    "no such file": (
        'import "missing.policy"',
        '"missing.policy"',
        "`missing.policy` can't be imported: there is no such file",
        "paths are relative to the folder of the file that imports",
    ),
    "not allowed to read": (
        'import "secret.policy"',
        '"secret.policy"',
        "`secret.policy` can't be imported: Permission denied",
        "paths are relative to the folder of the file that imports",
    ),
    "absolute": (
        'import "/etc/kernel.policy"',
        '"/etc/kernel.policy"',
        "`/etc/kernel.policy` is no relative path",
        "write the path from the folder of this file, such as `common/kernel.policy`",
    ),
    "nothing": (
        'import ""',
        '""',
        "an empty text names no file",
        "write the path from the folder of this file, such as `common/kernel.policy`",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str) -> None:
    text, underlined, message, help = MISTAKES[name]
    (found,) = Folder({"a.policy": text + " log write to idt"}).compile("a.policy").diagnostics
    assert found.span is not None
    assert (found.code, found.span.text, found.message, found.help) == ("P215", underlined, message, help)


def test_mistake__an_import_where_no_file_can_be_read() -> None:
    result = compile_policies([Source("a.policy", 'import "b.policy" log write to idt')], PROFILE)
    assert codes(result) == [("P215", "`b.policy` can't be read from here")]


def test_mistake__a_file_that_is_no_text_says_who_imports_it() -> None:
    result = Folder({"a.policy": 'import "binary.policy"', "binary.policy": ""}).compile("a.policy")
    assert codes(result) == [("P121", "the file is binary")]
    assert "note: it is imported here\n --> a.policy:1:8" in render_text(result.diagnostics)


def test_mistakes__in_imported_files_are_reported_there_and_all_at_once() -> None:
    files = {
        "a.policy": 'import "b.policy" deny write kernel .text',
        "b.policy": 'policy "b" deny write kernel .text',
        "c.policy": 'policy "c" import "b.policy" deny write kernel .data',
    }
    result = Folder(files).compile("a.policy", "c.policy")
    assert [(d.code, d.span.source.name) for d in result.diagnostics if d.span] == [
        ("P101", "a.policy"),
        ("P101", "c.policy"),
    ]
    result = Folder({**files, "a.policy": 'import "b.policy" log write to idt'}).compile("a.policy")
    assert [(d.code, d.span.source.name) for d in result.diagnostics if d.span] == [("P101", "b.policy")]


def chain(length: int) -> dict[str, str]:
    files = {f"{n}.policy": f'policy "{n}" import "{n + 1}.policy"' for n in range(length)}
    return {**files, f"{length}.policy": f'policy "{length}" log write to idt'}


def test_limit__a_chain_of_imports() -> None:
    assert codes(Folder(chain(MAX_IMPORT_DEPTH)).compile("0.policy")) == []
    (found,) = Folder(chain(MAX_IMPORT_DEPTH + 1)).compile("0.policy").diagnostics
    assert found.span is not None
    assert (found.code, str(found.span)) == ("P217", f"{MAX_IMPORT_DEPTH}.policy:1:20")


def test_limit__a_chain_without_end() -> None:
    """A loader whose every file imports a new one isn't followed for ever."""

    def endless(importer: str, path: str) -> Source:
        return Source(path, f'policy "{path}" import "x{path}"')

    result = compile_policies([Source("a", 'import "b"')], PROFILE, load=endless)
    assert [code for code, _ in codes(result)] == ["P217"]


def test_limit__imported_files() -> None:
    def load(importer: str, path: str) -> Source:
        return Source(path, f'policy "{path}" on hypercall 34/24 log')

    def compiled(count: int) -> CompileResult:
        text = "\n".join(f'import "{number}"' for number in range(count))
        return compile_policies([Source("a", text)], PROFILE, load=load)

    assert codes(compiled(MAX_IMPORTED_FILES)) == []
    assert (
        codes(compiled(MAX_IMPORTED_FILES + 2)) == [("P217", f"more than {MAX_IMPORTED_FILES} files are imported")] * 2
    )
