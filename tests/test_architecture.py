"""Imports go one way: the table of rooms, held against every module of the package.

The table is the one in docs/architecture.md. An import counts wherever it stands, in a function or under
`TYPE_CHECKING` too, since a cycle of types is still a cycle.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "policyc"

Names = frozenset[str]


@dataclass(frozen=True, slots=True)
class Room:
    """What one room may import: rooms of ours, packages of others; and what of the standard library it may not."""

    own: Names = frozenset()
    third_party: Names = frozenset()
    never_stdlib: Names = field(default=frozenset(), kw_only=True)


def names(words: str = "") -> Names:
    return frozenset(words.split())


INPUT_AND_OUTPUT = names("asyncio logging select selectors socket socketserver ssl subprocess threading time")

ROOMS: Mapping[str, Room] = {
    "__init__": Room(),
    "__main__": Room(names("cli")),
    "addresses": Room(never_stdlib=INPUT_AND_OUTPUT),
    "diagnostics": Room(never_stdlib=INPUT_AND_OUTPUT),
    "catalog": Room(names("addresses"), never_stdlib=INPUT_AND_OUTPUT),
    "grammar": Room(),
    "lang": Room(names("addresses diagnostics grammar"), names("lark"), never_stdlib=INPUT_AND_OUTPUT),
    "guest": Room(
        names("addresses diagnostics catalog"),
        names("elftools jsonschema lz4 pefile zstandard"),
        never_stdlib=INPUT_AND_OUTPUT,
    ),
    "plan": Room(
        names("addresses diagnostics catalog"), names("intervaltree jsonschema"), never_stdlib=INPUT_AND_OUTPUT
    ),
    "compiler": Room(names("addresses diagnostics catalog lang guest plan"), never_stdlib=INPUT_AND_OUTPUT),
    "analysis": Room(names("addresses diagnostics catalog lang guest plan compiler"), never_stdlib=INPUT_AND_OUTPUT),
    "kvmi": Room(names("addresses"), never_stdlib=INPUT_AND_OUTPUT),
    "runtime": Room(
        names("addresses diagnostics catalog guest plan kvmi"),
        names("capstone jsonschema prometheus_client yaml"),
        never_stdlib=INPUT_AND_OUTPUT,
    ),
    "emulator": Room(names("addresses guest kvmi"), names("capstone unicorn")),
    "cli": Room(
        names("addresses diagnostics catalog lang guest plan compiler analysis kvmi runtime emulator"),
        names("click rich"),
    ),
}
"""One row a room. `policyc.cli` stands in the row of `__main__` alone: nobody imports it."""

WORLD: Mapping[str, Names] = {
    "runtime.audit": names("threading"),
    "runtime.service": names("socket threading"),
    "runtime.session": names("socket threading time"),
    "runtime.transport": names("socket"),
}
"""Modules of a room without input and output that are the exception, and what they use.

Everything else there gets its time and its bytes as arguments.
"""


@dataclass(frozen=True, slots=True)
class Module:
    """One source file under its dotted name."""

    name: str
    source: str
    is_package: bool = False

    @property
    def path(self) -> tuple[str, ...]:
        """The name below `policyc`: `("kvmi", "codec")`; the package itself is `("__init__",)`."""
        return tuple(self.name.split(".")[1:]) or ("__init__",)

    @property
    def room(self) -> str:
        return self.path[0]

    @property
    def package(self) -> tuple[str, ...]:
        """What a relative import starts from."""
        parts = tuple(self.name.split("."))
        return parts if self.is_package else parts[:-1]


def test_every_module__keeps_to_its_row() -> None:
    assert [found for module in repository() for found in violations(module)] == []


def test_rows__name_rooms_that_exist() -> None:
    """A row that nothing lives in would be a rule about nothing."""
    unknown = {room: row.own - set(ROOMS) for room, row in ROOMS.items() if row.own - set(ROOMS)}
    assert unknown == {}


def test_own_imports__go_one_way() -> None:
    """The rows have no cycle, so no two rooms can come to need each other."""
    settled: set[str] = set()
    while ready := {room for room, row in ROOMS.items() if room not in settled and row.own <= settled}:
        settled |= ready
    assert set(ROOMS) - settled == set()


def test_third_party__is_declared_in_pyproject() -> None:
    """Whoever installs the package gets what its modules import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    declared = {normal(re.split(r"[^\w.-]", line)[0]) for line in required}
    distributions = packages_distributions()
    undeclared = {
        f"{module.name}: {package}"
        for module in repository()
        for package in third_party(module)
        if not declared & {normal(name) for name in distributions.get(package, [package])}
    }
    assert undeclared == set()


# What one module breaks, by the module's name and source.
BROKEN: Mapping[str, tuple[Module, str]] = {
    "absolute": (Module("policyc.kvmi.codec", '"""D."""\nimport policyc.plan.model'), "kvmi imports plan"),
    "absolute from": (Module("policyc.kvmi.codec", '"""D."""\nfrom policyc import plan'), "kvmi imports plan"),
    "relative": (Module("policyc.kvmi.codec", '"""D."""\nfrom ..plan import model'), "kvmi imports plan"),
    "relative, bare": (Module("policyc.kvmi.codec", '"""D."""\nfrom .. import plan'), "kvmi imports plan"),
    "relative in a package": (
        Module("policyc.kvmi", '"""D."""\nfrom ..plan import model', is_package=True),
        "kvmi imports plan",
    ),
    "relative, too far": (
        Module("policyc.kvmi.codec", '"""D."""\nfrom ...tests import support'),
        "kvmi imports from above policyc",
    ),
    "in a function": (
        Module("policyc.plan.model", '"""D."""\ndef f() -> None:\n    from policyc.guest import profile'),
        "plan imports guest",
    ),
    "for types": (
        Module(
            "policyc.emulator.cpu",
            '"""D."""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from policyc.plan import model',
        ),
        "emulator imports plan",
    ),
    "the whole package": (Module("policyc.plan.model", '"""D."""\nimport policyc'), "plan imports policyc as a whole"),
    "by name": (
        Module("policyc.plan.model", '"""D."""\nimport importlib\nimportlib.import_module("policyc.guest")'),
        "plan imports by name",
    ),
    "by dunder": (Module("policyc.plan.model", '"""D."""\n__import__("lark")'), "plan imports by name"),
    "the tests": (Module("policyc.plan.model", '"""D."""\nfrom tests.support import cases'), "plan imports tests"),
    "no docstring": (Module("policyc.plan.model", "import json"), "no docstring"),
    "print": (Module("policyc.plan.model", '"""D."""\nprint("hello")'), "plan prints"),
    "unknown room": (Module("policyc.utils", '"""D."""'), "utils is a room that the table doesn't know"),
    "unknown package": (Module("policyc.misc.bits", '"""D."""'), "misc is a room that the table doesn't know"),
    "a clock of its own": (Module("policyc.runtime.enforcer", '"""D."""\nimport time'), "runtime imports time"),
    "more of the world than it may": (
        Module("policyc.runtime.audit", '"""D."""\nimport threading, socket'),
        "runtime imports socket",
    ),
    "a name that only begins like it": (
        Module("policyc.runtime.sessions", '"""D."""\nimport socket'),
        "runtime imports socket",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_violations__finds(case: str) -> None:
    module, expected = BROKEN[case]
    assert list(violations(module)) == [f"{module.name}: {expected}"]


@pytest.mark.parametrize("room", ROOMS)
def test_row__refuses_every_room_that_it_does_not_name(room: str) -> None:
    others = [other for other in ROOMS if other not in (room, "__init__", "__main__")]
    for other in others:
        found = list(violations(a_module_of(room, f"from policyc.{other} import anything")))
        allowed = other in ROOMS[room].own
        assert found == ([] if allowed else [f"{a_module_of(room).name}: {room} imports {other}"])
    assert room in ("cli",) or any(other not in ROOMS[room].own for other in others)


@pytest.mark.parametrize("room", ROOMS)
def test_row__refuses_every_package_that_it_does_not_name(room: str) -> None:
    everything = {package for row in ROOMS.values() for package in row.third_party} | {"numpy"}
    for package in everything:
        found = list(violations(a_module_of(room, f"import {package}.part")))
        allowed = package in ROOMS[room].third_party
        assert found == ([] if allowed else [f"{a_module_of(room).name}: {room} imports {package}"])


@pytest.mark.parametrize("room", [room for room, row in ROOMS.items() if row.never_stdlib])
def test_row__refuses_input_and_output(room: str) -> None:
    for package in ROOMS[room].never_stdlib:
        found = list(violations(a_module_of(room, f"from {package} import anything")))
        assert found == [f"{a_module_of(room).name}: {room} imports {package}"]


def test_cli__is_imported_by_nobody() -> None:
    assert [room for room, row in ROOMS.items() if "cli" in row.own] == ["__main__"]


def test_world__is_what_is_used() -> None:
    """The exceptions are as narrow as they can be, and none outlives its reason."""
    used = {
        ".".join(module.path): frozenset(found)
        for module in repository()
        if module.room in ROOMS and (found := standard_library(module) & ROOMS[module.room].never_stdlib)
    }
    assert used == WORLD


def test_cli__may_print_and_import_by_name() -> None:
    assert list(violations(a_module_of("cli", "import importlib\nimportlib.import_module('x')\nprint()"))) == []


ENFORCEMENT = (
    "policyc.addresses",
    "policyc.catalog",
    "policyc.kvmi",
    "policyc.plan",
    "policyc.guest",
    "policyc.runtime",
)


def test_runtime__imports_where_there_is_no_parser() -> None:
    """Enforcement can be shipped without lark and without the compiler."""
    loaded = modules_after(import_all(ENFORCEMENT), unimportable=("lark", "policyc.lang", "policyc.compiler"))
    assert set(ENFORCEMENT) <= loaded


def test_runtime__fails_where_it_needs_what_is_missing() -> None:
    """The test above can fail: what it takes away is really gone."""
    with pytest.raises(subprocess.CalledProcessError):
        modules_after("import lark", unimportable=("lark",))


def test_cli__starts_without_anything_heavy() -> None:
    heavy = names("asyncio capstone elftools intervaltree jsonschema lark multiprocessing rich unicorn yaml")
    loaded = modules_after("import policyc.cli.main")
    ours = {name for name in loaded if name.startswith(f"{PACKAGE}.") and not name.startswith(f"{PACKAGE}.cli")}
    assert (loaded & heavy, ours) == (set(), set())


def violations(module: Module) -> Iterator[str]:
    """What `module` does that its row doesn't allow, each as one line."""
    tree = ast.parse(module.source, module.name)
    if module.room not in ROOMS:
        yield f"{module.name}: {module.room} is a room that the table doesn't know"
        return
    if ast.get_docstring(tree) is None:
        yield f"{module.name}: no docstring"
    found = [wrong for target in imported(module, tree) if (wrong := against_row(module, target))]
    if module.room != "cli":
        found += calls(tree, {"print": "prints", "import_module": "imports by name", "__import__": "imports by name"})
    yield from (f"{module.name}: {module.room} {wrong}" for wrong in found)


def imported(module: Module, tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """The dotted name of each import, cut at the dots; empty for one that leaves the package upwards."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                kept = len(module.package) - (node.level - 1)
                origin = module.package[:kept] + origin if kept > 0 else ()
            # `from policyc import plan` names the room only behind the `import`.
            yield from ((*origin, alias.name) for alias in node.names) if origin == (PACKAGE,) else (origin,)


def against_row(module: Module, target: tuple[str, ...]) -> str | None:
    """What is wrong with importing `target` into `module`, if anything is."""
    row = ROOMS[module.room]
    match target:
        case ():
            return "imports from above policyc"
        case ("policyc",):
            return "imports policyc as a whole"
        case ("policyc", "__version__"):
            return None
        case ("policyc", room, *_):
            return None if room in row.own | {module.room} else f"imports {room}"
        case (top, *_) if top in sys.stdlib_module_names:
            refused = top in row.never_stdlib - WORLD.get(".".join(module.path), names())
        case (top, *_):
            refused = top not in row.third_party
    return f"imports {target[0]}" if refused else None


def calls(tree: ast.AST, wrong: Mapping[str, str]) -> list[str]:
    """What `wrong` says of each call to a function that it names."""
    functions = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    called = (
        function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "") for function in functions
    )
    return [wrong[name] for name in called if name in wrong]


def third_party(module: Module) -> set[str]:
    """The packages of others that `module` imports, by the name it imports them under."""
    return top_level(module) - sys.stdlib_module_names - {PACKAGE}


def standard_library(module: Module) -> set[str]:
    """The packages of the standard library that `module` imports."""
    return top_level(module) & sys.stdlib_module_names


def top_level(module: Module) -> set[str]:
    return {target[0] for target in imported(module, ast.parse(module.source)) if target}


def repository() -> list[Module]:
    """Every module of the package, the grammar's too, which the wheel places at `policyc.grammar`."""
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "grammar").rglob("*.py")]
    return [module_of(file) for file in sorted(files)]


def module_of(file: Path) -> Module:
    parts = file.relative_to(ROOT).with_suffix("").parts
    dotted = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
    is_package = dotted[-1] == "__init__"
    return Module(".".join(dotted[:-1] if is_package else dotted), file.read_text(encoding="utf-8"), is_package)


def a_module_of(room: str, source: str = "") -> Module:
    """A module in `room` that does what `source` says and is otherwise in order."""
    name = PACKAGE if room == "__init__" else f"{PACKAGE}.{room}"
    return Module(name, f'"""D."""\n{source}', is_package=room == "__init__")


def normal(distribution: str) -> str:
    """The form in which names of distributions are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def import_all(packages: tuple[str, ...]) -> str:
    """A program that imports the named modules and all that lies in them."""
    return f"""
import importlib, pkgutil
for name in {packages!r}:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), name + ".", onerror=None):
        importlib.import_module(found.name)
"""


def modules_after(program: str, *, unimportable: tuple[str, ...] = ()) -> set[str]:
    """The names of all modules loaded once a fresh interpreter has run `program`.

    Raises:
        subprocess.CalledProcessError: the program failed, for example because it needs what is `unimportable`.
    """
    blocked = f"import sys\nfor name in {unimportable!r}: sys.modules[name] = None\n"
    listing = "\nprint(*(name for name, module in sys.modules.items() if module is not None))"
    ran = subprocess.run(
        [sys.executable, "-c", blocked + program + listing], check=True, capture_output=True, text=True
    )
    return set(ran.stdout.split())
