"""Lines in and out of the console."""

from __future__ import annotations

import io
import json
import os

import pytest

from policyc.emulator.console import COMMANDS, Console, ConsoleCommand, ConsoleError, parse
from policyc.emulator.console_input import ConsoleInput
from policyc.emulator.routines import ROUTINES, Kind
from policyc.emulator.script import HELD, Script
from policyc.emulator.small_machine import SmallMachine

ACTS = ", ".join(name for name, routine in ROUTINES.items() if routine.kind is Kind.ACT)


@pytest.mark.parametrize("line", ["", "   ", "# a comment", "  # another"])
def test_nothing_to_do(line: str) -> None:
    assert parse(line, ROUTINES) is None


def test_commands_and_routines() -> None:
    for word in COMMANDS:
        if word not in ("attack", "act", "online", "offline", "dma"):
            command = parse(f" {word}  # now", ROUTINES)
            assert command is not None
            assert (command.word, command.routine) == (word, None)
    for name, routine in ROUTINES.items():
        command = parse(f"{routine.kind.value} {name}", ROUTINES)
        assert command is not None
        assert command.routine == routine
        for written in (f"{name} @3", f"{name}@3"):
            assert parse(f"{routine.kind.value} {written}", ROUTINES) == ConsoleCommand(command.word, routine.on(3))


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("online 3", ConsoleCommand("online", number=3)),
        ("hangup 25", ConsoleCommand("hangup", number=25)),
        ("hangup", ConsoleCommand("hangup")),
        ("dma jiffies 00ff", ConsoleCommand("dma", symbol="jiffies", data=b"\x00\xff")),
        ("dma sys_call_table+0x8 90", ConsoleCommand("dma", symbol="sys_call_table", offset=8, data=b"\x90")),
    ],
)
def test_commands_that_take_something(line: str, command: ConsoleCommand) -> None:
    assert parse(line, ROUTINES) == command


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attak straddle", "no such command: 'attak'; did you mean attack?"),
        ("attack stradle", "no such attack: 'stradle'; did you mean straddle?"),
        ("act straddle", f"no such act: 'straddle'; there are {ACTS}"),
        ("act", f"`act` takes one name: {ACTS}"),
        ("quit now", "`quit` takes nothing after it"),
        ("attack xchg @x", "@ stands before the number of a vCPU"),
        ("attack xchg@", "@ stands before the number of a vCPU"),
        ("attack xchg@1 2", "@ stands before the number of a vCPU"),
        ("attack stradle@1", "no such attack: 'stradle'; did you mean straddle?"),
        ("act @1", f"`act` takes one name: {ACTS}"),
        ("online", "`online` takes the number of a vCPU"),
        ("offline -1", "`offline` takes the number of a vCPU"),
        ("hangup 1 2", "`hangup` takes a number of messages from 1 on, or nothing"),
        ("hangup 0", "`hangup` takes a number of messages from 1 on, or nothing"),
        ("dma jiffies", "`dma` takes a symbol and bytes in hexadecimal, such as `sys_call_table+0x8 9090`"),
        ("dma jiffies+q 90", "`dma` takes a symbol and bytes in hexadecimal, such as `sys_call_table+0x8 9090`"),
        ("dma jiffies 9", "`dma` takes a symbol and bytes in hexadecimal, such as `sys_call_table+0x8 9090`"),
        ("x" * 2000, "a line has at most 1024 characters"),
        ("\x1b[31mhi", "no such command: '\\x1b[31mhi'; there are " + ", ".join(COMMANDS)),
    ],
)
def test_lines_that_are_not_understood(line: str, message: str) -> None:
    with pytest.raises(ConsoleError) as caught:
        parse(line, ROUTINES)
    assert str(caught.value) == message


def run(name: str, *, as_json: bool) -> str:
    out = io.StringIO()
    Console(out, as_json=as_json).result(SmallMachine.boot().run_routine(name), ROUTINES[name].kind.value)
    return out.getvalue()


def test_a_result_in_words() -> None:
    assert run("straddle", as_json=False) == (
        "attack straddle: changed, guarded_object-0x4 aaaaaaaa04000000 -> 0141414141414141, returned, 0 events, "
        "213 instructions\n"
    )
    assert run("hypercall", as_json=False) == "act hypercall: done, returned -1000, 0 events, 203 instructions\n"


def test_a_result_for_programs() -> None:
    assert json.loads(run("straddle", as_json=True)) == {
        "kind": "attack",
        "name": "straddle",
        "vcpu": 0,
        "outcome": "changed",
        "target": "guarded_object-0x4",
        "before": "aaaaaaaa04000000",
        "after": "0141414141414141",
        "fault": None,
        "returned": 0,
        "jiffies": [0, 0],
        "instructions": 213,
        "events": 0,
    }


def script(lines: list[str], attacks: tuple[str, ...] = ()) -> tuple[list[dict[str, object]], list[str]]:
    """What is written, and which commands are handed back, until nothing is left to do."""
    out = io.StringIO()
    machine = SmallMachine.boot()
    made = Script(ROUTINES, attacks, Console(out, as_json=True))
    for line in lines:
        made.take(line)
    made.release()
    handed = []
    for _ in range(200):
        command = made.advance(machine, 0.0)
        if command is not None:
            handed.append(command.word)
        machine.run_until_idle()
        if made.exhausted:
            break
    assert made.exhausted
    return [json.loads(line) for line in out.getvalue().splitlines()], handed


def test_without_any_wish_everything_is_shown_once() -> None:
    written, _ = script([])
    assert [line["name"] for line in written] == sorted(ROUTINES, key=lambda name: ROUTINES[name].may_hold)
    unchanged = {line["name"] for line in written if line["outcome"] == "unchanged"}
    assert unchanged == set()


def test_what_was_asked_for_comes_in_order() -> None:
    written, _ = script([], ("xchg", "straddle", "xchg"))
    assert [(line["name"], line["outcome"]) for line in written] == [
        ("xchg", "changed"),
        ("straddle", "changed"),
        ("xchg", "unchanged"),
    ]


def test_lines_are_obeyed_in_order_and_there_is_no_tour() -> None:
    written, handed = script(["status", "attack straddle", "nonsense", "act patch", "", "help"])
    assert [(line["kind"], line.get("name")) for line in written] == [
        ("attack", "straddle"),
        ("error", None),
        ("act", "patch"),
    ]
    assert handed == ["status", "help"]


def test_what_is_held_ends_a_tour_and_whatever_its_vcpu_was_to_do_next() -> None:
    out = io.StringIO()
    machine = SmallMachine.boot()
    made = Script(ROUTINES, ("push", "straddle"), Console(out, as_json=True))
    made.release()
    made.advance(machine, 5.0)
    assert made.deadline == 5.0 + HELD
    machine.stopped = True
    made.advance(machine, 100.0)
    machine.stopped = False
    made.advance(machine, 99.9 + HELD)
    assert (out.getvalue(), made.exhausted) == ("", False)
    made.advance(machine, 100.0 + HELD)
    assert made.exhausted
    held, lost = (json.loads(line) for line in out.getvalue().splitlines())
    assert (held["name"], held["outcome"], held["before"]) == ("push", "held", held["after"])
    assert (lost["name"], lost["outcome"], lost["reason"]) == ("straddle", "lost", "vCPU 0 is held")


def test_what_the_console_asked_for_is_waited_for() -> None:
    out = io.StringIO()
    machine = SmallMachine.boot()
    made = Script(ROUTINES, (), Console(out, as_json=True))
    made.take("attack push")
    made.release()
    made.advance(machine, 0.0)
    made.advance(machine, 10 * HELD)
    assert (out.getvalue(), made.exhausted) == ("", False)


def test_a_line_that_is_refused_waits_as_well() -> None:
    out = io.StringIO()
    machine = SmallMachine.boot()
    made = Script(ROUTINES, (), Console(out, as_json=True))
    for line in ("attack straddle", "attack stradle"):
        made.take(line)
    for _ in range(2):
        made.advance(machine, 0.0)
    assert out.getvalue() == ""
    machine.run_until_idle()
    for _ in range(2):
        made.advance(machine, 0.0)
    assert [json.loads(line)["kind"] for line in out.getvalue().splitlines()] == ["attack", "error"]


def test_a_line_waits_for_the_routine_before_it_but_not_for_ever() -> None:
    out = io.StringIO()
    machine = SmallMachine.boot()
    made = Script(ROUTINES, (), Console(out, as_json=True))
    made.take("attack straddle")
    made.take("status")
    assert made.advance(machine, 10.0) is None
    machine.stopped = True
    assert made.advance(machine, 10.5) is None
    late = made.advance(machine, 11.5)
    assert late is not None
    assert late.word == "status"
    made.forget("the machine was reset")
    assert json.loads(out.getvalue()) == {
        "kind": "attack",
        "name": "straddle",
        "vcpu": 0,
        "outcome": "lost",
        "reason": "the machine was reset",
    }


@pytest.mark.parametrize("state", [3, 1], ids=["running", "booting"])
def test_a_panic_loses_what_is_under_way_and_what_comes_after(state: int) -> None:
    out = io.StringIO()
    machine = SmallMachine.boot()
    made = Script(ROUTINES, ("xchg",), Console(out, as_json=True))
    made.take("attack straddle")
    made.advance(machine, 0.0)
    machine.write_int("system_state", state, 4)
    machine.write_int("panic_vector", 14)
    machine.write_int("panics", 1)
    made.take("act patch")
    made.release()
    for _ in range(3):
        made.advance(machine, 0.0)
    lost = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["name"] for line in lost] == ["straddle", "patch", "xchg"]
    assert {line["outcome"] for line in lost} == {"lost"}
    assert {line["reason"] for line in lost} == {"the guest's kernel panicked on exception 14"}
    assert made.exhausted


def test_lines_come_from_a_stream_in_memory_at_once() -> None:
    made = ConsoleInput(io.StringIO("one\ntwo"))
    assert (list(made.lines()), made.ended, made.descriptor) == (["one", "two"], True, None)


def test_lines_come_from_a_pipe_as_they_are_written() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream:
        made = ConsoleInput(stream)
        assert made.descriptor == reader
        os.write(writer, b"one\ntw")
        made.read()
        assert list(made.lines()) == ["one"]
        os.write(writer, b"o\n\xff\n" + b"x" * 5000)
        made.read()
        made.read()
        assert [line[:3] for line in made.lines()] == ["two", "\N{REPLACEMENT CHARACTER}", "xxx"]
        os.close(writer)
        made.read()
        made.read()
        assert (made.ended, list(made.lines())) == (True, [""])
