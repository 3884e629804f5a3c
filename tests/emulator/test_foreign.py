"""Programs in C that know KVMI from its description alone, at the other end of ours.

They share no line with the codec: structs and numbers are their own. Without a C compiler there is nothing to compile,
and the tests are skipped with a word about it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from policyc.emulator.image import DEFAULT_LOAD_GPA, KERNEL_BASE, small_image
from policyc.emulator.options import GuestOptions
from tests.support.emulator_process import PATIENCE, GuestThread
from tests.support.policyc_command import call_policyc, run_policyc

SOURCES = Path(__file__).parents[1] / "foreign"
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler: the foreign client and kernel aren't built")

TABLE_ENTRY = small_image().symbols["sys_call_table"] + 39 * 8
BEFORE = small_image().symbols["sys_getpid"]
AFTER = small_image().symbols["evil_getpid"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built with every warning an error."""
    folder = tmp_path_factory.mktemp("foreign")
    for name in ("client", "kernel"):
        flags = ("-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Werror")
        subprocess.run([str(COMPILER), *flags, "-o", str(folder / name), str(SOURCES / f"{name}.c")], check=True)
    return folder


@pytest.mark.parametrize(("dialect", "hello", "version"), [("kvmi-v7", 96, 7), ("kvmi-v12", 104, 12)])
def test_a_client_in_c__guards_the_emulated_guest(
    programs: Path, tmp_path: Path, dialect: str, hello: int, version: int
) -> None:
    gpa = TABLE_ENTRY - KERNEL_BASE + DEFAULT_LOAD_GPA
    client = subprocess.Popen(
        [programs / "client", tmp_path / "s", hex(gpa)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    options = GuestOptions(socket=tmp_path / "s", dialect=dialect, reconnect=0.05, attacks=("syscall-hook",))
    guest = GuestThread(options)
    try:
        out, err = client.communicate(timeout=PATIENCE)
        report = guest.hear("attack")
    finally:
        client.kill()
        client.wait()
        guest.type("quit")
        assert guest.end() == 0
    assert (client.returncode, err) == (0, "")
    *said, fault, unchanged, after = out.splitlines()
    assert said == [f"hello {hello} small", f"version {version}", "vcpus 1", f"before {BEFORE:#x}"]
    assert fault.startswith(f"fault gpa {gpa:#x} access 2 rip 0xffffffffc040")
    assert (unchanged, after) == (f"unchanged {BEFORE:#x}", f"after {AFTER:#x}")
    assert (report["outcome"], report["events"]) == ("changed", 1)


@pytest.mark.parametrize("version", ["7", "12"])
def test_a_kernel_in_c__that_allows_nothing_is_refused(programs: Path, tmp_path: Path, version: str) -> None:
    (tmp_path / "a.policy").write_text('policy "a" for linux x86_64\ndeny write to kernel .text\n')
    assert call_policyc("guest", "profile", "-o", "small.profile", cwd=tmp_path).code == 0
    compile = ("compile", "a.policy", "--profile", "small.profile", "-o", "plan.json")
    assert call_policyc(*compile, cwd=tmp_path).code == 0
    with subprocess.Popen([programs / "kernel", tmp_path / "s", version], stdout=subprocess.PIPE, text=True) as kernel:
        ran = run_policyc("run", "plan.json", "--socket", "s", "--once", cwd=tmp_path)
        asked, _ = kernel.communicate(timeout=PATIENCE)
    assert (ran.code, kernel.returncode) == (4, 0)
    assert asked.startswith("2 0\n")
    assert "REFUSED" in ran.out
