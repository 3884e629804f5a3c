"""EPT views on a host that can switch them: rights and frames of their own, chosen by each vCPU."""

from __future__ import annotations

import pytest

from policyc.addresses import Gfn, Gpa, gfn_of, page_offset
from policyc.kvmi import (
    DONE,
    V7,
    Action,
    ChangeGfn,
    ControlEptView,
    EventKind,
    Features,
    GetEptView,
    GetEptViewReply,
    Negotiated,
    PageAccess,
    SetEptView,
    set_page,
)
from tests.support.emulator_tool import ScriptedTool

SPARE = Gfn(0x3F0)
VMFUNC = bytes.fromhex("31c0 b901000000 0f01d4 b84d000000 c3")
"""xor eax, eax; mov ecx, 1; vmfunc; mov eax, 77; ret"""


@pytest.fixture
def tool() -> ScriptedTool:
    return ScriptedTool(V7, views=True)


def page_of(tool: ScriptedTool, symbol: str) -> Gpa:
    gpa = tool.machine.gpa(tool.machine.symbol(symbol))
    return Gpa(gpa - page_offset(gpa))


def run(tool: ScriptedTool, name: str) -> bool:
    """Whether the target of a routine that raises no event has changed."""
    begun = tool.start(name)
    assert tool.pump() == []
    return bool(tool.finish(begun).changed)


def test_the_version_tells_of_them(tool: ScriptedTool) -> None:
    assert tool.greeting[1] == Negotiated(V7, Features(singlestep=True, vmfunc=True, eptp=True), 8184)
    assert tool.ask(GetEptView(0)) == GetEptViewReply(0)
    assert tool.refused(set_page(Gpa(0x4000), PageAccess.R, view=3)) == -22
    assert tool.refused(SetEptView(0, 3)) == -22


def test_an_amd_host_has_none() -> None:
    tool = ScriptedTool(V7, cpu="amd", views=True)
    assert tool.greeting[1] == Negotiated(V7, Features(), 8184)
    assert tool.refused(SetEptView(0, 1)) == -95
    assert tool.refused(ControlEptView(0, 1, True)) == -22


def test_rights_count_in_their_view_alone(tool: ScriptedTool) -> None:
    tool.enable(EventKind.PF)
    assert tool.ask(set_page(page_of(tool, "sys_call_table"), PageAccess.R, view=1)) == DONE
    assert run(tool, "syscall-hook")
    assert tool.ask(SetEptView(0, 1)) == DONE
    assert tool.ask(GetEptView(0)) == GetEptViewReply(1)
    begun, event = tool.caught("xchg")
    assert (event.kind, event.view, event.access) == (EventKind.PF, 1, PageAccess.W)
    assert tool.ask(SetEptView(0, 0)) == DONE
    assert tool.reply(event, Action.RETRY) == []
    assert tool.finish(begun).changed


def test_continue_performs_an_access_in_the_view_that_forbids_it(tool: ScriptedTool) -> None:
    tool.enable(EventKind.PF)
    tool.ask(SetEptView(0, 2))
    tool.ask(set_page(page_of(tool, "sys_call_table"), PageAccess.R, view=2))
    begun, event = tool.caught("syscall-hook")
    assert event.view == 2
    assert tool.reply(event) == []
    assert tool.finish(begun).changed


def test_a_frame_is_backed_by_another_in_one_view(tool: ScriptedTool) -> None:
    machine = tool.machine
    page = page_of(tool, "guarded_object")
    at = page_offset(machine.gpa(machine.symbol("guarded_object")))
    machine.memory.write(Gpa(SPARE * 4096), machine.memory.read(page, 4096))
    machine.memory.write(Gpa(SPARE * 4096 + at), b"\x5a" * 8)
    before = machine.read("guarded_object", 8)
    tool.ask(SetEptView(0, 1))
    assert tool.ask(ChangeGfn(0, gfn_of(page), SPARE)) == DONE
    run(tool, "read")
    assert machine.read("evil_loot", 8)[2:] == b"\x5a" * 6
    tool.ask(SetEptView(0, 0))
    run(tool, "read")
    assert machine.read("evil_loot", 8)[2:] == before[2:]
    tool.ask(SetEptView(0, 1))
    assert tool.ask(ChangeGfn(0, gfn_of(page), gfn_of(page))) == DONE
    run(tool, "read")
    assert machine.read("evil_loot", 8)[2:] == before[2:]
    assert tool.refused(ChangeGfn(0, gfn_of(page), machine.memory.end_gfn)) == -22


def test_code_of_another_frame_runs_and_stores_go_there(tool: ScriptedTool) -> None:
    machine = tool.machine
    gpa = machine.gpa(machine.symbol("act_cpuid"))
    page = Gpa(gpa - page_offset(gpa))
    begun = tool.start("cpuid")
    tool.pump()
    assert begun.result().value == 13
    machine.memory.write(Gpa(SPARE * 4096), machine.memory.read(page, 4096))
    machine.memory.write(Gpa(SPARE * 4096 + page_offset(gpa)), bytes.fromhex("b84d000000c3"))
    tool.ask(SetEptView(0, 1))
    tool.ask(ChangeGfn(0, gfn_of(page), SPARE))
    begun = tool.start("cpuid")
    tool.pump()
    assert tool.finish(begun).value == 0x4D
    table = page_of(tool, "sys_call_table")
    hooked = machine.read("sys_call_table", 8, 39 * 8)
    machine.memory.write(Gpa((SPARE + 1) * 4096), machine.memory.read(table, 4096))
    tool.ask(ChangeGfn(0, gfn_of(table), Gfn(SPARE + 1)))
    begun = tool.start("syscall-hook")
    tool.pump()
    assert begun.finished
    assert machine.read("sys_call_table", 8, 39 * 8) == hooked


def test_the_guest_switches_to_what_it_may_see(tool: ScriptedTool) -> None:
    machine = tool.machine
    machine.memory.write(machine.gpa(machine.symbol("act_cpuid")), VMFUNC)
    begun = tool.start("cpuid")
    tool.pump()
    assert tool.finish(begun).fault == 6
    assert tool.ask(GetEptView(0)) == GetEptViewReply(0)
    assert tool.ask(ControlEptView(0, 1, True)) == DONE
    begun = tool.start("cpuid")
    tool.pump()
    assert tool.finish(begun).value == 77
    assert tool.ask(GetEptView(0)) == GetEptViewReply(1)


def test_nothing_of_it_outlives_the_connection(tool: ScriptedTool) -> None:
    machine = tool.machine
    page = page_of(tool, "guarded_object")
    tool.ask(SetEptView(0, 1))
    tool.ask(ChangeGfn(0, gfn_of(page), SPARE))
    tool.ask(set_page(page, PageAccess.R, view=1))
    tool.leave()
    assert machine.vcpus[0].engine.view == 0
    assert [(view.rights, view.frames) for view in machine.memory.views] == [({}, {})] * 3
