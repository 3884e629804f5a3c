"""`policyc guest run --record` and `policyc guest replay`: a session of `policyc run`, and the same session again."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.policyc_command import COMMAND, LIMIT_SECONDS, Ran, call_policyc, run_policyc

TOLD = f"0001 out GET_VERSION 0200000001000000\n0002 in reply GET_VERSION 0200180001000000{'00' * 24}\n"
"""The answer to GET_VERSION, as v7 gives it."""

POLICY = """\
policy "small" for linux x86_64

text: deny write to kernel .text
table: deny write to kernel:sys_call_table
smep: on cr4 pin smep | smap
entry: on msr lstar deny
call: on hypercall 34/24 log
"""

ATTACKS = ("inline-hook", "syscall-hook", "xchg", "smep-clear", "lstar", "hypercall")
ANEW = ("time", "previous", "pid", "stopped_ms")
"""What a record has that is of its own run."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.policy").write_text(POLICY)
    assert call_policyc("guest", "profile", "-o", "small.profile", cwd=tmp_path).code == 0
    compile = ("compile", "small.policy", "--profile", "small.profile", "-o", "plan.json")
    assert call_policyc(*compile, cwd=tmp_path).code == 0
    return tmp_path


def guarded(folder: Path, audit: str, *guest: str) -> Ran:
    """`policyc run` with the guest, or what stands for it, at its other end; how that ended."""
    run = ("run", "plan.json", "--socket", "s", "--audit", audit, "--once")
    with subprocess.Popen([*COMMAND, *run], cwd=folder, stdout=subprocess.PIPE, text=True) as tool:
        try:
            assert tool.stdout is not None
            assert "LISTENING" in tool.stdout.readline()
            ran = run_policyc("guest", *guest, "--socket", "s", cwd=folder)
            tool.communicate(timeout=LIMIT_SECONDS)
            assert tool.returncode in (4, 5)
        finally:
            tool.kill()
    return ran


def records(path: Path) -> list[dict[str, object]]:
    found = []
    for line in path.read_text().splitlines():
        record = {name: value for name, value in json.loads(line).items() if name not in ANEW}
        record["fact"] = re.sub(r"process \d+", "process N", str(record.get("fact")))
        found.append(record)
    return found


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_a_session_of_run__again_gives_the_same_records(folder: Path, dialect: str) -> None:
    attacks = [word for name in ATTACKS for word in ("--attack", name)]
    recording = ("run", "--dialect", dialect, "--slide", "random", "--reconnect", "0.1", "--once", *attacks)
    lived = guarded(folder, "lived.ndjson", *recording, "--record", "kept")
    assert lived.code == 0
    assert sum(record["kind"] == "verdict" for record in records(folder / "lived.ndjson")) >= len(ATTACKS)

    again = guarded(folder, "again.ndjson", "replay", "kept", "--deadline", "30")
    lines = len((folder / "kept").read_text().splitlines())
    assert re.sub(r", \d+ asked again", "", again.out) == f"{lines} messages played, 0 differences\n"
    assert (again.code, again.err) == (0, "")
    assert records(folder / "again.ndjson") == records(folder / "lived.ndjson")

    shown = call_policyc("guest", "replay", "kept", "--show", cwd=folder)
    assert (shown.code, shown.err) == (0, "")
    head, *said = shown.out.splitlines()
    assert head == f"conversation 1, kvmi-{dialect}"
    assert len(said) == lines
    assert said[1:3] == ["     2 tool   answers the handshake, without a secret", "     3 tool   #1 GetVersion"]


def test_another_policy__is_another_conversation(folder: Path) -> None:
    recording = ("run", "--reconnect", "0.1", "--once", "--attack", "xchg", "--record", "kept")
    assert guarded(folder, "lived.ndjson", *recording).code == 0
    (folder / "small.policy").write_text(POLICY.replace("deny write to kernel:sys_call_table", "log write to idt"))
    compile = ("compile", "small.policy", "--profile", "small.profile", "-o", "plan.json", "--accept-hot-pages")
    assert call_policyc(*compile, cwd=folder).code == 0
    ran = guarded(folder, "again.ndjson", "replay", "kept", "--deadline", "1")
    assert (ran.code, ran.err) == (1, "")
    assert re.match(r"line \d+: recorded #\d+ SetPageAccess entries=\[", ran.out)


@pytest.mark.parametrize(
    ("content", "arguments", "ran"),
    [
        ("", ["--show"], Ran(2, "", "error: `kept` has no conversation\n")),
        ("", ["--socket", "s"], Ran(2, "", "error: `kept` has no conversation\n")),
        (
            "0001 out GET_INFO 0500000001000000\n",
            ["--show", "--dialect", "v7", "--conversation", "7"],
            Ran(2, "", "error: `kept` has no conversation 7\n"),
        ),
        (
            TOLD,
            ["--show", "--dialect", "v12"],
            Ran(2, "", "error: the recording's own messages are of kvmi-v7\n  help: leave out --dialect v12\n"),
        ),
        (
            TOLD,
            ["--socket", "s", "--dialect", "v12"],
            Ran(2, "", "error: the recording's own messages are of kvmi-v7\n  help: leave out --dialect v12\n"),
        ),
        (
            "hello\n",
            ["--show"],
            Ran(3, "", "error: `kept`: line 1 is none of a recording: a number, in or out, a name, bytes\n"),
        ),
        (
            "0001 out GET_INFO 0500000001000000\n",
            ["--show"],
            Ran(
                3,
                "",
                "error: `kept`: the recording doesn't tell which generation of KVMI it is\n  help: say --dialect\n",
            ),
        ),
        (
            "0001 out GET_INFO 0500000001000000\n",
            ["--show", "--dialect", "v7"],
            Ran(0, "conversation 1, kvmi-v7\n     1 tool   #1 GetInfo\n", ""),
        ),
        (
            "0001 out GET_INFO 0500000001000000\n",
            ["--socket", "s", "--conversation", "2"],
            Ran(2, "", "error: `kept` has no conversation 2\n"),
        ),
        (
            "0001 out GET_INFO 0500000001000000\n",
            ["--socket", "s", "--dialect", "v7", "--deadline", "0.1"],
            Ran(74, "", "error: `s`: nobody listened for 0.1 seconds\n"),
        ),
    ],
)
def test_a_file_that_says_less(tmp_path: Path, content: str, arguments: list[str], ran: Ran) -> None:
    (tmp_path / "kept").write_text(content)
    assert call_policyc("guest", "replay", "kept", *arguments, cwd=tmp_path) == ran


def test_one_of_socket_and_show__is_needed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    for arguments in ([], ["--show", "--socket", "s"]):
        ran = call_policyc("guest", "replay", "kept", *arguments, cwd=tmp_path)
        assert (ran.code, ran.err.splitlines()[-1]) == (2, "Error: say either --socket PATH or --show")


def test_a_file_that_is_no_recording__isnt_recorded_into(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear Sir\n")
    ran = call_policyc("guest", "run", "--socket", "s", "--record", "letter", "--once", cwd=tmp_path)
    assert (ran.code, (tmp_path / "letter").read_text()) == (2, "Dear Sir\n")
    assert ran.err == "error: `letter`: line 1 is none of a recording: a number, in or out, a name, bytes\n"
    assert ran.out == ""
