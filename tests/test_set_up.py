"""`make` on a machine that lacks something says in one sentence what, instead of failing somewhere inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Pythons as a machine may have them: a shell program that is called as `python3` would be.
OLD = """\
case "$1" in
    --version) echo "Python 3.9.2";;
    -c) exit 1;;
esac
"""
WITHOUT_VENV = f"""\
case "$2" in
    *ensurepip*) echo "Traceback (most recent call last):" >&2; exit 1;;
    *) exec '{sys.executable}' "$@";;
esac
"""

TALKATIVE = """\
case "$*" in
    -c*) ;;
    *venv*) mkdir -p .venv/bin; for name in python policyc ruff mypy pytest; do cp "$0" .venv/bin/$name; done;;
    *install*--quiet*) ;;
    *install*) echo "Collecting click"; echo "Successfully installed click";;
    demo) echo "the demo";;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh checkout, as far as `make` looks at it before it has set anything up."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("target", ["test", "check", "demo", "format"])
@pytest.mark.parametrize(
    ("python", "said"),
    [
        (None, "policyc needs Python 3.11 or newer: install the Debian package python3 (or set PYTHON=...)"),
        (OLD, "policyc needs Python 3.11 or newer, and Python 3.9.2 is older: set PYTHON=..."),
        (WITHOUT_VENV, "this Python cannot make a virtual environment: install the Debian package python3-venv"),
    ],
    ids=["no python", "old python", "no venv"],
)
def test_make__says_what_is_missing(checkout: Path, target: str, python: str | None, said: str) -> None:
    program = checkout / "python-of-this-machine"
    if python is not None:
        program.write_text(f"#!/bin/sh\n{python}")
        program.chmod(0o755)
    ran = make(checkout, target, f"PYTHON={program}")
    assert ran.returncode != 0
    assert (ran.stdout, ran.stderr.splitlines()[0]) == ("", said)
    assert ran.stderr.count("\n") == 2  # the second line is make's own
    assert not (checkout / ".venv").exists()


def test_demo__says_a_line_for_each_step_and_where_policyc_is(checkout: Path) -> None:
    program = checkout / "python-of-this-machine"
    program.write_text(f"#!/bin/sh\n{TALKATIVE}")
    program.chmod(0o755)
    shown = [
        "the demo",
        "",
        "policyc is .venv/bin/policyc; `. .venv/bin/activate` puts it on the PATH of this terminal",
    ]
    steps = [
        "== set-up: a virtual environment in .venv",
        "== set-up: the Python packages of policyc and of its guest",
    ]
    first, second = (make(checkout, "demo", f"PYTHON={program}") for _ in range(2))
    assert (first.returncode, first.stdout.splitlines(), first.stderr) == (0, [*steps, *shown], "")
    assert second.stdout.splitlines() == shown


def test_check__is_silent_about_the_set_up(checkout: Path) -> None:
    program = checkout / "python-of-this-machine"
    program.write_text(f"#!/bin/sh\n{TALKATIVE}")
    program.chmod(0o755)
    ran = make(checkout, "check", f"PYTHON={program}")
    assert (ran.stdout.splitlines()[0], ran.stderr) == ("== ruff format", "")


def test_make__lists_every_target(checkout: Path) -> None:
    listed = {line.split()[1] for line in make(checkout, "help").stdout.splitlines()}
    (phony,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert listed == set(phony.split()[1:])


def test_ci__runs_the_whole_check(tmp_path: Path) -> None:
    """From wherever it is called, `.ci/run` is `make test` at the root of the repository, and fails as that does."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text("test:\n\t@pwd; exit 3\n")
    ran = subprocess.run([tmp_path / ".ci" / "run"], cwd="/", env=environment(), capture_output=True, check=False)
    assert (ran.returncode, ran.stdout.decode()) == (2, f"{tmp_path}\n")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment() -> dict[str, str]:
    """This process's own, without what a `make` around these tests hands down."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
