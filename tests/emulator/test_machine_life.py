"""A machine's life as QEMU's: how it greets, what it allows, how long it waits, how it boots; and two roots."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from policyc.addresses import GVA_UNKNOWN, Gpa, Gva
from policyc.cli.guest import HELLOS as CLI_HELLOS
from policyc.cli.guest import QUIRK_NAMES
from policyc.emulator.allowance import allowed_commands, allowed_events
from policyc.emulator.defects import QUIRKS, Quirk
from policyc.emulator.devices import DMA_PORT, transfer
from policyc.emulator.greeting import HELLOS, hello_of
from policyc.emulator.image import small_system_map
from policyc.emulator.memory import Memory
from policyc.emulator.options import GuestOptions
from policyc.emulator.process import UnusableError, run_guest
from policyc.emulator.registers import read_system_registers
from policyc.emulator.routines import PROCESSOR_ROUTINES, ROUTINES
from policyc.emulator.small_machine import SmallMachine
from policyc.emulator.walk import translate
from policyc.guest.linux_kernel import KernelFound, VcpuRegisters, find_kernel
from policyc.guest.readers import build_profile
from policyc.kvmi import (
    DONE,
    V7,
    CheckCommand,
    CheckEvent,
    ControlEvents,
    ControlVmEvents,
    Dialect,
    E820Entry,
    Event,
    EventKind,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    GetRegistersReply,
    GetVersion,
    Hello,
    HelloForm,
    KernelConnection,
    PageAccess,
    PauseVcpu,
    ReadPhysical,
    Refused,
    SetPageAccess,
    TranslateGva,
    TranslateGvaReply,
)
from tests.support.emulator_process import GuestThread, SocketTool, listening
from tests.support.emulator_tool import ScriptedTool

SLIDE = 0x40_0000
RAM = 64 << 20
UUID = GuestOptions().uuid.bytes


def options(path: Path, **changes: object) -> GuestOptions:
    given = GuestOptions(socket=path, slide=SLIDE, reconnect=0.01, settle=60.0)
    return replace(given, **changes)  # type: ignore[arg-type]  # a test's own keyword table


# --- the handshake ---


FORMS = {
    "v5": (96, Hello(UUID)),
    "v7": (96, Hello(UUID, "vm", 1_600_000_000)),
    "v12": (104, Hello(UUID, "vm", 1_600_000_000, Gpa(RAM), form=HelloForm.V12)),
    "v7-2.11": (
        128,
        Hello(UUID, "vm", 1_600_000_000, Gpa(RAM), (E820Entry(0, RAM, 1),), cpu_type=1, form=HelloForm.E820),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_hellos(name: str) -> None:
    size, expected = FORMS[name]
    hello = hello_of("kvmi-v7", name, uuid=UUID, name="vm", start_time=1_600_000_000, ram=RAM)
    assert hello == expected
    kernel = KernelConnection(V7, 1)
    kernel.send_hello(hello)
    assert len(b"".join(kernel.data_to_send())) == size


def test_the_tables_of_the_command_line_are_those_of_the_emulator() -> None:
    assert (*CLI_HELLOS,) == (*HELLOS,) == (*FORMS,)
    assert (*QUIRK_NAMES,) == tuple(quirk.value for quirk in QUIRKS)
    assert set(QUIRKS) == set(Quirk)


@pytest.mark.parametrize("name", FORMS)
def test_a_tool_reads_every_hello(name: str, dialect: Dialect, tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, dialect=dialect.name, hello=name, name="vm"))
        tool = SocketTool(server)
        hello = tool.greet()
        assert replace(hello, start_time=0) == replace(FORMS[name][1], start_time=0)
        assert bool(hello.start_time) == (name != "v5")
        guest.type("shutdown")
        assert guest.hear("disconnected")["reason"] == "the machine was shut down"
        assert guest.hear("shutdown")["text"] == "the machine is off"
        assert guest.end() == 0
        tool.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the tool didn't answer the hello within 0.05 seconds"),
        (b"\2\0\0\0" + bytes(20), "the tool didn't answer the hello within 0.05 seconds"),
        (b"\x18\0\0", "the tool didn't answer the hello within 0.05 seconds"),
        (b"\x0a\0\0\0" + bytes(20), "the tool broke the protocol: expected a handshake of 24 to 4096 bytes, got 10"),
    ],
)
def test_answers_that_are_none(answer: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, handshake_timeout=0.05))
        tool, _ = server.accept()
        tool.sendall(answer)
        assert guest.hear("disconnected")["reason"] == reason
        tool.close()
        again = SocketTool(server)
        again.greet()
        guest.type("quit")
        assert guest.end() == 0
        again.close()


def test_hook_fails_while_the_last_tool_is_cleaned_up(tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, vcpus=2, online=1, quirks=frozenset({Quirk.HOOK_BUSY})))
        first = SocketTool(server)
        first.greet()
        first.close()
        assert guest.hear("disconnected")["reason"] == "the tool closed the connection"
        second = SocketTool(server)
        with pytest.raises(ConnectionError):
            second.greet()
        second.close()
        assert "EEXIST" in guest.hear("disconnected")["reason"]
        guest.type("online 1")
        assert guest.hear("online")["returned"] == 0
        third = SocketTool(server)
        while True:  # one that came before the vCPU did is turned away as well
            try:
                third.greet()
            except ConnectionError:
                third.close()
                third = SocketTool(server)
            else:
                break
        assert third.ask(GetInfo()) == GetInfoReply(2)
        guest.type("quit")
        assert guest.end() == 0
        third.close()


# --- what the VMM allows ---


def test_allow_lists_are_read_by_name_and_by_number(dialect: Dialect) -> None:
    number = dialect.commands[SetPageAccess].id
    assert allowed_commands(dialect, ["get-info", str(number)]) == frozenset({GetInfo, SetPageAccess})
    assert allowed_events(dialect, ["pf", str(dialect.events[EventKind.CR].id)]) == frozenset(
        {EventKind.PF, EventKind.CR}
    )
    assert (allowed_commands(dialect, ()), allowed_events(dialect, ())) == (None, None)
    with pytest.raises(ValueError, match=f"^no command of {dialect.name} is `get-inf`; did you mean `get-info`\\?$"):
        allowed_commands(dialect, ["get-inf"])
    with pytest.raises(ValueError, match=f"^no event of {dialect.name} is `999`; there are unhook, "):
        allowed_events(dialect, ["999"])


def test_what_is_not_allowed_is_refused(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect, commands={GetInfo, ControlEvents, PauseVcpu}, events={EventKind.CR, EventKind.PAUSE})
    for command in (GetVersion(), GetInfo()):
        assert not isinstance(tool.ask(command), Refused)
    assert tool.refused(ReadPhysical(Gpa(0), 8)) == -1
    assert tool.ask(CheckCommand(GetInfo)) == DONE
    assert tool.refused(CheckCommand(ReadPhysical)) == -1
    assert tool.ask(CheckEvent(EventKind.CR)) == DONE
    assert tool.refused(CheckEvent(EventKind.PF)) == -1
    assert tool.refused(ControlEvents(0, EventKind.PF, True)) == -1
    tool.pause()


def test_pause_without_its_event(dialect: Dialect) -> None:
    """v7 closes the connection, v12 refuses."""
    tool = ScriptedTool(dialect, events={EventKind.CR})
    if dialect is V7:
        tool.connection.send(PauseVcpu(0))
        tool.pump()
        assert str(tool.session.ended).startswith("the tool broke the protocol: ")
    else:
        assert tool.refused(PauseVcpu(0)) == -1


def test_what_cannot_be_allowed_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match=r"^no event of kvmi-v7 is `pff`; did you mean `pf`\?$"):
        run_guest(options(tmp_path / "s", allow_events=("pff",)), io.StringIO(), io.StringIO())


# --- leaving ---


def test_a_tool_that_does_not_leave_is_cut_off(dialect: Dialect, tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, dialect=dialect.name, unhook_timeout=0.05))
        tool = SocketTool(server)
        tool.greet()
        tool.ask(ControlVmEvents(EventKind.UNHOOK, True))
        guest.type("unhook")
        assert guest.hear("unhook")["timeout"] == 0.05
        assert tool.next(Event).kind is EventKind.UNHOOK
        assert guest.hear("disconnected")["reason"] == "the tool didn't leave within 0.05 seconds"
        tool.close()
        guest.type("quit")
        assert guest.end() == 0


@pytest.mark.parametrize("messages", [1, 2, 5])
def test_a_hang_up_leaves_nothing_behind(messages: int, dialect: Dialect, tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    with listening(path) as server:
        guest = GuestThread(options(path, dialect=dialect.name))
        tool = SocketTool(server)
        tool.greet()
        tool.connection.send(PauseVcpu(0))
        tool.next(object)
        tool.next(Event)
        guest.type(f"hangup {messages}")
        assert guest.hear("hangup")["messages"] == messages
        for _ in range(messages):
            assert tool.ask(GetInfo()) == GetInfoReply(1)
        with pytest.raises(ConnectionError):
            tool.next(object)
        tool.close()
        assert guest.hear("disconnected")["reason"] == "the VMM hung up"
        guest.type("attack straddle")
        assert guest.hear("attack")["outcome"] == "changed"
        guest.type("quit")
        assert guest.end() == 0


# --- power-on, reset ---


def test_before_the_kernel_is_loaded_there_is_none(dialect: Dialect) -> None:
    machine = SmallMachine(slide=SLIDE, vcpus=2)
    tool = ScriptedTool(dialect, machine)
    assert not machine.booted
    assert tool.must(GetRegisters(0, (0xC000_0082,)), GetRegistersReply).msrs[0].data == 0
    text = machine.symbol("_text")
    assert tool.must(TranslateGva(0, Gva(text)), TranslateGvaReply).gpa == Gpa(GVA_UNKNOWN)
    assert machine.memory.read(Gpa(0x100_0000), 16) == bytes(16)
    machine.power_on()
    assert tool.pump() == []
    assert tool.must(TranslateGva(0, Gva(text)), TranslateGvaReply).gpa == 0x100_0000


def test_a_reset_moves_a_random_slide(tmp_path: Path) -> None:
    path = tmp_path / "tool.sock"
    guest = GuestThread(options(path, slide=None))
    slides = set()
    for _ in range(8):
        guest.type("reset")
        slides.add(guest.hear("reset")["slide"])
    assert len(slides) > 1
    guest.type("quit")
    assert guest.end() == 0


def test_what_the_console_says_of_vcpus(tmp_path: Path) -> None:
    guest = GuestThread(options(tmp_path / "s", vcpus=3, online=2, kpti=True))
    heard = []
    for line in ("status", "online 2", "offline 1", "hotplug", "offline 0", "attack xchg @1", "dma nothing 90"):
        guest.type(line)
        heard.append(guest.hear(line.split()[0] if not line.startswith("dma") else "error"))
    guest.type("status")
    assert heard[0]["vcpus"] == ["halted", "halted", "not started"]
    assert heard[1]["returned"] == 0
    assert heard[2]["returned"] == 0
    assert heard[3]["vcpu"] == 3
    assert (heard[4]["outcome"], heard[4]["vcpu"], heard[4]["returned"]) == ("refused", 0, -22)
    assert (heard[5]["outcome"], heard[5]["reason"]) == ("lost", "vCPU 1 isn't online")
    assert heard[6]["text"] == "the guest has nothing at `nothing`"
    assert guest.hear("status")["vcpus"] == ["halted", "offline", "halted", "not started"]
    guest.type("quit")
    assert guest.end() == 0


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("online 1", "online 1: refused: it is online, returned -16, "),
        ("online 9", "online 9: refused: the guest knows no such vCPU, returned -22, "),
        ("offline 1", "offline 1: done, returned, "),
        ("offline 0", "offline 0: refused: the first one stays online, returned -22, "),
        ("offline 7", "offline 7: never finished: vCPU 7 isn't online"),
        ("boot", "the kernel was loaded before"),
        ("hangup", "there is no connection to break"),
        ("hangup 3", "there is no connection to break"),
        ("hangup 0", "`hangup` takes a number of messages from 1 on, or nothing"),
        ("stop\nstatus", "the vCPUs are stopped\nguest stopped by the VMM, "),
        ("act hypercall-32", "act hypercall-32: done, returned -1000, "),
    ],
)
def test_what_the_console_answers_without_a_tool(line: str, answer: str) -> None:
    out = io.StringIO()
    assert run_guest(GuestOptions(vcpus=2), io.StringIO(f"{line}\nquit\n"), out) == 0
    assert out.getvalue().startswith(answer)


def test_a_hang_up_without_a_connection_waits_for_the_next(tmp_path: Path) -> None:
    out = io.StringIO()
    lines = "hangup 1\nhangup\nquit\n"
    assert run_guest(options(tmp_path / "s"), io.StringIO(lines), out) == 0
    assert out.getvalue().splitlines()[-2:] == [
        "the connection breaks after 1 message",
        "there is no connection to break",
    ]


# --- page-table isolation ---


def in_user_mode(kpti: bool) -> SmallMachine:
    """A guest that stands in the middle of its task."""
    machine = SmallMachine.boot(slide=SLIDE, kpti=kpti)
    machine.run_routine("busy")
    machine.write_int("user_data_page", 1 << 40, offset=8)
    machine.tick()
    while not machine.vcpus[0].engine.cpl:
        machine.run(64)
    return machine


@pytest.mark.parametrize("kpti", [False, True])
def test_what_user_mode_maps(kpti: bool) -> None:
    machine = in_user_mode(kpti)
    root = machine.vcpus[0].engine.get("cr3")
    assert (root == machine.kernel_root) is not kpti
    assert (root == machine.kernel_root + 0x1000) is kpti

    def mapped(name: str) -> bool:
        return translate(machine.memory, root, machine.symbol(name)) is not None

    assert all(map(mapped, ("entry_SYSCALL_64", "asm_exc_page_fault", "idt_table", "cpu_tss_rw", "gdt_page")))
    assert [mapped(name) for name in ("schedule", "sys_call_table", "init_top_pgt", "_text")] == [not kpti] * 4
    offset = machine.symbol("schedule") - machine.symbol("_text")
    assert machine.gpa(machine.symbol("schedule")) == Gpa(0x100_0000 + offset)


def test_the_kernel_is_found_from_user_mode() -> None:
    """By the search of the runtime, which reads the guest's memory and one vCPU's registers."""
    machine = in_user_mode(True)
    system = read_system_registers(machine.vcpus[0].engine)
    registers = VcpuRegisters(
        cr0=system.cr0,
        cr3=system.cr3,
        cr4=system.cr4,
        efer=system.efer,
        idt_base=Gva(system.idt.base),
        idt_limit=system.idt.limit,
        lstar=machine.vcpus[0].engine.msr_read(0xC000_0082),
    )
    search = find_kernel(build_profile(small_system_map().encode()), registers)
    try:
        request = next(search)
        while True:
            request = search.send({gfn: machine.memory.read(Gpa(gfn << 12), 4096) for gfn in request.gfns})
    except StopIteration as end:
        found = end.value
    assert isinstance(found, KernelFound)
    assert (found.slide, found.root_symbol) == (SLIDE, "init_top_pgt")
    assert found.space.root == machine.kernel_root != system.cr3


@pytest.mark.parametrize("kpti", [False, True])
def test_a_task_that_never_yields_keeps_nobody_from_being_served(kpti: bool) -> None:
    machine = in_user_mode(kpti)
    run = machine.begin(ROUTINES["straddle"])
    for _ in range(50):
        machine.run()
        if run.finished:
            break
    assert run.result().changed
    assert machine.vcpus[0].engine.cpl == 3
    machine.write_int("user_data_page", 1, offset=8)
    machine.run_until_idle()
    assert machine.panicked is None


@pytest.mark.parametrize("name", [*ROUTINES])
def test_every_routine_works_with_two_roots(name: str) -> None:
    machine = SmallMachine.boot(slide=SLIDE, vcpus=2, kpti=True)
    result = machine.run_routine(name)
    assert result.fault is None
    assert result.changed == (ROUTINES[name].target is not None)
    for _ in range(3):
        machine.tick()
        machine.run_until_idle()
    assert machine.panicked is None
    assert machine.failure is None
    assert machine.read_int("task_turns") >= 4


# --- the device ---


def test_a_device_stores_without_an_event(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.restrict("sys_call_table", PageAccess.R)
    run = tool.start("dma")
    assert tool.pump() == []
    result = tool.finish(run)
    assert (result.changed, result.events) == (True, 0)


@pytest.mark.parametrize(
    ("words", "stored"),
    [((0x1000, 0x2000, 8), True), ((0x1000, 0x2000, 4097), False), ((0x1000, RAM, 8), False), ((RAM, 0, 8), False)],
)
def test_what_a_descriptor_can_ask_for(words: tuple[int, int, int], stored: bool) -> None:
    memory = Memory(RAM)
    memory.write(Gpa(0x1000), b"\xaa" * 4096)
    memory.write(Gpa(0x3000), b"".join(word.to_bytes(8, "little") for word in words))
    transfer(memory, 0x3000)
    assert memory.read(Gpa(0x2000), 8) == (b"\xaa" if stored else b"\0") * 8
    transfer(memory, RAM)
    transfer(memory, RAM - 8)


def test_a_flood_of_port_writes_is_bounded() -> None:
    """A guest that writes to ports without end fills no memory of ours."""
    machine = SmallMachine.boot()
    engine = machine.vcpus[0].engine
    engine.outputs = [(DMA_PORT, 4, 0)] * 256
    engine._output(engine._uc, DMA_PORT, 4, 0, None)
    assert len(engine.outputs) == 256


def test_processor_routines_are_in_the_image() -> None:
    assert {routine.symbol for routine in PROCESSOR_ROUTINES.values()} <= set(SmallMachine.boot().image.symbols)
    assert all(re.fullmatch(r"[a-z]+", name) for name in PROCESSOR_ROUTINES)
