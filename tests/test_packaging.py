"""What users install: the wheel has every data file, and a policy compiles with it where no checkout is."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.small_kernel import SYSTEM_MAP

ROOT = Path(__file__).parent.parent

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "--isolated")

LIMIT_SECONDS = 300
"""Far more than any step takes; one that hangs ends here."""

POLICY = """\
policy "two rules"
for linux x86_64

deny write to kernel .text
on hypercall 34/24 log
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources and with what is installed: no network, and no `build` left over."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = copy_of_sources(folder / "sources")
    run(*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sources)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that has the wheel and, of everything else, what runs these tests.

    The dependencies are borrowed by a `.pth` line, which adds their folder to the path without reading the `.pth`
    files in it: the editable installation of the checkout is one of those and stays out.
    """
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False, symlinks=True)
    run(*PIP, "--python", home / "bin" / "python", "install", "--no-index", "--no-deps", wheel)
    own = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(home)}))
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_wheel__has_every_module_and_data_file(wheel: Path) -> None:
    """Nothing of the sources is missing from it, whatever is added to them later; and it holds nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == {*packed_files("policyc", "policyc"), *packed_files("grammar", "policyc/grammar")}


@pytest.mark.parametrize(
    "pattern",
    [
        "policyc/py.typed",
        "policyc/grammar/*.lark",
        "policyc/guest/schema/*.json",
        "policyc/plan/schema/*.json",
        "policyc/emulator/small/*",
        "policyc/emulator/linux/attacker/*",
    ],
)
def test_wheel__has_data_files(wheel: Path, pattern: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert fnmatch.filter(archive.namelist(), pattern) != []


def test_wheel__carries_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = fnmatch.filter(archive.namelist(), "*.dist-info/licenses/LICENSE")
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_installed__is_the_wheel_and_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    """What the next test shows, it shows of the wheel."""
    program = "import policyc, policyc.grammar; print(policyc.__file__, policyc.grammar.__file__, sep='\\n')"
    files = run(installed / "python", "-c", program, cwd=tmp_path).splitlines()
    assert len(files) == 2
    assert all(Path(file).is_relative_to(installed.parent) for file in files)


def test_installed__compiles_a_policy(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "System.map").write_text(SYSTEM_MAP)
    (tmp_path / "two.policy").write_text(POLICY)
    command = installed / "policyc"
    run(command, "profile", "build", "System.map", "-o", "profile.json", cwd=tmp_path)
    run(command, "compile", "two.policy", "--profile", "profile.json", "-o", "plan.json", cwd=tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan["core"]["rules"]) == 2


def copy_of_sources(into: Path) -> Path:
    """The files that a wheel is built from."""
    into.mkdir()
    for folder in ("policyc", "grammar"):
        shutil.copytree(ROOT / folder, into / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, into / name)
    return into


def packed_files(folder: str, packed_as: str) -> set[str]:
    """The names that the files under `folder` have in a wheel that lacks none of them."""
    files = (file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {f"{packed_as}/{file.relative_to(ROOT / folder)}" for file in files}


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run `command` and return what it printed.

    Raises:
        AssertionError: it failed; the message is what it wrote.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
    return ran.stdout
