"""`policyc run`: what it prints while it runs, and how it ends."""

from __future__ import annotations

import errno
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from policyc.cli import record_printer
from policyc.cli.record_lines import record_line
from policyc.cli.record_printer import RecordPrinter
from tests.support.policyc_command import Ran, call_policyc
from tests.support.small_kernel import write_small_kernel

VERDICT = {
    "kind": "verdict",
    "severity": "critical",
    "event": "pf",
    "vcpu": 1,
    "rip": "0xffffffff81001000",
    "cr3": "0x1000",
    "access": "write",
    "gpa": "0x1a00180",
    "gva": None,
    "effect": "deny",
    "would": "deny",
    "done": "skip",
    "rules": [{"policy": "text", "rule": "kernel-text", "file": "a.policy", "line": 4}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a plan that has one rule."""
    write_small_kernel(tmp_path)
    (tmp_path / "a.policy").write_text("kernel-text: deny write to kernel .text\n")
    compiled = call_policyc("compile", "a.policy", "--profile", "kernel.profile", "-o", "plan.json", cwd=tmp_path)
    assert compiled.code == 0
    return tmp_path


# ---- one record, one line


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            VERDICT,
            "critical  write gpa 0x1a00180 gva unknown at rip 0xffffffff81001000 on vCPU 1: deny by "
            "text: kernel-text (a.policy:4): skip",
        ),
        (
            VERDICT | {"effect": "log", "severity": "low"},
            "low       write gpa 0x1a00180 gva unknown at rip 0xffffffff81001000 on vCPU 1: log "
            "(would be deny) by text: kernel-text (a.policy:4): skip",
        ),
        (
            VERDICT | {"effect": "deny", "retried": 2, "delivered": {"vector": 13, "error_code": 0}},
            "critical  write gpa 0x1a00180 gva unknown retried 2 delivered vector 13 error_code 0 at rip "
            "0xffffffff81001000 on vCPU 1: deny by text: kernel-text (a.policy:4): skip",
        ),
        (
            {
                "kind": "verdict",
                "severity": "high",
                "event": "unhook",
                "effect": "log",
                "would": "log",
                "done": "let go",
            },
            "high      unhook: log: let go",
        ),
        (
            {"kind": "state", "severity": "info", "state": "ARMED", "fact": "1 rule\x1b[2J", "vcpus": 2, "notes": []},
            "info      ARMED: 1 rule<U+001B>[2J (vcpus 2)",
        ),
        (
            {
                "kind": "state",
                "severity": "info",
                "state": "CLOSED",
                "fact": "end",
                "acted": {"deny": 8},
                "notes": ["a", "b"],
            },
            "info      CLOSED: end (acted deny 8, notes a; b)",
        ),
        (
            {
                "kind": "verdict",
                "severity": "info",
                "event": "cr",
                "vcpu": 0,
                "rip": "0x1",
                "cr": 4,
                "old": "0x20",
                "new": "0x0",
                "effect": "log",
                "would": "log",
                "done": "let through",
            },
            "info      cr 4 old 0x20 new 0x0 at rip 0x1 on vCPU 0: log: let through",
        ),
        ({"kind": "new", "severity": "\x1b", "a": {"b": 1}}, "<U+001B>  kind new severity <U+001B> a b 1"),
        (
            {"kind": "dropped", "severity": "high", "records": 7},
            "high      7 records aren't shown: they came faster than they could be printed",
        ),
    ],
)
def test_record_line(record: dict[str, object], line: str) -> None:
    shown = click.unstyle(record_line(record))
    assert (shown.split(), shown.isprintable()) == (line.split(), True)


def test_record_line__colours_the_severity_alone() -> None:
    assert record_line(VERDICT).startswith("\x1b[31m\x1b[1mcritical\x1b[0m  write gpa")
    assert "\x1b" not in record_line({"kind": "state", "state": "ARMED", "fact": "ok"})


# ---- printing never keeps the guest waiting


def numbers(count: int) -> Iterator[dict[str, object]]:
    return ({"number": number} for number in range(count))


def test_printer__prints_everything_in_order() -> None:
    printed: list[str] = []
    with RecordPrinter(lambda record: f"{record['number']}", printed.append) as printer:
        for record in numbers(5000):
            printer(record)
    assert printed == [str(number) for number in range(5000)]


def test_printer__counts_what_a_stopped_terminal_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller goes on while nothing is printed, and afterwards the gap is named where it is."""
    monkeypatch.setattr(record_printer, "MAX_WAITING", 2)
    printed: list[str] = []
    taken, go_on = queue.Queue[None](), threading.Event()

    def write(line: str) -> None:
        taken.put(None)
        go_on.wait()
        printed.append(line)

    def line(record: record_printer.Record) -> str:
        return str(record.get("number", record))

    with RecordPrinter(line, write) as printer:
        for record in numbers(1):
            printer(record)
        taken.get()  # the terminal holds the first one, and two may wait
        for record in numbers(5):
            printer(record)
        go_on.set()
    missed = str({"kind": "dropped", "severity": "high", "records": 3})
    assert printed == ["0", missed, "0", "1"]


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_printer__ends_quietly_when_nobody_reads(number: int) -> None:
    calls: list[str] = []

    def write(line: str) -> None:
        calls.append(line)
        raise OSError(number, os.strerror(number))

    with RecordPrinter(str, write) as printer:
        for record in numbers(100):
            printer(record)
    assert len(calls) == 1


def test_printer__leaves_a_terminal_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_printer, "FAREWELL_SECONDS", 0.01)
    monkeypatch.setattr(record_printer, "MAX_WAITING", 1)
    never = threading.Event()

    def write(line: str) -> None:
        never.wait()

    with RecordPrinter(str, write) as printer:
        for record in numbers(10):
            printer(record)
    never.set()


# ---- the command


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.json"], 2, "error: `missing.json`: no such file or directory\n"),
        (
            ["kernel.profile"],
            3,
            "error: `kernel.profile`: this is not a policyc plan\n"
            "  help: give the file that `policyc compile -o` wrote\n",
        ),
        (["plan.json", "--cookie-file", "missing"], 2, "error: `missing`: no such file or directory\n"),
        (["plan.json", "--cookie-file", "empty"], 2, "error: `empty`: a secret has 1 to 65536 bytes\n"),
    ],
)
def test_run__refuses_before_it_listens(folder: Path, arguments: list[str], code: int, said: str) -> None:
    (folder / "empty").touch()
    before = sorted(folder.rglob("*"))
    assert call_policyc("run", *arguments, "--socket", "s", cwd=folder) == Ran(code, "", said)
    assert sorted(folder.rglob("*")) == before


def test_run__a_damaged_plan(folder: Path) -> None:
    plan = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(plan.replace("kernel-text", "kernel_text"))
    ran = call_policyc("run", "plan.json", "--socket", "s", cwd=folder)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: `plan.json`: the plan was damaged or edited")


def test_run__a_socket_that_cannot_be_made(folder: Path) -> None:
    ran = call_policyc("run", "plan.json", "--socket", "missing/s", cwd=folder)
    assert (ran.code, ran.out) == (74, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") <= 2


@pytest.fixture
def running(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `policyc run` on the socket `s` and returns once it listens."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "policyc", "run", "plan.json", "--socket", "s", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        assert b"LISTENING" in process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run__ends_well_when_told_to(
    folder: Path, running: Callable[..., subprocess.Popen[bytes]], number: signal.Signals
) -> None:
    process = running()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert out.splitlines()[-1].startswith(b"info      CLOSED: ")
    assert not (folder / "s").exists()


def test_run__once__a_guest_that_was_never_guarded(
    folder: Path, running: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = running("--once", "--format", "json")
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(folder / "s"))
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (4, b"")
    assert b'"state": "HANDSHAKE"' in out


def test_run__goes_on_when_nobody_reads(folder: Path, running: Callable[..., subprocess.Popen[bytes]]) -> None:
    """With the pipe behind it closed, it still takes guests and ends as it would."""
    process = running("--once")
    assert process.stdout is not None
    process.stdout.close()
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(folder / "s"))
    assert process.stderr is not None
    assert (process.wait(timeout=30), process.stderr.read()) == (4, b"")
