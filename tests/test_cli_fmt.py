"""`policyc fmt`: what it writes, what it leaves alone, what it says."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from policyc.lang.limits import MAX_FILE_BYTES
from tests.support.policyc_command import Ran, call_policyc, run_policyc

MESSY = 'policy   "m"\ndeny write of kernel .text severity high\n  tag "t"   # why\n'
TIDY = 'policy "m"\n\ndeny write to kernel .text\n    severity high\n    tag "t"  # why\n'
CALLS = "on hypercall 34/24 log\n"
TYPO = "deny  write to kernel.text\n"

DIFF = """\
--- p/messy.policy
+++ p/messy.policy
@@ -1,3 +1,5 @@
-policy   "m"
-deny write of kernel .text severity high
-  tag "t"   # why
+policy "m"
+
+deny write to kernel .text
+    severity high
+    tag "t"  # why
"""

TYPO_FOUND = """\
error[P110]: `kernel.text` runs an image and its section together
 --> p/typo.policy:1:16
  |
1 | deny  write to kernel.text
  |                ^^^^^^^^^^^
  = help: write `kernel .text`

1 error
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `p` with a policy that isn't in canonical form and one that is, and a file that is no policy."""
    (tmp_path / "p" / "sub").mkdir(parents=True)
    (tmp_path / "p" / "messy.policy").write_text(MESSY)
    (tmp_path / "p" / "sub" / "calls.policy").write_text(CALLS)
    (tmp_path / "p" / "notes.txt").write_text("not  a policy")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below the folder, and what tells whether it was written again."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- in place


def test_fmt__rewrites_what_is_not_canonical_and_nothing_else(folder: Path) -> None:
    before = state(folder)
    assert call_policyc("fmt", "p", cwd=folder) == Ran(0, "", "p/messy.policy: formatted\n")
    after = state(folder)
    assert after.pop("p/messy.policy")[2].decode() == TIDY
    assert {name: before[name] for name in after} == after
    assert len(before) == len(after) + 1


def test_fmt__has_nothing_to_do_the_second_time(folder: Path) -> None:
    call_policyc("fmt", "p", cwd=folder)
    before = state(folder)
    assert call_policyc("fmt", "p", cwd=folder) == Ran(0, "", "")
    assert state(folder) == before


def test_fmt__keeps_the_mode_and_the_link(folder: Path) -> None:
    path, link = folder / "p" / "messy.policy", folder / "link.policy"
    path.chmod(0o640)
    link.symlink_to(path)
    assert call_policyc("fmt", link.name, cwd=folder) == Ran(0, "", "link.policy: formatted\n")
    assert (link.is_symlink(), path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (True, TIDY, 0o640)


def test_fmt__formats_a_file_of_several_names_once(folder: Path) -> None:
    (folder / "link.policy").symlink_to("p/messy.policy")
    names = ("p/messy.policy", "p", folder / "p", "link.policy", "p/../p/messy.policy")
    assert call_policyc("fmt", *names, cwd=folder) == Ran(0, "", "p/messy.policy: formatted\n")


def test_fmt__a_file_of_any_name_can_be_given(folder: Path) -> None:
    (folder / "p" / "messy.policy").rename(folder / "messy.txt")
    assert call_policyc("fmt", "messy.txt", cwd=folder) == Ran(0, "", "messy.txt: formatted\n")
    assert (folder / "messy.txt").read_text() == TIDY


def test_fmt__line_ends_and_a_byte_order_mark(folder: Path) -> None:
    path = folder / "p" / "messy.policy"
    path.write_bytes(b"\xef\xbb\xbf" + MESSY.replace("\n", "\r\n").encode())
    assert call_policyc("fmt", "p", cwd=folder).code == 0
    assert path.read_bytes() == TIDY.encode()


def test_fmt__names_are_shown_escaped_and_found_as_they_are(folder: Path) -> None:
    name = b"\x1b[31m\xff.policy".decode(errors="surrogateescape")
    (folder / "p" / "messy.policy").rename(folder / "p" / name)
    assert call_policyc("fmt", "p", cwd=folder) == Ran(0, "", "p/<U+001B>[31m\ufffd.policy: formatted\n")
    assert (folder / "p" / name).read_text() == TIDY


# ---- standard input


def test_stdin__goes_to_standard_output(folder: Path) -> None:
    before = state(folder)
    assert call_policyc("fmt", "-", cwd=folder, input=MESSY) == Ran(0, TIDY, "")
    assert call_policyc("fmt", "-", cwd=folder, input=TIDY) == Ran(0, TIDY, "")
    assert state(folder) == before


def test_stdin__and_files(folder: Path) -> None:
    ran = call_policyc("fmt", "-", "p", "-", cwd=folder, input="on  cr0 log")
    assert ran == Ran(0, "on cr0 log\n", "p/messy.policy: formatted\n")


def test_stdin__is_utf_8_whatever_the_terminal_is() -> None:
    text = 'on cr0 log because "été"  # 漢\n'
    assert run_policyc("fmt", "-", input=text, env={"PYTHONIOENCODING": "ascii"}) == Ran(0, text, "")


def test_stdin__with_a_mistake_gives_no_text(folder: Path) -> None:
    ran = call_policyc("fmt", "-", cwd=folder, input=TYPO)
    assert ran == Ran(1, "", TYPO_FOUND.replace("p/typo.policy", "<stdin>"))


# ---- check and diff


def test_check__names_what_would_change_and_writes_nothing(folder: Path) -> None:
    before = state(folder)
    assert call_policyc("fmt", "p", "--check", cwd=folder) == Ran(1, "p/messy.policy\n", "")
    assert call_policyc("fmt", "p/sub", "--check", cwd=folder) == Ran(0, "", "")
    assert call_policyc("fmt", "-", "--check", cwd=folder, input=MESSY) == Ran(1, "<stdin>\n", "")
    assert state(folder) == before


@pytest.mark.parametrize(("options", "code"), [(["--diff"], 0), (["--diff", "--check"], 1)])
def test_diff__shows_what_would_change_and_writes_nothing(folder: Path, options: list[str], code: int) -> None:
    before = state(folder)
    assert call_policyc("fmt", "p", *options, cwd=folder) == Ran(code, DIFF, "")
    assert call_policyc("fmt", "p/sub", *options, cwd=folder) == Ran(0, "", "")
    stdin = call_policyc("fmt", "-", *options, cwd=folder, input=MESSY)
    assert stdin == Ran(code, DIFF.replace("p/messy.policy", "<stdin>"), "")
    assert state(folder) == before


def on_terminal(folder: Path, *arguments: str) -> str:
    """What a terminal gets to see."""
    master, slave = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    with os.fdopen(master, "rb") as reader:
        subprocess.run(
            [sys.executable, "-m", "policyc", *arguments], cwd=folder, env=environment, stdout=slave, timeout=60
        )
        os.close(slave)
        return os.read(reader.fileno(), 4096).decode().replace("\r\n", "\n")


def test_diff__is_in_color_on_a_terminal_alone(folder: Path) -> None:
    shown = on_terminal(folder, "fmt", "p", "--diff")
    assert '\x1b[31m-policy   "m"\x1b[0m\n\x1b[31m' in shown
    assert on_terminal(folder, "--color", "never", "fmt", "p", "--diff") == DIFF
    assert call_policyc("fmt", "p", "--diff", "--color", "always", cwd=folder).out == shown


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "out", "said", "written"),
    [
        ([], "", "p/messy.policy: formatted\n", TIDY),
        (["--check"], "p/messy.policy\n", "", MESSY),
        (["--diff"], DIFF, "", MESSY),
    ],
)
def test_mistake__leaves_the_file_and_formats_the_others(
    folder: Path, options: list[str], out: str, said: str, written: str
) -> None:
    (folder / "p" / "typo.policy").write_text(TYPO)
    wanted = contents(folder) | {"p/messy.policy": written.encode()}
    assert call_policyc("fmt", "p", *options, cwd=folder) == Ran(1, out, said + TYPO_FOUND)
    assert contents(folder) == wanted


def test_mistake__is_drawn_as_check_draws_it(folder: Path) -> None:
    (folder / "p" / "typo.policy").write_text(TYPO)
    checked = call_policyc("check", "p/typo.policy", cwd=folder)
    formatted = call_policyc("fmt", "p/typo.policy", cwd=folder)
    assert (formatted.code, formatted.out, formatted.err) == (checked.code, checked.err, checked.out)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"\xff", "P120"), (b"on cr0 log\0", "P121"), (b"#" * (MAX_FILE_BYTES + 1), "P122"), (b"", "P126")],
)
def test_mistake__what_is_no_policy_stays_as_it_is(folder: Path, content: bytes, code: str) -> None:
    (folder / "p" / "bad.policy").write_bytes(content)
    ran = call_policyc("fmt", "p", "p", cwd=folder)
    assert (ran.code, ran.out, ran.err.count(f"error[{code}]")) == (1, "", 1)
    assert contents(folder)["p/bad.policy"] == content
    assert contents(folder)["p/messy.policy"].decode() == TIDY


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([""], "error: an empty text names no file\n"),
        (["missing.policy"], "error: `missing.policy`: no such file or directory\n"),
        (
            ["empty"],
            "error: `empty` has no file called *.policy\n  help: files of another name can be given one by one\n",
        ),
        (
            ["/dev/null"],
            "error: `/dev/null` isn't a regular file, so it can't be rewritten\n"
            "  help: give - to format standard input\n",
        ),
    ],
)
def test_wrong_name__changes_nothing_anywhere(folder: Path, names: list[str], said: str) -> None:
    (folder / "empty").mkdir()
    before = state(folder)
    assert call_policyc("fmt", "p", *names, cwd=folder) == Ran(2, "", said)
    assert state(folder) == before


def test_usage(folder: Path) -> None:
    ran = call_policyc("fmt", cwd=folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith("Error: Missing argument 'FILE...'.\n")


def test_folder_without_leave_to_write__is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> tuple[int, str]:
        raise PermissionError(13, "Permission denied")

    before = state(folder)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert call_policyc("fmt", "p", cwd=folder) == Ran(2, "", "error: `p/messy.policy`: permission denied\n")
    assert state(folder) == before


@pytest.mark.parametrize("broken", [lambda file: "on cr3 log\n", lambda file: "not a policy\n"])
def test_defect_of_the_formatter__is_noticed_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[object], str]
) -> None:
    monkeypatch.setattr("policyc.cli.fmt.format_policy", broken)
    before = state(folder)
    ran = call_policyc("fmt", "p", cwd=folder)
    assert (ran.code, ran.out) == (70, "")
    assert "RuntimeError: the canonical form of `p/messy.policy` would say something else" in ran.err
    assert state(folder) == before
