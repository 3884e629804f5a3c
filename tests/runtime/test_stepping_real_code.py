"""Instructions that KVM can't emulate, executed by a real guest under the enforcer, in both dialects.

The kernel of v12 sends the event again and again; that of v7 steps by itself. Afterwards the bytes are what they should
be, the rights are what the plan says, and the guest goes on.
"""

from __future__ import annotations

import pytest

from policyc.kvmi import V7, V12, Dialect
from policyc.runtime.opened import OPEN_SECONDS
from policyc.runtime.state import Phase
from tests.support.enforced_machine import EnforcedMachine

LOG = "rule: log write to kernel:guarded_object"
DENY = "rule: deny write to kernel:guarded_object"
NEIGHBOUR = "rule: deny write to kernel:neighbour_before"
ABOVE = "rule: deny write to kernel:neighbour_after"

EXCHANGE = "f0490fc74d00"  # lock cmpxchg16b [r13], r13 at guarded_object + 8

INSTRUCTIONS = {
    "cmpxchg16b": EXCHANGE,
    "movlps": "410f134500",
    "movq": "66410fd64500",
    "movss": "f3410f114500",
    "x87 store": "41db7d00",
    "stmxcsr": "410fae5d00",
    "fxsave": "410fae4500",
}
"""Stores to [r13] that KVM's emulator doesn't know, six bytes at most."""

READ_EXECUTE = 5


def place(guest: EnforcedMachine, name: str) -> None:
    """Put an instruction into the routine, and something into its operand that no register holds."""
    guest.patch("attack_cmpxchg16b", EXCHANGE, INSTRUCTIONS[name])
    guest.machine.memory.write(guest.machine.gpa(guest.machine.symbol("guarded_object") + 8), b"\x77" * 16)


def goes_on(guest: EnforcedMachine) -> None:
    """The guest still does what it's asked for, is guarded, and nobody stands still."""
    assert guest.run("neighbour").changed
    assert guest.rights("guarded_object") == READ_EXECUTE
    assert guest.session.unanswered == 0
    assert guest.state.phase is Phase.ARMED
    assert not guest.state.stepping.busy
    assert not guest.machine.vcpus[0].hooks.singlestep
    guest.hang_up()


@pytest.mark.parametrize("name", INSTRUCTIONS)
@pytest.mark.parametrize("policy", [LOG, NEIGHBOUR])
def test_what_kvm_cannot_emulate__is_executed_all_the_same(dialect: Dialect, policy: str, name: str) -> None:
    guest = EnforcedMachine(dialect, policy)
    place(guest, name)
    result = guest.run("cmpxchg16b")
    assert (result.changed, result.fault) == (True, None)
    steps = [fact for fact in guest.facts() if fact.startswith("stepping")]
    assert steps == (["stepping an instruction of vCPU 0: it was executed"] if dialect is V12 else [])
    goes_on(guest)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_what_is_denied__is_never_stepped(dialect: Dialect, name: str) -> None:
    guest = EnforcedMachine(dialect, DENY)
    place(guest, name)
    result = guest.run("cmpxchg16b")
    assert not result.changed
    assert not [fact for fact in guest.facts() if fact.startswith("stepping")]
    goes_on(guest)


def test_a_wide_store_that_reaches_denied_bytes__is_stopped(dialect: Dialect) -> None:
    guest = EnforcedMachine(dialect, ABOVE)
    guest.patch("attack_cmpxchg16b", EXCHANGE, INSTRUCTIONS["fxsave"])
    before = guest.machine.read("neighbour_after", 0x400)
    assert not guest.run("cmpxchg16b").changed
    assert guest.machine.read("neighbour_after", 0x400) == before
    guest.hang_up()


def test_many_of_them__are_all_executed(dialect: Dialect) -> None:
    guest = EnforcedMachine(dialect, NEIGHBOUR)
    for _ in range(40):
        result = guest.run("cmpxchg16b")
        assert (result.changed, result.fault) == (True, None)
    goes_on(guest)


def test_a_host_without_single_step__opens_the_page_for_a_while() -> None:
    guest = EnforcedMachine(V12, NEIGHBOUR, cpu="amd")
    assert guest.run("cmpxchg16b").changed
    assert guest.rights("guarded_object") == 7
    assert guest.state.phase is Phase.DEGRADED
    # The attacker's chance: what is written now raises no event, and is found when the page is closed.
    at = guest.machine.gpa(guest.machine.symbol("neighbour_before"))
    guest.machine.memory.write(at, b"rootkit")
    guest.pass_time(OPEN_SECONDS)
    assert "and bytes were changed on it" in guest.facts()[-1]
    goes_on(guest)


def test_a_host_without_single_step__still_denies() -> None:
    guest = EnforcedMachine(V12, DENY, cpu="amd")
    result = guest.run("cmpxchg16b")
    assert (result.changed, result.fault) == (False, 13)
    goes_on(guest)


def test_v7_on_a_host_without_single_step__leaves_it_to_the_kernel() -> None:
    guest = EnforcedMachine(V7, NEIGHBOUR, cpu="amd")
    assert guest.run("cmpxchg16b").changed
    assert guest.records == []
    goes_on(guest)
