"""Events about registers and single instructions, raised by real instructions of the guest."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from policyc.emulator.decode import decode
from policyc.emulator.defects import Quirk
from policyc.emulator.small_machine import SmallMachine
from policyc.kvmi import (
    V7,
    V12,
    Action,
    BreakpointData,
    ControlCr,
    ControlEvents,
    ControlMsr,
    ControlSinglestep,
    CpuidData,
    CrData,
    Descriptor,
    DescriptorData,
    Dialect,
    Event,
    EventKind,
    InjectException,
    MsrData,
    NewValue,
    Reply,
    SetRegisters,
    SinglestepData,
    VcpuCommand,
    XsetbvData,
)
from tests.support.emulator_tool import ScriptedTool

LSTAR = 0xC000_0082
WP = 1 << 16
SMEP_SMAP = 3 << 20
ENOSYS_RAX = -1000


def test_a_hypercall_is_reported_and_answered_by_zero(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.HYPERCALL)
    run, event = tool.caught("hypercall")
    assert (event.kind, event.regs.rax, event.regs.rdi, event.regs.rsi) == (EventKind.HYPERCALL, 34, 24, 0)
    assert tool.machine.read("act_hypercall", 3, event.rip - tool.machine.symbol("act_hypercall")) == b"\x0f\x01\xc1"
    assert tool.reply(event) == []
    assert tool.finish(run).value == 0


def test_registers_set_in_a_hypercall_are_applied_below_its_result(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.HYPERCALL)
    run, event = tool.caught("hypercall")
    tool.connection.send(SetRegisters(0, event.regs._replace(rax=77, rbx=88)))
    tool.reply(event)
    assert tool.finish(run).value == 0


@pytest.mark.parametrize("name", ["hypercall", "hypercall-other"])
def test_a_hypercall_that_nobody_takes_is_unknown(dialect: Dialect, name: str) -> None:
    tool = ScriptedTool(dialect)
    if name == "hypercall-other":
        tool.enable(EventKind.HYPERCALL)
    run = tool.start(name)
    assert tool.pump() == []
    assert tool.finish(run).value == ENOSYS_RAX


def test_a_breakpoint_goes_on_to_the_guest(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.BREAKPOINT)
    run, event = tool.caught("int3")
    assert event.rip == tool.machine.symbol("act_int3")
    assert event.data == BreakpointData(tool.machine.gpa(event.rip), 1)
    assert tool.reply(event) == []
    assert tool.finish(run).changed


def test_a_breakpoint_that_was_the_tools_own_is_passed_by(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.BREAKPOINT)
    run, event = tool.caught("int3")
    tool.connection.send(SetRegisters(0, event.regs._replace(rip=event.rip + 1)))
    tool.reply(event, Action.RETRY)
    assert not tool.finish(run).changed


def smep_clear(dialect: Dialect) -> tuple[ScriptedTool, int]:
    tool = ScriptedTool(dialect)
    tool.ask(ControlCr(0, 4, True))
    tool.enable(EventKind.CR)
    return tool, tool.machine.vcpus[0].engine.get("cr4")


def test_a_control_register_write_is_let_through(dialect: Dialect) -> None:
    tool, cr4 = smep_clear(dialect)
    run, event = tool.caught("smep-clear")
    assert event.data == CrData(4, cr4, cr4 & ~SMEP_SMAP)
    assert tool.reply(event, Action.CONTINUE, NewValue(cr4 & ~SMEP_SMAP)) == []
    assert tool.finish(run).changed


def test_a_control_register_write_is_pinned(dialect: Dialect) -> None:
    tool, cr4 = smep_clear(dialect)
    run, event = tool.caught("smep-clear")
    tool.reply(event, Action.CONTINUE, NewValue(cr4))
    result = tool.finish(run)
    assert (result.changed, result.fault, result.value) == (False, None, 0)


def test_a_control_register_value_that_no_guest_can_run_with_kills_the_vcpu(dialect: Dialect) -> None:
    tool, _ = smep_clear(dialect)
    _, event = tool.caught("smep-clear")
    tool.reply(event, Action.CONTINUE, NewValue(0))
    assert tool.machine.failure == "CR4 was set to 0x0, with which no 64-bit guest can be entered"


def test_write_protection_stays_on_and_the_store_is_a_fault_of_the_guest(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.ask(ControlCr(0, 0, True))
    tool.enable(EventKind.CR)
    run, event = tool.caught("wp-clear")
    assert isinstance(event.data, CrData)
    assert event.data.old & ~event.data.new == WP
    assert tool.reply(event, Action.CONTINUE, NewValue(event.data.old)) == []
    result = tool.finish(run)
    assert (result.changed, result.fault) == (False, 14)


def test_a_write_of_the_same_value_is_no_event(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.ask(ControlCr(0, 3, True))
    tool.enable(EventKind.CR)
    run = tool.start("reload-cr3")
    assert tool.pump() == []
    assert run.finished


def test_interception_and_event_are_both_needed(dialect: Dialect) -> None:
    for command in (ControlCr(0, 4, True), ControlEvents(0, EventKind.CR, True)):
        tool = ScriptedTool(dialect)
        tool.ask(command)
        run = tool.start("smep-clear")
        assert tool.pump() == []
        assert tool.finish(run).changed


def lstar(dialect: Dialect, cpu: str = "intel", quirks: Collection[Quirk] = ()) -> ScriptedTool:
    tool = ScriptedTool(dialect, cpu=cpu, quirks=quirks)
    tool.ask(ControlMsr(0, LSTAR, True))
    tool.enable(EventKind.MSR)
    return tool


def test_an_msr_write_gets_the_value_of_the_answer(dialect: Dialect) -> None:
    tool = lstar(dialect)
    run, event = tool.caught("lstar")
    assert event.data == MsrData(
        LSTAR, tool.machine.symbol("entry_SYSCALL_64"), tool.machine.symbol("evil_entry_SYSCALL_64")
    )
    tool.reply(event, Action.CONTINUE, NewValue(tool.machine.symbol("entry_SYSCALL_64")))
    assert not tool.finish(run).changed
    tool.machine.tick()
    assert tool.pump() == []
    assert tool.machine.read_int("evil_hits") == 0


def test_an_address_that_is_not_canonical_is_refused_by_the_processor(dialect: Dialect) -> None:
    tool = lstar(dialect)
    run, event = tool.caught("lstar")
    tool.reply(event, Action.CONTINUE, NewValue(1 << 50))
    result = tool.finish(run)
    assert (result.changed, result.fault) == (False, 13)


@pytest.mark.parametrize(("quirks", "events"), [([], 1), ([Quirk.AMD_MSR], 0)])
def test_msr_events_on_amd_and_a_kernel_that_inverts_the_bit(
    dialect: Dialect, quirks: list[Quirk], events: int
) -> None:
    tool = lstar(dialect, "amd", quirks)
    tool.start("lstar")
    assert len(tool.pump()) == events


def test_descriptor_tables(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.DESCRIPTOR)
    run, event = tool.caught("idtr")
    assert event.data == DescriptorData(Descriptor.IDTR, write=True)
    tool.connection.send(SetRegisters(0, event.regs._replace(rip=event.rip + 7)))
    tool.reply(event, Action.RETRY)
    assert not tool.finish(run).changed
    run, event = tool.caught("read-gdtr")
    assert event.data == DescriptorData(Descriptor.GDTR, write=False)
    assert tool.reply(event) == []
    assert tool.finish(run).changed


def test_a_descriptor_write_is_refused_by_an_injected_fault(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.DESCRIPTOR)
    run, event = tool.caught("idtr")
    tool.connection.send(InjectException(0, 13))
    _, trap = tool.reply(event, Action.RETRY)
    assert isinstance(trap, Event)
    tool.reply(trap)
    result = tool.finish(run)
    assert (result.changed, result.fault) == (False, 13)


def test_xcr0_is_reported_after_the_change(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.XSETBV)
    run, event = tool.caught("xsetbv")
    assert event.data == (XsetbvData(0, 1, 3) if dialect is V12 else None)
    assert run.result().changed
    assert tool.reply(event) == []
    again = tool.start("xsetbv")
    assert tool.pump() == []
    assert again.finished


def test_cpuid_can_be_answered_by_the_tool_in_v7() -> None:
    tool = ScriptedTool(V7)
    tool.enable(EventKind.CPUID)
    run, event = tool.caught("cpuid")
    assert event.data == CpuidData(0, 0, 2)
    assert event.regs.rax == 13
    tool.connection.send(SetRegisters(0, event.regs._replace(rax=0x1234)))
    tool.reply(event, Action.CONTINUE)
    assert tool.finish(run).value == 0x1234
    run, event = tool.caught("cpuid")
    tool.connection.send(SetRegisters(0, event.regs._replace(rax=0x5678, rip=event.rip + 2)))
    tool.reply(event, Action.RETRY)
    assert tool.finish(run).value == 0x5678


CALL = 0xE8


def test_single_steps_follow_the_instructions(dialect: Dialect) -> None:
    tool = ScriptedTool(dialect)
    tool.enable(EventKind.HYPERCALL, *([EventKind.SINGLESTEP] if dialect is V7 else []))
    run, event = tool.caught("hypercall")
    tool.connection.send(ControlSinglestep(0, True))
    heard = tool.reply(event)
    memory, gpa = tool.machine.memory, tool.machine.gpa
    expected = None
    for _ in range(4):
        step = heard[-1]
        assert isinstance(step, Event)
        assert step.data == SinglestepData(failed=False)
        assert step.rip == expected or expected is None
        code = memory.read(gpa(step.rip), 15)
        insn = decode(code)
        assert insn is not None
        expected = step.rip + insn.size
        if code[0] == CALL:
            expected += int.from_bytes(code[1:5], "little", signed=True)
        heard = tool.reply(step)
    last = heard[-1]
    assert isinstance(last, Event)
    tool.connection.send(ControlSinglestep(0, False))
    (done,) = tool.reply(last)
    assert isinstance(done, Reply)
    assert run.finished


@pytest.mark.parametrize(("dialect_", "errno"), [(V7, -22), (V12, -95)])
def test_single_steps_are_not_to_be_had_on_amd(dialect_: Dialect, errno: int) -> None:
    tool = ScriptedTool(dialect_, cpu="amd")
    assert tool.refused(ControlSinglestep(0, True)) == errno


def test_every_event_can_be_left_unanswered_by_leaving(dialect: Dialect) -> None:
    """The guest goes on with its own values, as after CONTINUE."""
    setups: dict[str, list[VcpuCommand]] = {
        "smep-clear": [ControlCr(0, 4, True), ControlEvents(0, EventKind.CR, True)],
        "lstar": [ControlMsr(0, LSTAR, True), ControlEvents(0, EventKind.MSR, True)],
        "int3": [ControlEvents(0, EventKind.BREAKPOINT, True)],
        "idtr": [ControlEvents(0, EventKind.DESCRIPTOR, True)],
    }
    for name, commands in setups.items():
        tool = ScriptedTool(dialect, SmallMachine.boot())
        for command in commands:
            tool.ask(command)
        run, _ = tool.caught(name)
        tool.leave()
        tool.machine.run_until_idle()
        assert tool.finish(run).changed, name
