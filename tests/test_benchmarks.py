"""Every benchmark runs to its end and prints its figures; how good they are is not a matter for tests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import compile as compile_benchmark
from benchmarks import conditions, emulator, linux_guest, mechanisms, page_access, parse, reply_loop
from benchmarks.exchange import Exchange, Kind, Part, recorded
from benchmarks.kernel_process import Peer
from policyc.addresses import PAGE_SIZE, Gpa
from policyc.kvmi import V7, ReadPhysical
from policyc.kvmi.framing import HEADER
from tests.support.linux_guest import linux_folder
from tests.support.scripted_kernel import IMAGE_GPA, Conversation, compile_plan

ROOT = Path(__file__).parent.parent
PATIENCE = 90
"""Seconds after which a benchmark is taken to hang."""

BENCHMARKS: dict[ModuleType, Callable[[], list[str]]] = {
    compile_benchmark: list,
    conditions: list,
    emulator: list,
    linux_guest: lambda: [str(linux_folder())],
    mechanisms: list,
    page_access: list,
    parse: list,
    reply_loop: list,
}
"""What each is given besides the amount of work."""

HELPERS = {"amounts", "exchange", "kernel_process", "spread"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What a fresh interpreter makes of the arguments."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


def numbers(value: object) -> list[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    assert isinstance(value, int | float)
    return [value]


def test_every_benchmark_is_here() -> None:
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}

    assert names - HELPERS == {module.__name__.rpartition(".")[2] for module in BENCHMARKS}


@pytest.mark.parametrize("module", BENCHMARKS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_a_benchmark_prints_its_figures(module: ModuleType) -> None:
    assert module.__file__ is not None
    ran = python(module.__file__, "--least", *BENCHMARKS[module]())

    assert (ran.returncode, ran.stderr) == (0, "")
    *rows, last = ran.stdout.splitlines()
    figures = numbers(json.loads(last))
    assert rows
    assert figures
    assert all(figure >= 0 for figure in figures)


def test_a_tool_that_reads_all_the_time_is_played_to() -> None:
    # Its self-test begins when it is armed, and it reads guarded bytes again and again.
    ran = python(
        "-c",
        "from benchmarks.reply_loop import COLLATERAL, POLICY, compile_plan\n"
        "from benchmarks.exchange import played_seconds, recorded\n"
        "from benchmarks.kernel_process import guarded_seconds\n"
        "from policyc.runtime.locate import ArmingOptions\n"
        "plan = compile_plan(POLICY)\n"
        "parts = recorded(plan, COLLATERAL)\n"
        "play = lambda peer: played_seconds(peer, COLLATERAL, parts, 300)\n"
        "print(guarded_seconds(plan, COLLATERAL.kernel(), play, ArmingOptions(verify=0.001)) > 0)\n",
    )

    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "True\n")


def test_a_playing_kernel_that_fails_ends_the_benchmark() -> None:
    ran = python(
        "-c",
        "from benchmarks.kernel_process import in_child\nin_child(lambda link: 1 / 0, lambda link: 'nobody')\n",
    )

    assert ran.returncode == 1
    assert "ZeroDivisionError" in ran.stderr
    assert "the process that plays the kernel failed; at the other end: nobody" in ran.stderr


@contextmanager
def playing() -> Iterator[tuple[Exchange, Conversation, socket.socket, list[Part], int]]:
    """An exchange about a collateral write, the tool's end of its socket pair, what is played, and the first number."""
    kind, plan = Kind(reply_loop.COLLATERAL.target), compile_plan(reply_loop.POLICY)
    parts = recorded(plan, kind)
    talk = Conversation(plan, kind.kernel())
    talk.connect()
    first = kind.say(talk.peer, 0)
    talk.peer.kernel.data_to_send()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(PATIENCE)
        yield Exchange(Peer(theirs, talk.peer), parts, first), talk, ours, parts, first


def test_a_command_between_event_and_reply_is_answered() -> None:
    with playing() as (exchange, talk, tool, (event, reply), first):
        talk.tool.send(ReadPhysical(Gpa(IMAGE_GPA), 16))
        (command,) = talk.tool.data_to_send()
        tool.sendall(command + reply.messages[0].with_values(first, 7))

        exchange.play(7)

        said = tool.recv(PAGE_SIZE)
        sent = event.messages[0].with_values(first, 7)
        assert said.startswith(sent)
        answer = said[len(sent) :]
        assert HEADER.unpack_from(answer)[2] == HEADER.unpack_from(command)[2]
        assert answer.endswith(bytes([0x90]) * 16)


def test_a_reply_to_another_event_ends_the_benchmark() -> None:
    with playing() as (exchange, _, tool, (_, reply), first):
        tool.sendall(reply.messages[0].with_values(first + 35, 7))

        with pytest.raises(SystemExit, match="in a way that it didn't before"):
            exchange.play(7)


def test_every_event_has_its_own_number_and_registers() -> None:
    with playing() as (exchange, _, tool, (event, reply), first):
        for number in range(3):
            tool.sendall(reply.messages[0].with_values(first + number, 100 + number))
            exchange.play(100 + number)

            assert tool.recv(PAGE_SIZE) == event.messages[0].with_values(first + number, 100 + number)
        assert len({event.messages[0].with_values(first, rax) for rax in range(3)}) == 3


def test_a_fault_is_confirmed_once() -> None:
    parts = recorded(compile_plan(mechanisms.POLICY), mechanisms.KINDS["faulted"])

    said = [HEADER.unpack_from(message.data) for part in parts if part.by_kernel for message in part.messages]
    events = [number for message_id, _, number in said if message_id == V7.framing.vcpu_event]
    assert len(events) == 2
    assert events == sorted(set(events))
