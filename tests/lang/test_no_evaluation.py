"""Nothing that is read becomes code: no module of the product runs text, or unpickles bytes."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("policyc/**/*.py"), *ROOT.glob("grammar/**/*.py")])

RUNNERS = frozenset({"eval", "exec", "compile"})
"""The builtins that make code of text."""

LOADERS = frozenset({"code", "codeop", "marshal", "pickle", "runpy", "shelve"})
"""The modules that make code, or objects of any class, of text and bytes."""


def runners(source: str) -> list[str]:
    """What a module names of these, called or not: `re.compile` is another."""
    return [name for node in ast.walk(ast.parse(source)) for name in _named(node)]


def _named(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="builtins" | "__builtins__"), attr=name):
            yield from {name} & RUNNERS
        case ast.ImportFrom(module="builtins", names=names):
            yield from {alias.name for alias in names} & {*RUNNERS, "*"}
        case ast.Import(names=names):
            yield from {alias.name for alias in names} & LOADERS
        case ast.ImportFrom(module=str(name)):
            yield from {name} & LOADERS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module__runs_no_text(path: Path) -> None:
    assert runners(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("eval('1')", ["eval"]),
        ("def f():\n    exec('1')", ["exec"]),
        ("made = map(compile, texts)", ["compile"]),
        ("import builtins\nbuiltins.eval('1')", ["eval"]),
        ("__builtins__.exec('1')", ["exec"]),
        ("from builtins import eval as harmless", ["eval"]),
        ("from builtins import *", ["*"]),
        ("import pickle", ["pickle"]),
        ("from marshal import loads", ["marshal"]),
        ("import re\nre.compile('a')\nself.eval = 'eval'\nfrom . import compile", []),
    ],
)
def test_runners__finds(source: str, found: list[str]) -> None:
    assert runners(source) == found


def test_modules__are_those_of_the_product() -> None:
    assert {ROOT / "policyc/lang/template.py", ROOT / "policyc/cli/main.py", ROOT / "grammar/__init__.py"} <= {*MODULES}
