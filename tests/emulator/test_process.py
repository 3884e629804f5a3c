"""The guest's process, over a real socket and a real console."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from policyc.addresses import Gpa
from policyc.emulator.options import GuestOptions
from policyc.emulator.process import UnusableError, run_guest
from policyc.emulator.routines import ROUTINES
from policyc.kvmi import (
    DONE,
    Action,
    ControlEvents,
    ControlMsr,
    ControlVmEvents,
    Dialect,
    Event,
    EventKind,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    GetRegistersReply,
    Hello,
    InjectException,
    MsrData,
    NewValue,
    PageAccess,
    PauseVcpu,
    SetRegisters,
    TranslateGva,
    TranslateGvaReply,
    set_page,
)
from tests.support.emulator_process import GuestThread, SocketTool, listening

SLIDE = 0x40_0000


def options(path: Path | None, **changes: object) -> GuestOptions:
    values: dict[str, object] = {"socket": path, "slide": SLIDE, "reconnect": 0.01, "settle": 0.0} | changes
    return GuestOptions(**values)  # type: ignore[arg-type]  # a test's own keyword table


def run(options: GuestOptions, typed: str = "") -> tuple[int, list[str]]:
    out = io.StringIO()
    status = run_guest(options, io.StringIO(typed), out)
    return status, out.getvalue().splitlines()


def test_without_a_tool_the_tour_shows_that_every_attack_succeeds() -> None:
    status, lines = run(options(None, once=True))
    assert status == 0
    assert len(lines) == len(ROUTINES)
    assert not [line for line in lines if "unchanged" in line]


def test_the_console_is_obeyed() -> None:
    status, lines = run(options(None, json=True, attacks=("xchg",)), "attack straddle\nstatus\nattack nothing\nquit\n")
    assert status == 0
    assert [(answer["kind"], answer.get("name")) for answer in map(json.loads, lines)] == [
        ("attack", "straddle"),
        ("status", None),
        ("error", None),
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attacks": ("nothing",)}, "no such routine: nothing"),
        ({"slide": 4096}, "a slide is a multiple of 0x200000 from 0 to 0x3e000000, not 0x1000"),
        ({"ram_mib": 4096}, "guest memory must be a multiple of 2 MiB and at most 1024 MiB, not 4294967296"),
    ],
)
def test_options_that_cannot_be_had(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UnusableError) as caught:
        run(options(None, **changes))
    assert (caught.value.message, caught.value.help) == (sentence, None)


def test_a_secret_that_cannot_be_read() -> None:
    with pytest.raises(FileNotFoundError):
        run(options(None, cookie_file=Path("/nonexistent/cookie")))


def test_without_the_engine_one_sentence_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['unicorn'] = None; import io;"
        "from policyc.emulator.options import GuestOptions; from policyc.emulator.process import *\n"
        "try: run_guest(GuestOptions(), io.StringIO(), sys.stdout)\n"
        "except UnusableError as error: print(error.message, error.help, sep='; ')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ("the guest needs the Unicorn engine, which isn't installed; pip install 'policyc[guest]'\n")


def arm(tool: SocketTool, symbol_gva: int, rights: PageAccess) -> Gpa:
    """What a tool does: pause, events, rights, go on."""
    tool.connection.send(PauseVcpu(0, True))
    tool.next(object)
    pause: Event = tool.next(Event)
    assert tool.ask(ControlEvents(0, EventKind.PF, True)) == DONE
    translated = tool.ask(TranslateGva(0, symbol_gva))  # type: ignore[arg-type]  # a plain number from the image
    assert isinstance(translated, TranslateGvaReply)
    assert tool.ask(set_page(translated.gpa, rights)) == DONE
    tool.reply(pause)
    return translated.gpa


def test_attacks_wait_for_a_tool_that_arms_and_are_stopped(dialect: Dialect, tmp_path: Path) -> None:
    from policyc.emulator.image import small_image

    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(
            options(path, dialect=dialect.name, attacks=("straddle", "inline-hook"), settle=60.0, once=True, name="vm1")
        )
        tool = SocketTool(server)
        hello: Hello = tool.greet()
        assert (hello.name, hello.max_gpa) == ("vm1", 64 << 20 if dialect.name == "kvmi-v12" else None)
        assert tool.ask(GetInfo()) == GetInfoReply(1)
        target = arm(tool, small_image().address("guarded_object", SLIDE), PageAccess.R)
        event: Event = tool.next(Event)
        assert (event.kind, event.gpa) == (EventKind.PF, target - 4)
        assert tool.ask(InjectException(0, 13)) == DONE
        tool.reply(event, Action.RETRY)
        tool.reply(tool.next(Event))
        assert guest.hear()["kind"] == "connected"
        straddle = guest.hear()
        assert (straddle["name"], straddle["outcome"], straddle["fault"], straddle["events"]) == (
            "straddle",
            "unchanged",
            13,
            2,
        )
        assert guest.hear()["outcome"] == "changed"
        assert guest.end() == 0
        tool.close()


def test_a_guest_that_stands_still_still_answers_its_console(tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, settle=60.0))
        tool = SocketTool(server)
        tool.greet()
        tool.connection.send(PauseVcpu(0))
        tool.next(object)
        pause: Event = tool.next(Event)
        guest.type("status")
        assert guest.hear("status")["guest"] == "standing still until pause is answered"
        tool.reply(pause)
        assert tool.ask(GetInfo()) == GetInfoReply(1)
        guest.type("status")
        assert guest.hear("status")["guest"] == "running"
        guest.type("quit")
        assert guest.end() == 0
        tool.close()


def test_a_tool_that_comes_late_and_one_that_comes_again(dialect: Dialect, tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    guest = GuestThread(options(path, dialect=dialect.name, settle=60.0))
    waiting = guest.hear()
    assert (waiting["kind"], waiting["reason"]) == ("waiting", f"{path}: No such file or directory")
    with listening(path) as server:
        for _ in range(2):
            tool = SocketTool(server)
            tool.greet()
            assert guest.hear("connected")["socket"] == str(path)
            tool.close()
            assert guest.hear("disconnected")["reason"] == "the tool closed the connection"
        tool = SocketTool(server)
        tool.greet()
        tool.socket.sendall(b"\xff" * 64)
        assert guest.hear("disconnected")["reason"].startswith("the tool broke the protocol: ")
        tool.close()
        SocketTool(server).close()
    guest.type("quit")
    assert guest.end() == 0


def test_the_cookie_is_checked(tmp_path: Path) -> None:
    path, cookie = tmp_path / "tool.sock", tmp_path / "cookie"
    cookie.write_bytes(b"secret")
    with listening(path) as server:
        guest = GuestThread(options(path, cookie_file=cookie, settle=60.0))
        tool = SocketTool(server, b"wrong")
        with pytest.raises(ConnectionError):
            tool.greet()
        assert guest.hear("disconnected")["reason"] == "the tool doesn't know the secret"
        tool.close()
        tool = SocketTool(server, b"secret")
        tool.greet()
        guest.type("quit")
        assert guest.end() == 0
        tool.close()


def test_a_reset_brings_the_machine_back_as_new(tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, settle=60.0))
        tool = SocketTool(server)
        tool.greet()
        guest.type("attack straddle")
        assert guest.hear("attack")["before"] == "aaaaaaaa04000000"
        guest.type("reset")
        assert guest.hear("disconnected")["reason"] == "the machine was reset"
        tool.close()
        tool = SocketTool(server)
        tool.greet()
        guest.type("attack straddle")
        assert guest.hear("attack")["before"] == "aaaaaaaa04000000"
        guest.type("quit")
        assert guest.end() == 0
        tool.close()


def test_unhook_lets_the_tool_leave_first(tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, settle=60.0))
        tool = SocketTool(server)
        tool.greet()
        tool.ask(ControlVmEvents(EventKind.UNHOOK, True))
        guest.type("unhook")
        assert tool.next(Event).kind is EventKind.UNHOOK
        tool.close()
        assert guest.hear("disconnected")["reason"] == "the tool closed the connection"
        guest.type("quit")
        assert guest.end() == 0


def test_a_crash_ends_the_process(tmp_path: Path) -> None:
    """What happened is told before the connection's end, which comes of it."""
    from policyc.emulator.image import small_image

    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, settle=60.0))
        tool = SocketTool(server)
        tool.greet()
        assert guest.hear()["kind"] == "connected"
        arm(tool, small_image().address("guarded_object", SLIDE), PageAccess.R)
        guest.type("attack straddle")
        tool.reply(tool.next(Event), Action.CRASH)
        said = [guest.hear() for _ in range(3)]
        assert [answer["kind"] for answer in said] == ["attack", "failure", "disconnected"]
        assert {answer["reason"] for answer in said[:2]} == {"the tool answered CRASH to an event of vCPU 0"}
        assert guest.end() == 1
        tool.close()


def test_a_guest_that_a_failing_test_leaves_behind_lets_the_interpreter_end() -> None:
    code = (
        "from tests.support.emulator_process import GuestThread; from policyc.emulator.options import GuestOptions\n"
        "guest = GuestThread(GuestOptions()); guest.type('status'); guest.hear('status'); assert False, 'failed'"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stderr.rstrip().endswith("AssertionError: failed")


PANIC = "dma schedule 0f0b"
"""UD2 where the small guest's kernel comes by at every tick."""

PANICKED = {"kind": "panic", "exception": 6}


def test_a_panic_is_told_once_and_the_exit_status_keeps_it() -> None:
    guest = GuestThread(options(None, tick=0.001))
    guest.type(PANIC)
    assert guest.hear("panic") == PANICKED
    guest.type("status")
    status = guest.hear()
    assert (status["kind"], status["guest"]) == ("status", "panicked on exception 6")
    guest.type("attack straddle")
    lost = guest.hear()
    assert (lost["name"], lost["reason"]) == ("straddle", "the guest's kernel panicked on exception 6")
    guest.type("quit")
    assert guest.end() == 1


def test_a_machine_that_was_reset_has_not_panicked() -> None:
    guest = GuestThread(options(None, tick=0.001))
    for _ in range(2):
        guest.type(PANIC)
        assert guest.hear("panic") == PANICKED
        guest.type("reset")
        assert guest.hear()["kind"] == "reset"
    guest.type("quit")
    assert guest.end() == 0


def test_once_ends_at_a_panic_without_waiting_for_more(tmp_path: Path) -> None:
    """Neither the console nor a tool that never arms holds it up."""
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, tick=0.001, attacks=("straddle",), settle=60.0, once=True))
        tool = SocketTool(server)
        tool.greet()
        guest.type(PANIC)
        assert guest.hear("panic") == PANICKED
        assert guest.hear("attack")["outcome"] == "lost"
        assert guest.hear()["reason"] == "the guest's process ends"
        guest.ended()
        assert guest.end() == 1
        tool.close()


def test_a_tool_sees_the_boot_from_its_first_instruction(dialect: Dialect, tmp_path: Path) -> None:
    """Connected before the guest runs: no LSTAR yet, and the write that sets it is an event."""
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, dialect=dialect.name, boot=3600.0, settle=60.0))
        tool = SocketTool(server)
        tool.greet()
        before = tool.ask(GetRegisters(0, (0xC000_0082,)))
        assert isinstance(before, GetRegistersReply)
        assert before.msrs[0].data == 0
        tool.ask(ControlMsr(0, 0xC000_0082, True))
        tool.ask(ControlEvents(0, EventKind.MSR, True))
        guest.type("boot")
        event: Event = tool.next(Event)
        assert isinstance(event.data, MsrData)
        assert (event.data.msr, event.data.old) == (0xC000_0082, 0)
        tool.reply(event, Action.CONTINUE, NewValue(event.data.new))
        guest.type("attack straddle")
        assert guest.hear("attack")["outcome"] == "changed"
        guest.type("quit")
        assert guest.end() == 0
        tool.close()


def test_a_skipped_store_over_the_wire(dialect: Dialect, tmp_path: Path) -> None:
    from policyc.emulator.image import small_image

    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, dialect=dialect.name, settle=60.0))
        tool = SocketTool(server)
        tool.greet()
        arm(tool, small_image().address("schedule", SLIDE), PageAccess.RX)
        guest.type("attack inline-hook")
        event: Event = tool.next(Event)
        tool.ask(SetRegisters(0, event.regs._replace(rip=event.rip + 3)))
        tool.reply(event, Action.RETRY)
        answer = guest.hear("attack")
        assert (answer["outcome"], answer["fault"], answer["returned"]) == ("unchanged", None, 0)
        guest.type("quit")
        assert guest.end() == 0
        tool.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    code = (
        "import sys; from pathlib import Path; from policyc.emulator.options import GuestOptions;"
        "from policyc.emulator.process import run_guest;"
        "sys.exit(run_guest(GuestOptions(socket=Path(sys.argv[1]), settle=60.0), sys.stdin, sys.stdout))"
    )
    with listening(path) as server:
        command = [sys.executable, "-c", code, str(path)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            tool = SocketTool(server)
            tool.greet()
            process.send_signal(number)
            out, _ = process.communicate(timeout=20)
            assert process.returncode == 0
            assert out.splitlines() == [f"connected to {path}", "connection ended: the guest's process ends"]
            with pytest.raises(ConnectionError):
                tool.next(object)
            tool.close()
