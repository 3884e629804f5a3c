"""Several vCPUs: how the guest starts and stops them, what the tool hears of it, and what each has of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policyc.emulator.interrupts import Command, Delivers, command_of, destinations
from policyc.emulator.routines import PROCESSOR_ROUTINES, ROUTINES, Run
from policyc.emulator.small_machine import SmallMachine
from policyc.emulator.startup import Startup
from policyc.kvmi import (
    DONE,
    V7,
    Action,
    ControlCr,
    ControlEvents,
    ControlMsr,
    ControlVmEvents,
    CrData,
    Dialect,
    Event,
    EventKind,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    GetRegistersReply,
    MsrData,
    NewValue,
    PageAccess,
    PauseVcpu,
    Refused,
    Reply,
    SetRegisters,
    ToolEvent,
    VcpuGetInfo,
    VcpuGetInfoReply,
)
from tests.support.emulator_tool import ScriptedTool

SLIDE = 0x1240_0000
EFER = 0xC000_0080
LSTAR = 0xC000_0082
PAE = 1 << 5
SMEP_SMAP = 3 << 20


def connected(dialect: Dialect, vcpus: int = 2, online: int | None = None) -> ScriptedTool:
    return ScriptedTool(dialect, SmallMachine.boot(slide=SLIDE, vcpus=vcpus, online=online))


def online(machine: SmallMachine, vcpu: int) -> Run:
    return machine.begin(replace(PROCESSOR_ROUTINES["online"], argument=vcpu))


def offline(machine: SmallMachine, vcpu: int) -> Run:
    return machine.begin(PROCESSOR_ROUTINES["offline"].on(vcpu))


def events(heard: list[ToolEvent]) -> list[Event]:
    return [event for event in heard if isinstance(event, Event)]


# --- the guest ---


@pytest.mark.parametrize("vcpus", [1, 2, 5, 8])
@pytest.mark.parametrize("kpti", [False, True])
def test_every_processor_sets_itself_up(vcpus: int, kpti: bool) -> None:
    machine = SmallMachine.boot(slide=SLIDE, vcpus=vcpus, kpti=kpti)
    assert [vcpu.startup for vcpu in machine.vcpus] == [Startup.RUNNING] * vcpus
    first = machine.vcpus[0].engine
    for vcpu in machine.vcpus:
        engine = vcpu.engine
        for name in ("cr0", "cr3", "cr4"):
            assert engine.get(name) == first.get(name)
        for msr in (EFER, LSTAR, 0xC000_0081, 0xC000_0084):
            assert engine.msr_read(msr) == first.msr_read(msr)
        assert engine.table("idtr") == first.table("idtr")
        assert vcpu.state == "halted"
    for register in ("gdtr", "tr"):
        assert len({vcpu.engine.table(register) for vcpu in machine.vcpus}) == vcpus
    assert len({vcpu.engine.get("rsp") for vcpu in machine.vcpus}) == vcpus
    assert machine.read("cpu_online", 64) == b"".join(int(n < vcpus).to_bytes(8, "little") for n in range(8))


def test_a_processor_that_nobody_starts_waits() -> None:
    machine = SmallMachine.boot(slide=SLIDE, vcpus=3, online=2)
    assert [vcpu.startup for vcpu in machine.vcpus] == [Startup.RUNNING, Startup.RUNNING, Startup.UNINITIALIZED]
    machine.tick()
    machine.run_until_idle()
    assert machine.vcpus[2].engine.instructions == 0
    assert (machine.read_int("jiffies"), machine.read_int("irq_count", offset=8 * 0xEC)) == (1, 2)


@pytest.mark.parametrize(
    ("vcpus", "online", "problem"),
    [
        (0, None, "a machine can't have 0 vCPUs: it has 1 to 8"),
        (9, None, "a machine can't have 9 vCPUs: it has 1 to 8"),
        (2, 3, "3 of 2 vCPUs can't be online"),
        (2, 0, "0 of 2 vCPUs can't be online"),
    ],
)
def test_machines_that_cannot_be(vcpus: int, online: int | None, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        SmallMachine(vcpus=vcpus, online=online)


def test_offline_and_online_again() -> None:
    machine = SmallMachine.boot(slide=SLIDE, vcpus=2)
    engine = machine.vcpus[1].engine
    run = offline(machine, 1)
    machine.run_until_idle()
    assert (run.finished, run.result().value, machine.read_int("cpu_online", offset=8)) == (True, 0, 0)
    with pytest.raises(ValueError, match=r"^vCPU 1 isn't online$"):
        machine.begin(ROUTINES["xchg"].on(1))
    instructions = engine.instructions
    machine.tick()
    machine.run_until_idle()
    assert engine.instructions == instructions
    run = online(machine, 1)
    machine.run_until_idle()
    assert (run.finished, run.result().value, machine.read_int("cpu_online", offset=8)) == (True, 0, 1)
    assert engine.get("cr4") & SMEP_SMAP == SMEP_SMAP
    assert machine.run_routine("xchg", 1).changed


@pytest.mark.parametrize(("vcpu", "value"), [(1, -16), (0, -16), (8, -22)])
def test_what_cannot_be_started(vcpu: int, value: int) -> None:
    machine = SmallMachine.boot(vcpus=2)
    run = online(machine, vcpu)
    machine.run_until_idle()
    assert run.result().value == value


def test_a_start_that_comes_to_nothing_is_given_up() -> None:
    """There is no third processor: the guest waits for it as long as Linux does, then says so."""
    machine = SmallMachine.boot(vcpus=2)
    run = online(machine, 2)
    machine.run_until_idle()
    assert not run.finished
    for _ in range(1000):
        machine.tick()
        machine.run_until_idle()
    assert run.result().value == -5


def test_the_first_processor_stays() -> None:
    machine = SmallMachine.boot(vcpus=2)
    run = offline(machine, 0)
    machine.run_until_idle()
    assert run.result().value == -22


def test_an_interrupt_makes_the_others_run_a_function() -> None:
    machine = SmallMachine.boot(vcpus=4)
    machine.run_routine("ipi", 2)
    assert machine.read_int("remote_calls") == 3


@pytest.mark.parametrize("name", list(ROUTINES))
def test_every_routine_can_be_done_by_another_processor(name: str) -> None:
    machine = SmallMachine.boot(slide=SLIDE, vcpus=3)
    result = machine.run_routine(name, 2)
    assert result.fault is None
    assert result.changed == (ROUTINES[name].target is not None)
    assert machine.panicked is None
    assert machine.vcpus[0].engine.get("cr4") & SMEP_SMAP == SMEP_SMAP


def test_code_that_one_processor_writes_is_what_another_runs() -> None:
    """The static key turned by one, its site run by the other, again and again."""
    machine = SmallMachine.boot(slide=SLIDE, vcpus=2)
    for turn in range(1, 4):
        machine.run_routine("patch", 1)
        hits = machine.read_int("jump_label_hits")
        machine.tick()
        machine.run_until_idle()
        assert bool(machine.read_int("jump_label_hits") - hits) == bool(turn % 2)


def test_a_stack_that_becomes_code_is_seen() -> None:
    """One processor has stored into a page before; the other runs it; what the first stores next must count."""
    machine = SmallMachine.boot(slide=SLIDE, vcpus=2)
    machine.run_routine("neighbour", 1)  # vCPU 1 may write to the page of neighbour_after without a question
    assert machine.run_routine("execute", 0).changed  # vCPU 0 runs data_code, on the same page
    frame = machine.gpa(machine.symbol("data_code")) >> 12
    assert frame in machine.memory.code_frames
    machine.run_routine("neighbour", 1)
    assert frame not in machine.memory.code_frames


# --- the schedule ---


def trace(seed: int) -> list[tuple[int, int]]:
    """Which vCPU stood where after every turn, while all of them are busy."""
    machine = SmallMachine.boot(vcpus=4, seed=seed)
    for vcpu in range(4):
        machine.begin(ROUTINES["rep-movs"].on(vcpu))
    seen = []
    while not machine.idle:
        machine.run(200)
        seen += [(vcpu.index, vcpu.engine.instructions) for vcpu in machine.vcpus]
    return seen


def test_a_seed_is_a_schedule() -> None:
    runs = [trace(seed) for seed in (0, 1, 2)]
    assert runs == [trace(seed) for seed in (0, 1, 2)]
    assert runs[0] != runs[1] != runs[2]


@pytest.mark.parametrize("seed", range(8))
def test_locked_instructions_are_atomic_under_every_schedule(seed: int) -> None:
    """Interrupts that all processors count with LOCK INC, in slices of a few instructions."""
    machine = SmallMachine.boot(vcpus=8, seed=seed)
    for _ in range(5):
        runs = [machine.begin(ROUTINES["ipi"].on(vcpu)) for vcpu in range(8)]
        while not machine.idle:
            machine.run(16)
        assert all(run.finished for run in runs)
    served = machine.read_int("irq_count", offset=8 * 0xFC)
    assert machine.read_int("remote_calls") == served
    assert served > 0


# --- the interrupt command register ---


@pytest.mark.parametrize(
    ("value", "command"),
    [
        (0x4500 | 3 << 32, Command(Delivers.INIT, 0, 0, 3)),
        (0x4609 | 1 << 32, Command(Delivers.STARTUP, 9, 0, 1)),
        (0xC00FC, Command(Delivers.FIXED, 0xFC, 3, 0)),
        (0x000F, None),
        (0x0400, None),
    ],
)
def test_what_the_register_says(value: int, command: Command | None) -> None:
    assert command_of(value) == command


@pytest.mark.parametrize(
    ("shorthand", "destination", "meant"),
    [(0, 2, [2]), (0, 7, []), (0, 0xFFFF_FFFF, [0, 1, 2]), (1, 0, [1]), (2, 0, [0, 1, 2]), (3, 0, [0, 2])],
)
def test_whom_it_means(shorthand: int, destination: int, meant: list[int]) -> None:
    assert destinations(Command(Delivers.FIXED, 32, shorthand, destination), 1, range(3)) == meant


# --- what the tool sees ---


def test_a_vcpu_that_is_not_started_says_so(dialect: Dialect) -> None:
    tool = connected(dialect, vcpus=3, online=2)
    assert tool.must(GetInfo(), GetInfoReply) == GetInfoReply(3)
    assert tool.must(VcpuGetInfo(1), VcpuGetInfoReply) == VcpuGetInfoReply(0)
    assert tool.refused(VcpuGetInfo(2)) == -11
    assert tool.refused(ControlEvents(2, EventKind.PF, True)) == -11
    assert tool.refused(VcpuGetInfo(3)) == -22


def test_its_pause_event_comes_before_its_first_instruction(dialect: Dialect) -> None:
    tool = connected(dialect, online=1)
    for _ in range(2):
        assert tool.ask(PauseVcpu(1, True)) == DONE
    run = online(tool.machine, 1)
    for _ in range(2):
        event = tool.event()
        assert (event.kind, event.vcpu, event.rip) == (EventKind.PAUSE, 1, 0x9000)
        assert tool.machine.vcpus[1].engine.instructions == 0
        assert not run.finished
        tool.connection.reply(event, Action.CONTINUE)
    assert tool.pump() == []
    assert run.result().value == 0


def test_events_from_the_first_instruction_on(dialect: Dialect) -> None:
    """Switched on at the PAUSE event: EFER, CR3, LSTAR and CR4 come up from what INIT leaves."""
    tool = connected(dialect, online=1)
    tool.ask(PauseVcpu(1))
    online(tool.machine, 1)
    event = tool.event()
    for kind in (EventKind.CR, EventKind.MSR):
        assert tool.ask(ControlEvents(1, kind, True)) == DONE
    for cr in (0, 4):
        assert tool.ask(ControlCr(1, cr, True)) == DONE
    for msr in (EFER, LSTAR):
        assert tool.ask(ControlMsr(1, msr, True)) == DONE
    seen = []
    heard = tool.reply(event)
    while heard:
        (event,) = events(heard)
        data = event.data
        assert isinstance(data, CrData | MsrData)
        seen.append((data.cr if isinstance(data, CrData) else data.msr, data.old))
        heard = tool.reply(event, Action.CONTINUE, NewValue(data.new))
    assert seen == [(EFER, 0x500), (LSTAR, 0), (4, PAE), (0, 0x8004_0033)]
    assert tool.machine.read_int("cpu_online", offset=8) == 1


def test_v7_announces_a_vcpu_that_starts_late_before_its_pause() -> None:
    tool = connected(V7, vcpus=3, online=1)
    assert tool.ask(ControlVmEvents(EventKind.CREATE_VCPU, True)) == DONE
    tool.ask(PauseVcpu(2))
    online(tool.machine, 2)
    created = tool.event()
    assert (created.kind, created.vcpu) == (EventKind.CREATE_VCPU, 2)
    assert tool.must(VcpuGetInfo(2), VcpuGetInfoReply) == VcpuGetInfoReply(0)
    (pause,) = events(tool.reply(created))
    assert (pause.kind, pause.vcpu) == (EventKind.PAUSE, 2)
    assert tool.reply(pause) == []
    assert tool.machine.read_int("cpu_online", offset=16) == 1


def test_vcpus_that_run_at_the_hook_are_not_announced() -> None:
    """Their job has run before a tool can have switched the event on."""
    tool = connected(V7, vcpus=2)
    assert tool.ask(ControlVmEvents(EventKind.CREATE_VCPU, True)) == DONE
    assert tool.machine.run_routine("ipi").fault is None
    assert tool.pump() == []


def test_a_vcpu_plugged_in_later(dialect: Dialect) -> None:
    tool = connected(dialect, vcpus=1)
    if dialect is V7:
        tool.ask(ControlVmEvents(EventKind.CREATE_VCPU, True))
    tool.machine.add_vcpu(Startup.UNINITIALIZED)
    assert tool.must(GetInfo(), GetInfoReply) == GetInfoReply(2)
    assert tool.refused(VcpuGetInfo(1)) == -11
    run = online(tool.machine, 1)
    heard = tool.pump()
    if dialect is V7:
        (created,) = events(heard)
        assert created.kind is EventKind.CREATE_VCPU
        heard = tool.reply(created)
    assert heard == []
    assert run.result().value == 0


def test_a_machine_holds_so_many() -> None:
    machine = SmallMachine.boot(vcpus=8)
    with pytest.raises(ValueError, match="at most 8 vCPUs"):
        machine.add_vcpu(Startup.UNINITIALIZED)


def test_what_was_switched_on_outlives_init(dialect: Dialect) -> None:
    """INIT resets the processor, not what the tool asked of the vCPU; CR4 comes from zero again, LSTAR doesn't."""
    tool = connected(dialect)
    for kind in (EventKind.CR, EventKind.MSR):
        tool.ask(ControlEvents(1, kind, True))
    tool.ask(ControlCr(1, 4, True))
    tool.ask(ControlMsr(1, LSTAR, True))
    offline(tool.machine, 1)
    assert tool.pump() == []
    online(tool.machine, 1)
    event = tool.event()
    assert isinstance(event.data, CrData)
    assert (event.vcpu, event.data.cr, event.data.old) == (1, 4, PAE)
    assert tool.reply(event, Action.CONTINUE, NewValue(event.data.new)) == []
    assert tool.machine.vcpus[1].engine.msr_read(LSTAR) == tool.machine.symbol("entry_SYSCALL_64")


def test_init_waits_for_an_event_to_be_answered(dialect: Dialect) -> None:
    tool = connected(dialect)
    tool.connection.send(PauseVcpu(1))
    (pause,) = events(tool.pump())
    tool.machine.vcpus[1].signals.init()
    assert tool.must(VcpuGetInfo(1), VcpuGetInfoReply) == VcpuGetInfoReply(0)
    assert tool.reply(pause) == []
    assert tool.machine.vcpus[1].startup is Startup.WAITING_FOR_SIPI
    tool.connection.send(VcpuGetInfo(1))
    assert tool.pump() == []  # between INIT and the start-up interrupt commands wait
    tool.machine.vcpus[1].signals.startup(9)
    assert [type(event) for event in tool.pump()] == [Reply]


def test_one_event_at_a_time_on_each_and_the_others_run_on(dialect: Dialect) -> None:
    """An attack of vCPU 1 is stopped while vCPU 0 stands at an event that nobody answers."""
    tool = connected(dialect, vcpus=3)
    for vcpu in range(3):
        assert tool.ask(ControlEvents(vcpu, EventKind.PF, True)) == DONE
    target = tool.restrict("guarded_object", PageAccess.R)
    runs = [tool.machine.begin(ROUTINES["straddle"].on(vcpu)) for vcpu in range(3)]
    heard = {event.vcpu: event for event in events(tool.pump())}
    assert heard.keys() == {0, 1, 2}
    assert {event.gpa for event in heard.values()} == {target - 4}
    ticks = tool.machine.vcpus[1].engine.instructions
    assert not isinstance(tool.ask(SetRegisters(1, heard[1].regs._replace(rip=heard[1].rip + 3))), Refused)
    assert tool.reply(heard[1], Action.RETRY) == []
    assert (runs[1].finished, runs[1].result().changed) == (True, False)
    assert not runs[0].finished
    assert tool.machine.vcpus[1].engine.instructions > ticks
    assert tool.reply(heard[2], Action.CONTINUE) == []
    assert runs[2].result().changed
    tool.leave()
    tool.machine.run_until_idle()
    assert runs[0].result().changed


def test_rights_hold_on_every_vcpu_at_once(dialect: Dialect) -> None:
    """Each has used the page before, and has it in its TLB."""
    tool = connected(dialect, vcpus=4)
    for vcpu in range(4):
        assert tool.machine.run_routine("neighbour", vcpu).changed
        tool.ask(ControlEvents(vcpu, EventKind.PF, True))
    tool.restrict("neighbour_after", PageAccess.R)
    for vcpu in (3, 1, 2, 0):
        run = tool.machine.begin(ROUTINES["neighbour"].on(vcpu))
        event = tool.event()
        assert (event.kind, event.vcpu) == (EventKind.PF, vcpu)
        tool.reply(event)
        assert run.result().changed
    tool.restrict("neighbour_after", PageAccess.RWX)
    assert tool.machine.run_routine("neighbour", 2).changed


def test_leaving_lets_a_vcpu_start_unheard(dialect: Dialect) -> None:
    tool = connected(dialect, online=1)
    tool.ask(PauseVcpu(1))
    tool.leave()
    run = online(tool.machine, 1)
    tool.machine.run_until_idle()
    assert run.result().value == 0


def test_registers_belong_to_the_vcpu_that_is_asked(dialect: Dialect) -> None:
    tool = connected(dialect, vcpus=2)
    replies = [tool.must(GetRegisters(vcpu), GetRegistersReply) for vcpu in range(2)]
    assert len({reply.sregs.gdt.base for reply in replies}) == 2


@pytest.mark.parametrize("seed", range(24))
def test_patching_is_safe_while_another_processor_runs_the_site(seed: int) -> None:
    """In slices of a few instructions: whoever comes by finds the old code, the INT3, or the new code."""
    machine = SmallMachine.boot(slide=SLIDE, vcpus=2, seed=seed)
    for _ in range(4):
        run = machine.begin(ROUTINES["patch"].on(1))
        while not run.finished:
            machine.tick()
            machine.run(96)
        assert run.result().changed
        machine.run_until_idle()
    assert machine.panicked is None
    assert machine.read("jump_label_site", 5, 5) == bytes.fromhex("0f1f440000")


def test_no_interrupt_comes_between_sti_and_the_next_instruction() -> None:
    """Else an idle processor could halt with its work waiting."""
    machine = SmallMachine.boot()
    vcpu = machine.vcpus[0]
    vcpu.halted = False
    vcpu.engine.set("rflags", 2)
    vcpu.engine.set("rip", machine.symbol("default_idle"))
    machine.tick()
    before = machine.read_int("jiffies")
    vcpu.run(1)
    assert vcpu.engine.get("rip") == machine.symbol("default_idle") + 1
    vcpu.run(1)
    returns_to = machine.memory.read(machine.gpa(vcpu.engine.get("rsp")), 8)
    assert int.from_bytes(returns_to, "little") == machine.symbol("default_idle") + 2
    machine.run_until_idle()
    assert machine.read_int("jiffies") == before + 1
