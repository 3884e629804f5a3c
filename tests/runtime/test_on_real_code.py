"""Effects on events that real code causes, in both dialects: what the guest got, and what the records say of it."""

from __future__ import annotations

import pytest

from policyc.emulator.defects import Quirk
from policyc.emulator.deliver import Delivery
from policyc.emulator.routines import ROUTINES, Run
from policyc.emulator.small_machine import TIMER_VECTOR
from policyc.kvmi import V7, V12, CpuidData, Dialect, EventKind, TrapData
from tests.support.guarded_machine import GuardedMachine

RUNS_ON = "vCPU 0 runs on after CRASH: what would stop the guest is kept from happening from now on"


def ticks(guest: GuardedMachine) -> bool:
    """Whether the guest lives on."""
    before = guest.machine.read_int("jiffies")
    guest.machine.tick()
    guest.pump()
    return guest.machine.read_int("jiffies") == before + 1


def kinds(guest: GuardedMachine) -> list[EventKind]:
    return [event.kind for event in guest.events]


# --- exceptions ---


def test_hypercall__its_caller_gets_the_exception(dialect: Dialect) -> None:
    guest = GuardedMachine("agent: on hypercall 34/24 inject ud", dialect)
    assert guest.run("hypercall").fault == 6
    assert kinds(guest) == [EventKind.HYPERCALL, EventKind.TRAP]
    (record,) = guest.verdicts()
    assert (record["done"], record["delivered"]) == ("injected exception 6", {"vector": 6, "error_code": 0})
    assert ticks(guest)


def test_hypercall__an_exception_that_an_interrupt_overtakes_is_asked_for_again(dialect: Dialect) -> None:
    guest = GuardedMachine("agent: on hypercall 34/24 deny by fault", dialect)
    run = Run(guest.machine, ROUTINES["hypercall"])
    guest.machine.run_until_idle()
    # The hypercall's event is on its way. What KVM delivers again first is an interrupt that an exit had broken off.
    guest.machine.vcpus[0]._undelivered = Delivery(TIMER_VECTOR)
    guest.pump()
    assert run.result().fault == 13
    assert kinds(guest) == [EventKind.HYPERCALL, EventKind.TRAP, EventKind.TRAP]
    assert [event.data for event in guest.events[1:]] == [TrapData(TIMER_VECTOR, 0, 0), TrapData(13, 0, 0)]
    assert guest.done() == ["injected exception 13"]
    # It is raised where the vCPU is by then.
    handler = guest.machine.symbol("asm_sysvec_apic_timer_interrupt")
    assert guest.machine.read_int("last_fault_rip") == handler


def test_breakpoint__gets_another_exception(dialect: Dialect) -> None:
    guest = GuardedMachine("debug: on breakpoint deny by fault", dialect)
    result = guest.run("int3")
    assert (result.fault, result.changed) == (13, False)
    assert guest.done() == ["injected exception 13"]


@pytest.mark.parametrize(("vector", "number"), [("de", 0), ("ud", 6), ("ss", 12), ("gp", 13), ("ac", 17)])
def test_write__gets_each_exception_that_there_is(dialect: Dialect, vector: str, number: int) -> None:
    guest = GuardedMachine(f"text: inject {vector} write to kernel .text", dialect)
    result = guest.run("inline-hook")
    assert (result.fault, result.changed) == (number, False)
    assert [record["delivered"] for record in guest.verdicts()] == [{"vector": number, "error_code": 0}]
    assert ticks(guest)


def test_write__while_its_vcpu_is_stepped_is_sent_back_until_the_exception_is_delivered(dialect: Dialect) -> None:
    """v12 refuses exceptions meanwhile; v7 keeps the first one pending and refuses the others."""
    guest = GuardedMachine("text: deny write to kernel .text by fault", dialect)
    hooks = guest.machine.vcpus[0].hooks
    run = Run(guest.machine, ROUTINES["inline-hook"])
    guest.machine.run_until_idle()
    hooks.singlestep = True
    while len(guest.events) < 4:
        guest.turn()
    hooks.singlestep = False
    guest.pump()
    assert (run.result().fault, run.result().changed) == (13, False)
    busy = "had the guest try again: the kernel takes no exception now (EBUSY)"
    first = busy if dialect is V12 else "asked for exception 13, which the kernel never confirmed"
    *before, last = guest.done()
    assert before == [first] + [busy] * (len(before) - 1)
    assert last == "injected exception 13"
    assert guest.facts() == []


# --- retry ---


def test_retry__the_guest_comes_back_as_often_as_it_may(dialect: Dialect) -> None:
    guest = GuardedMachine("text: retry 3 then deny write to kernel .text", dialect)
    assert not guest.run("inline-hook").changed
    assert kinds(guest) == [EventKind.PF] * 4
    (record,) = guest.verdicts()
    assert (record["done"], record["retried"]) == ("skipped the instruction", 3)


def test_retry__ends_in_an_exception(dialect: Dialect) -> None:
    guest = GuardedMachine("table: retry 2 then inject ac write to kernel:sys_call_table", dialect)
    result = guest.run("xchg")
    assert (result.fault, result.changed) == (17, False)
    assert kinds(guest) == [EventKind.PF] * 3 + [EventKind.TRAP]
    assert [record["retried"] for record in guest.verdicts()] == [2]


def test_retry__of_what_is_only_recorded(dialect: Dialect) -> None:
    guest = GuardedMachine("text: retry 5 then log write to kernel .text", dialect)
    assert guest.run("inline-hook").changed
    assert kinds(guest) == [EventKind.PF] * 6
    assert [(record["done"], record["retried"]) for record in guest.verdicts()] == [("let through", 5)]


def test_retry__of_a_descriptor_table(dialect: Dialect) -> None:
    guest = GuardedMachine("idt: on idtr write retry 2 then deny", dialect)
    assert not guest.run("idtr").changed
    assert kinds(guest) == [EventKind.DESCRIPTOR] * 3


# --- CRASH ---


def test_crash__stops_the_machine(dialect: Dialect) -> None:
    guest = GuardedMachine("text: crash write to kernel .text", dialect)
    guest.begin("inline-hook", turns=10)
    assert guest.machine.failure is not None
    assert guest.done() == ["asked the VMM to stop the guest"]


def test_crash__a_guest_that_runs_on_is_denied(dialect: Dialect) -> None:
    guest = GuardedMachine(
        "text: crash write to kernel .text cr: on cr4 crash agent: on hypercall 34/24 crash",
        dialect,
        quirks={Quirk.CRASH_IGNORED},
    )
    assert not guest.run("inline-hook").changed
    assert kinds(guest) == [EventKind.PF, EventKind.PF]
    assert guest.done() == ["asked the VMM to stop the guest", "skipped the instruction"]
    assert not guest.run("inline-hook").changed
    assert not guest.run("smep-clear").changed
    assert guest.run("hypercall").fault == 13
    assert guest.done()[2:] == ["skipped the instruction", "kept the old value", "injected exception 13"]
    assert guest.facts() == ["vCPU 0 runs on after CRASH: what would stop the guest is kept from happening from now on"]
    assert {str(record["effect"]) for record in guest.verdicts()} == {"crash"}
    assert ticks(guest)


def test_crash__where_nothing_else_holds_the_guest_up_it_is_answered_again() -> None:
    guest = GuardedMachine("leaf: on cpuid 0 crash", V7, quirks={Quirk.CRASH_IGNORED})
    for _ in range(3):
        guest.run("cpuid")
    actions = [event.data.function for event in guest.events if isinstance(event.data, CpuidData)]
    assert actions.count(0) == 3
    assert guest.done() == ["asked the VMM to stop the guest"]
    assert guest.facts() == [RUNS_ON]


# --- what is let through ---


def test_breakpoint__the_guests_own_int3_reaches_the_guest(dialect: Dialect) -> None:
    guest = GuardedMachine("debug: on breakpoint log", dialect)
    result = guest.run("int3")
    assert (result.fault, result.changed, kinds(guest)) == (None, True, [EventKind.BREAKPOINT])
    (record,) = guest.verdicts()
    assert (record["done"], record["gpa"]) == ("let through", hex(guest.machine.gpa(guest.events[0].rip)))


def test_descriptor__is_stepped_over(dialect: Dialect) -> None:
    guest = GuardedMachine("idt: on idtr write deny gdt: on gdtr read skip", dialect)
    assert not guest.run("idtr").changed
    assert not guest.run("read-gdtr").changed
    said = [(record["table"], record["access"], record["done"]) for record in guest.verdicts()]
    assert said == [("idtr", "write", "skipped the instruction"), ("gdtr", "read", "skipped the instruction")]
    assert ticks(guest)


def test_cpuid__is_logged() -> None:
    guest = GuardedMachine("leaf: on cpuid 0 log", V7)
    assert guest.run("cpuid").fault is None
    assert [(record["leaf"], record["done"]) for record in guest.verdicts()] == [("0x0", "let through")]


def test_xsetbv__is_logged_with_its_values_where_they_are_told(dialect: Dialect) -> None:
    guest = GuardedMachine("state: on xsetbv log", dialect)
    assert guest.run("xsetbv").changed
    (record,) = guest.verdicts()
    told = {name: record.get(name) for name in ("xcr", "old", "new")}
    assert told == ({"xcr": 0, "old": "0x1", "new": "0x3"} if dialect is V12 else dict.fromkeys(told))


def test_unhook__is_recorded_before_we_leave(dialect: Dialect) -> None:
    guest = GuardedMachine("leave: on unhook log severity high deny write to kernel .text", dialect)
    guest.session.unhook()
    guest.pump()
    assert [(record["event"], record["done"], record["severity"]) for record in guest.verdicts()] == [
        ("unhook", "let go", "high")
    ]
    assert guest.disconnected == "the guest has been let go"
    assert guest.run("inline-hook").changed
