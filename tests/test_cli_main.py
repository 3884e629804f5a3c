"""The outer shell of `policyc`: the list of commands, exit codes, colour, and what is said when things go wrong."""

from __future__ import annotations

import errno
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from policyc.cli import main as entry
from policyc.cli.command_table import CommandRow, CommandTable
from policyc.cli.exit_codes import FAILURES, CommandError, ExitCode, failure_of
from policyc.cli.main import COMMANDS, main
from tests.support.policyc_command import Ran, run_policyc

ESCAPE = "\x1b["

Work = Callable[[], object]
Ending = Callable[[Work], int]


def test_version() -> None:
    assert run_policyc("--version") == Ran(0, "policyc 0.1.0\n", "")


def test_no_command__is_a_usage_error() -> None:
    ran = run_policyc()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: policyc [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help__lists_every_command_with_its_summary(option: str) -> None:
    ran = run_policyc(option)
    listed = re.findall(r"^  ([a-z]+)  +([a-z].*)$", ran.out, re.MULTILINE)
    assert (ran.code, ran.err) == (0, "")
    assert listed == [(row.name, row.summary) for row in COMMANDS]


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("chek", "there is no command `chek`; did you mean `check`?"),
        ("zzz", "there is no command `zzz`"),
    ],
)
def test_unknown_command(typed: str, answer: str) -> None:
    usage = "Usage: policyc [OPTIONS] COMMAND [ARGS]...\nTry 'policyc --help' for help.\n\n"
    assert run_policyc(typed) == Ran(2, "", f"{usage}Error: {answer}\n")


def test_unknown_option() -> None:
    ran = run_policyc("--colour", "never")
    assert (ran.code, ran.out) == (2, "")
    assert "Did you mean '--color'?" in ran.err


def test_exit_codes__never_change() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FINDINGS": 1,
        "USAGE": 2,
        "ARTIFACT_REFUSED": 3,
        "TARGET_REFUSED": 4,
        "PROTECTION_LOST": 5,
        "INTERNAL": 70,
        "INPUT_OUTPUT": 74,
        "INTERRUPTED": 130,
        "READER_GONE": 141,
    }


def test_failures__name_exceptions_that_exist() -> None:
    for failure in FAILURES:
        module = __import__(failure.module, fromlist=[failure.name])
        assert issubclass(getattr(module, failure.name), Exception)


def test_failure_of__covers_subclasses_and_nothing_else() -> None:
    cases = {
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"): (74, "connection reset by peer"),
        PermissionError(errno.EACCES, "Permission denied", "/etc/plan"): (2, "`/etc/plan`: permission denied"),
        CommandError(ExitCode.TARGET_REFUSED, "no"): (4, "no"),
    }
    found = {error: (failure.code, failure.fact) for error in cases if (failure := failure_of(error))}
    assert found == cases
    assert failure_of(ZeroDivisionError()) is None


# ---- outcomes, by a command that ends as the test wants


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Ending:
    """Runs `policyc end`, whose only work is the function given, and gives its exit code."""

    def run(work: Work) -> int:
        monkeypatch.setattr("policyc.cli.check.command", click.Command("end", callback=work))
        monkeypatch.setattr(entry, "COMMANDS", (CommandRow("Tests", "end", "check", "end"),))
        return main(["end"])

    monkeypatch.delenv("POLICYC_DEBUG", raising=False)
    return run


def raising(error: BaseException) -> Work:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize("code", ExitCode)
def test_outcome__is_the_exit_code(ending: Ending, code: ExitCode) -> None:
    assert ending(lambda: code) == code


def test_outcome__none_is_ok(ending: Ending) -> None:
    assert ending(lambda: None) == ExitCode.OK


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            CommandError(ExitCode.ARTIFACT_REFUSED, "`p.json` isn't a plan", help="compile one"),
            3,
            "error: `p.json` isn't a plan\n  help: compile one\n",
        ),
        (CommandError(ExitCode.PROTECTION_LOST, "gone\x1b[2J"), 5, "error: gone<U+001B>[2J\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), 2, "error: `a`: no such file\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 74, "error: no space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (
            click.UsageError("both"),
            2,
            "Usage: policyc end [OPTIONS]\nTry 'policyc end --help' for help.\n\nError: both\n",
        ),
        (
            KeyError("two\nlines"),
            70,
            "internal error: KeyError: 'two\\nlines' (this is a defect of policyc: please report it as CONTRIBUTING.md "
            "says, with the output of the same command under POLICYC_DEBUG=1)\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_outcome__of_an_exception(
    ending: Ending,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    assert ending(raising(error)) == code
    assert capsys.readouterr() == ("", said)


def test_debug__shows_the_traceback_of_a_defect_and_of_a_failure(
    ending: Ending,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLICYC_DEBUG", "1")
    assert ending(raising(ZeroDivisionError("by zero"))) == 70
    assert ending(raising(CommandError(ExitCode.FINDINGS, "found"))) == 1
    assert capsys.readouterr().err.count("Traceback (most recent call last)") == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_broken_pipe__of_the_output_is_quiet(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "policyc", "--help"],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_broken_pipe__of_something_else_is_said(ending: Ending, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(raising(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 74
    assert capsys.readouterr() == ("", "error: broken pipe\n")


def test_full_disk__under_the_output_is_said() -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "policyc", "--help"], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (ran.returncode, ran.stderr) == (74, b"error: no space left on device\n")


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams__are_no_reason_to_fail(tmp_path: Path, stream: str) -> None:
    (tmp_path / "a.policy").write_text("deny write to kernel .text\n")
    script = f'"$0" -m policyc check a.policy {stream} && "$0" -m policyc check missing {stream}'
    ran = subprocess.run(
        ["sh", "-c", script, sys.executable], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    said = b"" if "2" in stream else b"error: `missing`: no such file or directory\n"
    assert (ran.returncode, ran.stderr) == (2, said)


def test_narrow_encoding__shows_characters_escaped() -> None:
    ran = run_policyc("check", "-", input="deny write to k\u00e4rnel\n", env={"PYTHONIOENCODING": "ascii"})
    assert (ran.code, ran.err) == (1, "")
    assert "k\\xe4rnel" in ran.out


def test_completion__knows_the_commands() -> None:
    env = {"_POLICYC_COMPLETE": "bash_complete", "COMP_WORDS": "policyc pro", "COMP_CWORD": "1"}
    assert run_policyc(env=env) == Ran(0, "plain,profile\n", "")


# ---- colour


@pytest.mark.parametrize(
    ("options", "environment", "on_terminal", "in_pipe"),
    [
        ([], {}, True, False),
        (["--color", "auto"], {}, True, False),
        (["--color", "always"], {}, True, True),
        (["--color", "never"], {}, False, False),
        ([], {"NO_COLOR": "1"}, False, False),
        ([], {"NO_COLOR": ""}, True, False),
        ([], {"TERM": "dumb"}, False, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True, True),
    ],
)
def test_color(options: list[str], environment: dict[str, str], on_terminal: bool, in_pipe: bool) -> None:
    arguments = [*options, "paint"]
    shown = painted(arguments, environment, terminal=True), painted(arguments, environment, terminal=False)
    assert shown == (on_terminal, in_pipe)


def test_color__behind_the_command_decides() -> None:
    assert not painted(["--color", "always", "paint", "--color", "never"], {}, terminal=True)


def painted(arguments: list[str], environment: dict[str, str], *, terminal: bool) -> bool:
    """Whether a command that prints in colour does so, in a process with that environment."""
    program = """
import sys, click
from policyc.cli import check, main
from policyc.cli.color import wants_color
from policyc.cli.command_table import CommandRow
check.command = click.Command("paint", callback=lambda: click.echo(click.style(wants_color(sys.stdout), fg="red")))
main.COMMANDS = (CommandRow("Tests", "paint", "check", "paint"),)
sys.exit(main.main(sys.argv[1:]))
"""
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    master, slave = pty.openpty()
    reading, writing = os.pipe()
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=variables | {"TERM": "xterm"} | environment,
        stdout=slave if terminal else writing,
        timeout=60,
        check=True,
    )
    os.close(slave)
    os.close(writing)
    shown = os.read(master if terminal else reading, 1024).decode()
    os.close(master)
    os.close(reading)
    assert ran.returncode == 0
    assert ("True" in shown) == (ESCAPE in shown)
    return ESCAPE in shown


# ---- the table of commands


def test_table__every_module_has_its_command() -> None:
    table = CommandTable(name="policyc", rows=COMMANDS, params=[], help="")
    context = click.Context(table)
    commands = {row.name: table.get_command(context, row.name) for row in COMMANDS}
    assert {name: command.name for name, command in commands.items() if command} == {name: name for name in commands}


def test_table__a_module_without_command_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.cli.check.command", "nothing")
    with pytest.raises(TypeError, match=r"^check\.command is not a command$"):
        CommandTable(name="policyc", rows=COMMANDS, params=[], help="").get_command(
            click.Context(click.Group()), "check"
        )
