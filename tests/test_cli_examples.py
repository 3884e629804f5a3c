"""What `--help` shows as an example can be typed as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from policyc.cli.command_table import CommandTable
from policyc.cli.main import COMMANDS
from tests.support.policyc_command import call_policyc
from tests.support.small_kernel import SYSTEM_MAP, write_small_kernel

WAITING = {("run",), ("guest", "run"), ("guest", "replay"), ("guest", "build-linux"), ("doctor",)}
"""Commands that wait for a peer or for packages: tests of their own run them, and here their examples are parsed."""

Words = tuple[str, ...]


def leaves(group: click.Group, path: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    """Every command that does something, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(leaves(CommandTable(name="policyc", rows=COMMANDS, params=[], help="")))


def examples_of(command: click.Command) -> list[list[str]]:
    """The words of each example, without `policyc`."""
    lines = [line.strip() for line in (command.epilog or "").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("policyc ")]


EXAMPLES = [(path, words) for path, command in LEAVES.items() for words in examples_of(command)]


POLICY = """\
text: deny write to kernel .text
rodata: deny write to kernel .rodata
call: on hypercall 34/24 log

test "the system call table and the code of the kernel stay as they are" {
    write kernel:sys_call_table + 8 from 0xffffffffc0401000 => deny
    write kernel:schedule from 0xffffffffc0401000 => deny
    on hypercall 34/24 => log
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every file that the examples name."""
    write_small_kernel(tmp_path)
    (tmp_path / "kallsyms.txt").write_text(SYSTEM_MAP)
    (tmp_path / "policies").mkdir()
    for name in ("kernel.policy", "policies/kernel.policy"):
        (tmp_path / name).write_text(POLICY)
    compiled = call_policyc("compile", "policies", "--profile", "kernel.profile", "-o", "plan.json", cwd=tmp_path)
    assert compiled.code == 0, compiled.err
    return tmp_path


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help__shows_examples_of_the_command_itself(tmp_path: Path, path: Words) -> None:
    ran = call_policyc(*path, "--help", cwd=tmp_path)
    shown = ran.out.partition("\n  Examples:\n")[2].splitlines()
    assert (ran.code, ran.err) == (0, "")
    assert [shlex.split(line)[1:] for line in shown] == examples_of(LEAVES[path]) != []
    assert all(line.startswith("    policyc ") for line in shown)
    assert all(words[: len(path)] == list(path) for words in examples_of(LEAVES[path]))


@pytest.mark.parametrize(("path", "words"), EXAMPLES, ids=[" ".join(words) for _, words in EXAMPLES])
def test_example__works(folder: Path, path: Words, words: list[str]) -> None:
    if path in WAITING:
        LEAVES[path].make_context("policyc", words[len(path) :])
    else:
        ran = call_policyc(*words, cwd=folder)
        assert ran.code == 0, ran.err
