"""Commands carried out on a real machine, and what either generation answers to those that can't be."""

from __future__ import annotations

import pytest

from policyc.addresses import GVA_UNKNOWN, Gfn, Gpa, Gva
from policyc.kvmi import (
    DONE,
    V7,
    V12,
    ChangeGfn,
    CheckCommand,
    CheckEvent,
    ControlCleanup,
    ControlEptView,
    ControlEvents,
    ControlMsr,
    ControlSpp,
    ControlVmEvents,
    CpuMode,
    Dialect,
    DisableVe,
    Event,
    EventKind,
    Features,
    GetCpuid,
    GetCpuidReply,
    GetEptView,
    GetEptViewReply,
    GetInfo,
    GetInfoReply,
    GetMapToken,
    GetMapTokenReply,
    GetMaxGfn,
    GetMaxGfnReply,
    GetMtrrType,
    GetMtrrTypeReply,
    GetRegisters,
    GetRegistersReply,
    GetXcr,
    GetXcrReply,
    GetXsave,
    GetXsaveReply,
    HelloForm,
    InjectException,
    MsrEntry,
    Negotiated,
    PageAccess,
    PauseVcpu,
    ReadPhysical,
    ReadPhysicalReply,
    Reply,
    SetEptView,
    SetPageAccess,
    SetPageSve,
    SetRegisters,
    SetVeInfo,
    SetXsave,
    TranslateGva,
    TranslateGvaReply,
    VcpuGetInfo,
    VcpuGetInfoReply,
    WritePhysical,
    set_page,
)
from policyc.kvmi import Hello as HelloMessage
from tests.support.emulator_tool import UUID, ScriptedTool

RAM = 64 << 20
OUTSIDE = Gpa(RAM)


@pytest.fixture
def tool(dialect: Dialect) -> ScriptedTool:
    return ScriptedTool(dialect)


def test_the_machine_introduces_itself_as_the_vmm_of_its_generation(tool: ScriptedTool) -> None:
    hello, negotiated = tool.greeting
    newer = tool.dialect is V12
    assert hello == HelloMessage(
        UUID, "small", 1_700_000_000, Gpa(RAM) if newer else None, form=HelloForm.V12 if newer else HelloForm.V7
    )
    assert negotiated == Negotiated(tool.dialect, Features(singlestep=True), 8184)


def test_an_amd_machine_has_no_single_step(dialect: Dialect) -> None:
    assert ScriptedTool(dialect, cpu="amd").greeting[1] == Negotiated(dialect, Features(), 8184)


def test_what_there_is(tool: ScriptedTool) -> None:
    assert tool.ask(GetInfo()) == GetInfoReply(1)
    assert tool.ask(VcpuGetInfo(0)) == VcpuGetInfoReply(0)
    assert tool.refused(VcpuGetInfo(1)) == -22
    assert tool.ask(CheckCommand(SetPageAccess)) == DONE
    assert tool.ask(CheckEvent(EventKind.PF)) == DONE
    assert tool.refused(CheckCommand(45)) == (-1 if tool.dialect is V7 else -2)


def test_the_end_of_memory() -> None:
    assert ScriptedTool(V7).ask(GetMaxGfn()) == GetMaxGfnReply(Gfn(RAM >> 12))


def test_memory_is_read_and_written_whatever_the_rights(tool: ScriptedTool) -> None:
    gpa = tool.restrict("guarded_object", PageAccess.NONE)
    assert tool.ask(WritePhysical(gpa, b"\x11\x22\x33")) == DONE
    assert tool.ask(ReadPhysical(gpa, 4)) == ReadPhysicalReply(b"\x11\x22\x33\x00")
    assert tool.machine.read("guarded_object", 4) == b"\x11\x22\x33\x00"
    assert tool.machine.events_sent == 0


def test_code_written_from_outside_is_what_the_guest_runs_next(tool: ScriptedTool) -> None:
    first = tool.start("cpuid")
    tool.pump()
    assert first.result().value == 13
    gpa = tool.machine.gpa(tool.machine.symbol("act_cpuid"))
    tool.ask(WritePhysical(gpa, bytes.fromhex("b84d000000c3")))
    run = tool.start("cpuid")
    tool.pump()
    assert tool.finish(run).value == 0x4D


def test_memory_that_is_not_there(tool: ScriptedTool) -> None:
    assert tool.refused(ReadPhysical(OUTSIDE, 1)) == -2
    assert tool.refused(WritePhysical(OUTSIDE, b"x")) == -2
    assert tool.refused(ReadPhysical(Gpa(0xFFF), 2)) == -22
    result = tool.ask(set_page(OUTSIDE, PageAccess.R))
    assert result == DONE if tool.dialect is V7 else tool.refused(set_page(OUTSIDE, PageAccess.R)) == -22


def entries(*rows: tuple[int, int, bytes]) -> SetPageAccess:
    return SetPageAccess(b"".join(gpa.to_bytes(8, "little") + bytes([rights]) + pad for gpa, rights, pad in rows))


def test_a_bad_entry_is_refused_and_the_others_are_applied(tool: ScriptedTool) -> None:
    zeros = bytes(7)
    tool.connection.execute_only = True
    for bad in ((0x5000, 9, zeros), (0x5000, 1, b"\1" + bytes(6))):
        command = entries((0x4000, 5, zeros), bad, (0x6123, 1, zeros))
        # The tool's side refuses to send such rights, so the bytes are put on the wire by hand.
        wire = tool.dialect.commands[SetPageAccess].id.to_bytes(2, "little") + (8 + 48).to_bytes(2, "little")
        head = (0).to_bytes(2, "little") + (3).to_bytes(2, "little")
        head = (head if tool.dialect is V7 else head[2:] + head[:2]) + bytes(4)
        tool.session.receive(wire + (77).to_bytes(4, "little") + head + command.entries)
        assert tool.session.outgoing()[8:12] == (-22).to_bytes(4, "little", signed=True)
        assert tool.machine.memory.restrictions() == {4: 5, 6: 1}


def test_full_rights_are_no_restriction(tool: ScriptedTool) -> None:
    tool.ask(set_page(Gpa(0x4000), PageAccess.R))
    tool.ask(set_page(Gpa(0x4000), PageAccess.RWX))
    assert tool.machine.memory.restrictions() == {}


def test_other_views_are_not_there() -> None:
    tool = ScriptedTool(V7)
    assert tool.refused(set_page(Gpa(0x4000), PageAccess.R, view=1)) == -95
    assert tool.ask(GetEptView(0)) == GetEptViewReply(0)
    assert tool.refused(SetEptView(0, 0)) == -95
    assert tool.refused(SetEptView(0, 1)) == -95
    assert tool.refused(ControlEptView(0, 0, True)) == -22
    assert tool.refused(ChangeGfn(0, Gfn(3), Gfn(4))) == -95
    assert tool.refused(SetVeInfo(0, Gpa(0x1000), True)) == -22
    assert tool.ask(SetPageSve(Gpa(0x4000), True)) == DONE
    assert tool.refused(SetPageSve(Gpa(0x4000), True, view=1)) == -95
    assert tool.refused(ControlSpp(True)) == -95
    assert tool.ask(DisableVe(0)) == DONE


def test_map_tokens_run_out_and_expire() -> None:
    tool = ScriptedTool(V7)
    now = 100.0
    tool.session.clock = lambda: now
    tokens = {tool.must(GetMapToken(), GetMapTokenReply).token for _ in range(9)}
    assert len(tokens) == 9
    now = 102.9
    assert tool.refused(GetMapToken()) == -11
    now = 103.0
    assert tool.must(GetMapToken(), GetMapTokenReply).token not in tokens


def test_cleanup_is_remembered() -> None:
    tool = ScriptedTool(V12)
    assert tool.ask(ControlCleanup(False)) == DONE
    assert not tool.session.cleanup


def test_registers(tool: ScriptedTool) -> None:
    machine = tool.machine
    reply = tool.must(GetRegisters(0, (0xC000_0082, 0xC000_0080)), GetRegistersReply)
    assert reply.mode is CpuMode.LONG
    assert reply.regs.rip == machine.symbol("default_idle") + 2
    assert reply.sregs.cr3 == machine.gpa(machine.symbol("init_top_pgt"))
    assert (reply.sregs.idt.base, reply.sregs.idt.limit) == (machine.symbol("idt_table"), 4095)
    assert (reply.sregs.gdt.base, reply.sregs.gdt.limit) == (machine.symbol("gdt_page"), 79)
    assert (reply.sregs.cs.selector, reply.sregs.cs.l, reply.sregs.cs.dpl, reply.sregs.cs.type) == (0x10, 1, 0, 11)
    assert (reply.sregs.tr.selector, reply.sregs.tr.base, reply.sregs.tr.type) == (
        0x40,
        machine.symbol("cpu_tss_rw"),
        11,
    )
    assert (reply.sregs.gs.base, reply.sregs.ds.unusable) == (machine.symbol("fixed_percpu_data"), 1)
    assert reply.sregs.efer == 0xD01
    assert reply.msrs == (MsrEntry(0xC000_0082, machine.symbol("entry_SYSCALL_64")), MsrEntry(0xC000_0080, 0xD01))


def test_an_msr_that_is_not_there() -> None:
    wanted = GetRegisters(0, (0xC000_0082, 0x1234, 0xC000_0080))
    reply = ScriptedTool(V7).must(wanted, GetRegistersReply)
    assert [entry.data for entry in reply.msrs][1:] == [0, 0]
    assert reply.msrs[0].data
    assert ScriptedTool(V12).refused(wanted) == -22


def test_too_many_msrs() -> None:
    assert ScriptedTool(V7).refused(GetRegisters(0, (0x1B,) * 483)) == -12
    assert len(ScriptedTool(V12).must(GetRegisters(0, (0x1B,) * 481), GetRegistersReply).msrs) == 481
    assert ScriptedTool(V12).refused(GetRegisters(0, (0x1B,) * 482)) == -22


def test_registers_are_set_with_the_answer_to_an_event(tool: ScriptedTool) -> None:
    event = tool.pause()
    engine = tool.machine.vcpus[0].engine
    wanted = event.regs._replace(r15=0x1515, rbp=0x2525)
    assert tool.ask(SetRegisters(0, event.regs._replace(r15=1))) == DONE
    assert tool.ask(SetRegisters(0, wanted)) == DONE
    assert tool.must(GetRegisters(0), GetRegistersReply).regs == event.regs
    assert tool.reply(event) == []
    assert (engine.get("r15"), engine.get("rbp")) == (0x1515, 0x2525)
    assert tool.refused(SetRegisters(0, wanted)) == -95


def test_addresses_are_translated_as_the_guest_does(tool: ScriptedTool) -> None:
    machine = tool.machine
    for name in ("_text", "schedule", "attack_straddle", "user_start"):
        gva = machine.symbol(name)
        assert tool.ask(TranslateGva(0, gva)) == TranslateGvaReply(machine.gpa(gva))
    assert tool.ask(TranslateGva(0, Gva(0xFFFF_8880_0012_3456))) == TranslateGvaReply(Gpa(0x12_3456))
    for nowhere in (0x1234, 1 << 50, 0xFFFF_9000_0000_0000):
        assert tool.ask(TranslateGva(0, Gva(nowhere))) == TranslateGvaReply(Gpa(GVA_UNKNOWN))


def test_cpuid(tool: ScriptedTool) -> None:
    leaf = tool.must(GetCpuid(0, 0), GetCpuidReply)
    assert b"".join(word.to_bytes(4, "little") for word in (leaf.ebx, leaf.edx, leaf.ecx)) == b"GenuineIntel"
    hypervisor = tool.must(GetCpuid(0, 0x4000_0000), GetCpuidReply)
    assert hypervisor.ebx.to_bytes(4, "little") == b"KVMK"
    assert tool.refused(GetCpuid(0, 0x99)) == -2
    amd = ScriptedTool(tool.dialect, cpu="amd").must(GetCpuid(0, 0), GetCpuidReply)
    assert amd.ebx.to_bytes(4, "little") == b"Auth"


def test_extended_state_goes_round(tool: ScriptedTool) -> None:
    area = bytearray(tool.must(GetXsave(0), GetXsaveReply).area)
    initial = bytes(area)
    assert (len(area), initial[:2], initial[24:28], area[512]) == (4096, b"\x7f\x03", b"\x80\x1f\0\0", 0)
    area[160:176] = bytes(range(16))
    area[32:42] = bytes(range(100, 110))
    assert tool.ask(SetXsave(0, bytes(area))) == DONE
    assert tool.must(GetXsave(0), GetXsaveReply).area == initial
    area[512] = 3
    assert tool.ask(SetXsave(0, bytes(area))) == DONE
    assert tool.must(GetXsave(0), GetXsaveReply).area == bytes(area)
    area[512] = 7
    assert tool.refused(SetXsave(0, bytes(area))) == -22
    assert tool.ask(GetXcr(0)) == GetXcrReply(1)
    assert tool.refused(GetXcr(0, 1)) == -22


def test_memory_types(tool: ScriptedTool) -> None:
    assert tool.ask(GetMtrrType(0, Gpa(0x1000))) == GetMtrrTypeReply(6)
    assert tool.ask(GetMtrrType(0, OUTSIDE)) == GetMtrrTypeReply(0)


def test_one_exception_at_a_time(tool: ScriptedTool) -> None:
    event = tool.pause()
    assert tool.ask(InjectException(0, 3)) == DONE
    assert tool.refused(InjectException(0, 3)) == -16
    (trap,) = tool.reply(event)
    assert isinstance(trap, Event)
    assert trap.kind is EventKind.TRAP
    assert trap.rip == event.rip
    assert tool.reply(trap) == []
    assert tool.machine.read_int("fault_count", 8, 3 * 8) == 1


def test_each_pause_is_an_event_and_there_is_a_limit(tool: ScriptedTool) -> None:
    for _ in range(3):
        tool.connection.send(PauseVcpu(0))
    *replies, event = tool.pump()
    assert [type(reply) for reply in replies] == [Reply] * 3
    for number in range(1002 - 2):
        assert tool.ask(PauseVcpu(0)) == DONE, number
    assert tool.refused(PauseVcpu(0)) == -16
    for _ in range(1002):
        assert isinstance(event, Event)
        assert event.kind is EventKind.PAUSE
        (event,) = tool.reply(event)
    assert isinstance(event, Event)
    assert tool.reply(event) == []


def test_events_that_can_be_switched(tool: ScriptedTool) -> None:
    for kind in tool.dialect.events:
        vm_level = kind in tool.dialect.vm_events
        accepted = not vm_level or kind is EventKind.CMD_ERROR
        if accepted:
            assert tool.ask(ControlEvents(0, kind, True)) == DONE, kind
        else:
            assert tool.refused(ControlEvents(0, kind, True)) == -22, kind
        if vm_level:
            assert tool.ask(ControlVmEvents(kind, True)) == DONE, kind
        else:
            assert tool.refused(ControlVmEvents(kind, True)) == -22, kind


def test_breakpoints_switched_on_twice_in_v7() -> None:
    tool = ScriptedTool(V7)
    assert tool.refused(ControlEvents(0, EventKind.BREAKPOINT, False)) == -95
    assert tool.ask(ControlEvents(0, EventKind.BREAKPOINT, True)) == DONE
    assert tool.refused(ControlEvents(0, EventKind.BREAKPOINT, True)) == -95


def test_descriptor_events_on_amd() -> None:
    tool = ScriptedTool(V7, cpu="amd")
    assert tool.refused(ControlEvents(0, EventKind.DESCRIPTOR, True)) == -95
    run = tool.start("idtr")
    assert tool.pump() == []
    assert run.finished
    newer = ScriptedTool(V12, cpu="amd")
    assert newer.ask(ControlEvents(0, EventKind.DESCRIPTOR, True)) == DONE
    assert newer.caught("idtr")[1].kind is EventKind.DESCRIPTOR


def test_the_msrs_that_can_be_intercepted(tool: ScriptedTool) -> None:
    assert tool.ask(ControlMsr(0, 0xC000_0082, True)) == DONE
    assert tool.refused(ControlMsr(0, 0x4000_0000, True)) == -22
    edge = tool.ask(ControlMsr(0, 0x1FFF, True))
    assert (edge == DONE) == (tool.dialect is V12)


def test_commands_to_a_vcpu_wait_while_the_vmm_does_not_run_it(tool: ScriptedTool) -> None:
    tool.machine.stopped = True
    tool.connection.send(VcpuGetInfo(0))
    tool.connection.send(GetInfo())
    (only,) = tool.pump()
    assert isinstance(only, Reply)
    assert only.result == GetInfoReply(1)
    tool.machine.stopped = False
    (late,) = tool.pump()
    assert isinstance(late, Reply)
    assert late.result == VcpuGetInfoReply(0)
