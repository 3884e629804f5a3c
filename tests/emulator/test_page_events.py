"""Page-fault events of a real guest, and everything that a tool can answer."""

from __future__ import annotations

import pytest

from policyc.addresses import Gva
from policyc.emulator.defects import Quirk
from policyc.emulator.routines import ROUTINES, Kind, Memory
from policyc.kvmi import (
    V7,
    V12,
    Action,
    ControlEvents,
    ControlSinglestep,
    Dialect,
    Event,
    EventKind,
    InjectException,
    PageAccess,
    PfReply,
    Reply,
    SetRegisters,
    ToolEvent,
    TrapData,
    set_page,
)
from tests.support.emulator_tool import ScriptedTool

RX, R, RW = PageAccess.RX, PageAccess.R, PageAccess.RW

WRITES = {
    "inline-hook": (RX, "schedule", 5),
    "syscall-hook": (R, "sys_call_table", 39 * 8),
    "straddle": (R, "guarded_object", -4),
    "rep-movs": (RX, "kernel_power_off", 8),
    "xchg": (R, "sys_call_table", 57 * 8),
    "idt-entry": (R, "idt_table", 0x80 * 16),
    "wp-clear": (R, "sys_call_table", 62 * 8),
    "cmpxchg16b": (R, "guarded_object", 8),
    "pop": (R, "guarded_object", 24),
    "second-mapping": (R, "guarded_object", 32),
    "page-straddle": (R, "guarded_head", 0),
    "page-straddle-tail": (R, "guarded_tail", 12),
    "exchanged-frame": (RX, "kernel_power_off", 40),
    "exchanged-caller": (RX, "kernel_power_off", 48),
    "user-store": (R, "guarded_object", 48),
    "user-push": (R, "guarded_object", 56),
    "user-call": (R, "guarded_object", 64),
    "user-enter": (R, "guarded_object", 72),
    "user32-store": (R, "guarded_object", 88),
    "user32-push": (R, "guarded_object", 92),
    "push": (R, "guarded_object", -4),
    "interrupt-frame": (R, "guarded_object", 160),
    "fxsave": (R, "guarded_object", 8),
    "xsave": (R, "guarded_object", 40),
    "movnti": (R, "guarded_object", 104),
    "movaps": (R, "guarded_object", 120),
    "maskmov": (R, "guarded_object", 112),
    "fistp": (R, "guarded_object", 136),
    "cmpxchg": (R, "guarded_object", 144),
    "bit-string": (R, "guarded_object", 152),
    "own-page": (RX, "noinstr_spare", 8),
    "self-modifying": (R, "guarded_object", 160),
    "patch": (RX, "jump_label_site", 5),
    "neighbour": (R, "neighbour_after", 0),
    "write-storm": (R, "neighbour_after", 0),
    "module-free": (R, "__module_image", 0),
}
ON_ITS_STACK = {"push", "interrupt-frame"}
"""Attacks by a stack of the kernel's in the guarded page: an exception would be pushed onto the same page."""


def guard(dialect: Dialect, name: str) -> ScriptedTool:
    rights, symbol, offset = WRITES[name]
    tool = ScriptedTool(dialect)
    tool.restrict(symbol, rights, offset)
    return tool


@pytest.mark.parametrize("name", WRITES)
def test_every_store_is_reported_with_its_exact_address(dialect: Dialect, name: str) -> None:
    tool = guard(dialect, name)
    _, symbol, offset = WRITES[name]
    run, event = tool.caught(name)
    assert event.kind is EventKind.PF
    assert event.access is PageAccess.W
    assert event.gpa == tool.machine.gpa(tool.machine.symbol(symbol) + offset)
    assert tool.machine.gpa(event.gva) == event.gpa
    assert not run.result().changed


@pytest.mark.parametrize(
    "name", [name for name in WRITES if ROUTINES[name].kind is Kind.ATTACK and name not in ON_ITS_STACK]
)
def test_an_injected_fault_stops_every_attack(dialect: Dialect, name: str) -> None:
    tool = guard(dialect, name)
    run, event = tool.caught(name)
    tool.connection.send(InjectException(0, 13, 0))
    injected, trap = tool.reply(event, Action.RETRY)
    assert isinstance(injected, Reply)
    assert isinstance(trap, Event)
    assert trap.kind is EventKind.TRAP
    assert trap.data == TrapData(13, 0, tool.machine.vcpus[0].engine.get("cr2"))
    assert tool.reply(trap) == []
    result = tool.finish(run)
    assert (result.changed, result.fault, result.events) == (False, 13, 2)
    before = tool.machine.read_int("jiffies")
    tool.machine.tick()
    assert tool.pump() == []
    assert tool.machine.read_int("jiffies") == before + 1


def test_a_skipped_store_changes_nothing_and_the_guest_goes_on(dialect: Dialect) -> None:
    tool = guard(dialect, "inline-hook")
    run, event = tool.caught("inline-hook")
    tool.connection.send(SetRegisters(0, event.regs._replace(rip=event.rip + 3)))
    (done,) = tool.reply(event, Action.RETRY)
    assert isinstance(done, Reply)
    result = tool.finish(run)
    assert (result.changed, result.fault, result.value) == (False, None, 0)


def test_continue_performs_the_access_once(dialect: Dialect) -> None:
    tool = guard(dialect, "inline-hook")
    run, event = tool.caught("inline-hook")
    assert tool.reply(event) == []
    assert tool.finish(run).changed
    again = tool.caught("inline-hook")[1]
    assert again.gpa == event.gpa


def test_retry_reports_again_until_the_right_is_back(dialect: Dialect) -> None:
    tool = guard(dialect, "syscall-hook")
    run, event = tool.caught("syscall-hook")
    for _ in range(3):
        (repeated,) = tool.reply(event, Action.RETRY)
        assert isinstance(repeated, Event)
        assert (repeated.gva, repeated.gpa, repeated.rip) == (event.gva, event.gpa, event.rip)
        assert repeated.seq == event.seq + 1
        event = repeated
    tool.connection.send(set_page(event.gpa, PageAccess.RWX))
    (done,) = tool.reply(event, Action.RETRY)
    assert isinstance(done, Reply)
    assert tool.finish(run).changed


def test_a_string_store_is_reported_for_each_element(dialect: Dialect) -> None:
    tool = guard(dialect, "rep-movs")
    run, event = tool.caught("rep-movs")
    start = event.gpa
    seen = []
    events: list[ToolEvent] = [event]
    while events:
        (each,) = events
        assert isinstance(each, Event)
        seen.append((each.gpa - start, each.regs.rcx))
        events = tool.reply(each)
    assert seen == [(0, 4), (8, 3), (16, 2), (24, 1)]
    assert tool.finish(run).changed


def test_v7_finishes_a_string_store_at_once_if_asked() -> None:
    tool = guard(V7, "rep-movs")
    run, event = tool.caught("rep-movs")
    assert tool.reply(event, Action.CONTINUE, PfReply(Gva(0), rep_complete=True)) == []
    result = tool.finish(run)
    assert (result.changed, result.events) == (True, 1)


def test_a_legitimate_patch_comes_from_memcpy_called_by_text_poke(dialect: Dialect) -> None:
    tool = guard(dialect, "patch")
    run, event = tool.caught("patch")
    machine = tool.machine
    assert machine.symbol("memcpy") <= event.rip < machine.symbol("memset")
    caller = int.from_bytes(machine.memory.read(machine.gpa(event.rsp), 8), "little")
    assert machine.symbol("__text_poke") < caller < machine.symbol("arch_jump_label_transform")
    events: list[ToolEvent] = [event]
    while events:
        (each,) = events
        assert isinstance(each, Event)
        events = tool.reply(each)
    result = tool.finish(run)
    assert (result.changed, result.events) == (True, 6)
    machine.tick()
    tool.pump()
    assert machine.read_int("jump_label_hits") == 2


def test_a_read_can_be_shown_other_bytes_in_v7() -> None:
    tool = ScriptedTool(V7)
    tool.restrict("guarded_object", PageAccess.NONE)
    run, event = tool.caught("read")
    assert event.access is PageAccess.R
    before = tool.machine.read("guarded_object", 16)
    assert tool.reply(event, Action.CONTINUE, PfReply(event.gva, b"\x11\x22\x33\x44\x55\x66\x77\x88")) == []
    assert tool.finish(run).after[2:] == b"\x33\x44\x55\x66\x77\x88"
    assert tool.machine.read("guarded_object", 16) == before


def test_substitute_bytes_that_do_not_cover_the_read_are_not_used() -> None:
    tool = ScriptedTool(V7)
    tool.restrict("guarded_object", PageAccess.NONE)
    run, event = tool.caught("read")
    assert tool.reply(event, Action.CONTINUE, PfReply(event.gva, b"\x11\x22\x33\x44")) == []
    assert tool.finish(run).after[2:] == bytes(6)


def test_execution_of_data_is_reported_at_its_first_byte(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    gpa = tool.restrict("data_code", RW)
    run, event = tool.caught("execute")
    assert (event.access, event.gpa, event.gva, event.rip) == (
        PageAccess.X,
        gpa,
        tool.machine.symbol("data_code"),
        tool.machine.symbol("data_code"),
    )
    (ret,) = tool.reply(event)
    assert isinstance(ret, Event)
    assert ret.rip == event.rip + 7
    assert tool.reply(ret) == []
    assert tool.finish(run).changed


def test_an_instruction_that_needs_two_rights_sends_an_event_for_each(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.restrict("neighbour_after", PageAccess.NONE)
    run, event = tool.caught("neighbour")
    assert event.access is PageAccess.R
    (write,) = tool.reply(event)
    assert isinstance(write, Event)
    assert (write.access, write.gpa, write.rip) == (PageAccess.W, event.gpa, event.rip)
    assert tool.reply(write) == []
    assert tool.finish(run).changed


def test_restrictions_do_not_count_while_the_event_is_off(dialect: Dialect) -> None:
    tool = guard(dialect, "straddle")
    tool.ask(ControlEvents(0, EventKind.PF, False))
    run = tool.start("straddle")
    assert tool.pump() == []
    result = tool.finish(run)
    assert (result.changed, result.events) == (True, 0)


def test_crash_ends_the_machine_and_nothing_was_written(dialect: Dialect) -> None:
    tool = guard(dialect, "straddle")
    run, event = tool.caught("straddle")
    assert tool.reply(event, Action.CRASH) == []
    assert tool.machine.failure == "the tool answered CRASH to an event of vCPU 0"
    assert not run.result().changed


def test_a_vmm_that_goes_on_after_crash_lets_the_fault_repeat() -> None:
    tool = ScriptedTool(V12, quirks=[Quirk.CRASH_IGNORED])
    tool.restrict("guarded_object", R)
    _, event = tool.caught("straddle")
    (again,) = tool.reply(event, Action.CRASH)
    assert isinstance(again, Event)
    assert (again.gpa, again.seq) == (event.gpa, event.seq + 1)


def test_leaving_in_an_event_lets_the_access_pass_and_lifts_everything(dialect: Dialect) -> None:
    tool = guard(dialect, "straddle")
    run, event = tool.caught("straddle")
    tool.connection.send(SetRegisters(0, event.regs._replace(rip=event.rip + 3)))
    tool.pump()
    tool.leave()
    tool.machine.run_until_idle()
    assert run.result().changed
    assert tool.machine.memory.restrictions() == {}
    assert tool.machine.run_routine("inline-hook").events == 0


def test_a_guest_that_is_denied_everything_still_ticks(dialect: Dialect) -> None:
    """All of the kernel's text and read-only data without write, its data and the module without execute."""
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.PF)
    machine = tool.machine
    for first, last, rights in (
        ("_text", "_etext", RX),
        ("__start_rodata", "__end_rodata", R),
        ("_sdata", "_edata", RW),
        ("__bss_start", "__bss_stop", RW),
    ):
        for gva in range(machine.symbol(first), machine.symbol(last), 4096):
            tool.ask(set_page(machine.gpa(gva), rights))
    for _ in range(20):
        machine.tick()
        assert tool.pump() == []
    assert machine.read_int("jiffies") == 20
    assert machine.read_int("task_turns") >= 20


def test_what_kvm_cannot_emulate_repeats_in_v12_and_passes_in_v7() -> None:
    for dialect in (V7, V12):
        tool = guard(dialect, "cmpxchg16b")
        run, event = tool.caught("cmpxchg16b")
        events = tool.reply(event)
        if dialect is V12:
            (again,) = events
            assert isinstance(again, Event)
            assert (again.regs, again.gpa, again.seq) == (event.regs, event.gpa, event.seq + 1)
            assert not run.result().changed
        else:
            assert events == []
            assert run.result().changed


def test_stepping_over_one_instruction_as_tools_do_it(dialect: Dialect) -> None:
    """Rights back, single-step on, RETRY; at the SINGLESTEP event rights away and single-step off."""
    tool = guard(dialect, "cmpxchg16b")
    tool.enable(EventKind.SINGLESTEP)
    run, event = tool.caught("cmpxchg16b")
    tool.connection.send(set_page(event.gpa, PageAccess.RWX))
    tool.connection.send(ControlSinglestep(0, True))
    *_, step = tool.reply(event, Action.RETRY)
    assert isinstance(step, Event)
    assert (step.kind, step.rip) == (EventKind.SINGLESTEP, event.rip + 6)
    tool.connection.send(set_page(event.gpa, PageAccess.R))
    tool.connection.send(ControlSinglestep(0, False))
    assert all(isinstance(each, Reply) for each in tool.reply(step))
    assert tool.finish(run).changed
    assert tool.caught("straddle")[1].gpa >> 12 == event.gpa >> 12


def test_an_exception_whose_frame_cannot_be_pushed_is_an_event_too(dialect: Dialect) -> None:
    """#GP injected while RSP points into a frame without write: the processor's own store is caught."""
    tool = ScriptedTool(dialect)
    tool.restrict("guarded_object", R)
    machine = tool.machine
    stack = machine.symbol("guarded_object") + 0x80
    pause = tool.pause()
    tool.connection.send(SetRegisters(0, pause.regs._replace(rsp=stack)))
    tool.connection.send(InjectException(0, 13, 0x77))
    *_, trap = tool.reply(pause)
    assert isinstance(trap, Event)
    assert (trap.kind, trap.rsp) == (EventKind.TRAP, stack)
    (push,) = tool.reply(trap)
    for _ in range(2):
        assert isinstance(push, Event)
        assert (push.kind, push.access, push.gva) == (EventKind.PF, PageAccess.W, (stack & ~15) - 8)
        (push,) = tool.reply(push, Action.RETRY)
    assert isinstance(push, Event)
    before = machine.read("guarded_object", 0x80)
    tool.connection.reply(push, Action.CONTINUE)
    tool._exchange([])
    assert machine.read("guarded_object", 0x80) != before
    assert machine.vcpus[0].engine.get("rsp") == (stack & ~15) - 48


def test_deaf_frames_let_writes_pass_while_every_reply_says_success() -> None:
    tool = ScriptedTool(V7, quirks=[Quirk.V7_GFN_BIT1])
    machine = tool.machine
    deaf = {
        name: machine.gpa(machine.symbol(symbol) + offset) >> 13 & 1 for name, (_, symbol, offset) in WRITES.items()
    }
    assert set(deaf.values()) == {0, 1}
    for name in ("inline-hook", "syscall-hook", "straddle", "idt-entry"):
        rights, symbol, offset = WRITES[name]
        tool.restrict(symbol, rights, offset)
        run = tool.start(name)
        heard = tool.pump()
        assert len(heard) == (0 if deaf[name] else 1), name
        assert run.finished == bool(deaf[name])
        for event in heard:
            assert isinstance(event, Event)
            tool.reply(event)


def test_every_memory_target_is_covered() -> None:
    targets = {name for name, routine in ROUTINES.items() if isinstance(routine.target, Memory)}
    assert targets - set(WRITES) == {"execute", "read", "int3", "read-gdtr", "hypercall-flood", "dma"}


def test_an_interrupt_frame_is_reported_with_rip_on_the_instruction(dialect: Dialect) -> None:
    """Nothing of the frame is stored until every word of it may be; RETRY delivers the interrupt once more."""
    tool = guard(dialect, "interrupt-frame")
    run, event = tool.caught("interrupt-frame")
    code = tool.machine.memory.read(tool.machine.gpa(event.rip), 2)
    assert (code, event.regs.rsp) == (b"\xcd\x80", tool.machine.symbol("guarded_object") + 176)
    (again,) = tool.reply(event, Action.RETRY)
    assert isinstance(again, Event)
    assert (again.rip, again.gpa, run.result().changed) == (event.rip, event.gpa, False)
    assert tool.reply(again) == []
    result = tool.finish(run)
    assert (result.changed, result.fault) == (True, None)
    frame = [int.from_bytes(result.after[at : at + 8], "little") for at in range(0, 40, 8)]
    assert frame[0] == event.rip + 2
    assert frame[3] == event.regs.rsp


def test_a_fault_on_a_guarded_stack_is_an_event_of_its_own(dialect: Dialect) -> None:
    """PUSH is denied by #GP, whose frame and whose handler's stack lie in the same page: each store asks again."""
    tool = guard(dialect, "push")
    run, event = tool.caught("push")
    tool.connection.send(InjectException(0, 13, 0))
    _, trap = tool.reply(event, Action.RETRY)
    assert isinstance(trap, Event)
    (frame,) = tool.reply(trap)
    assert isinstance(frame, Event)
    assert (frame.kind, frame.access, frame.rip) == (EventKind.PF, PageAccess.W, event.rip)
    assert frame.gva == (event.regs.rsp & ~15) - 8
    below: list[Gva] = []
    heard: list[ToolEvent] = [frame]
    while heard:
        (each,) = heard
        assert isinstance(each, Event)
        below.append(each.gva)
        heard = tool.reply(each)
    assert all(frame.gva - 4096 < gva <= frame.gva for gva in below)
    assert len(below) > 15
    result = tool.finish(run)
    assert (result.changed, result.fault) == (False, 13)
