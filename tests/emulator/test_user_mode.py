"""The small guest's user mode: what happens when an interrupt leaves it, on any vCPU, with either kind of tables."""

from __future__ import annotations

import pytest

from policyc.emulator.routines import ROUTINES, Run
from policyc.emulator.small_machine import SmallMachine

USER_ROUTINES = [name for name in ROUTINES if name.startswith("user") or name == "hypercall-32"]
HOOKS = ["lstar", "idtr", "idt-entry"]
ENOSYS = -1000 & (1 << 64) - 1

both_tables = pytest.mark.parametrize("kpti", [False, True], ids=["one-root", "kpti"])
SHORT = 30
"""Instructions: so few that interrupts come everywhere."""
STEPS_MAX = 500


def assert_lives(machine: SmallMachine, *runs: Run) -> None:
    """The kernel runs, its task gets its turns, and the routines are through."""
    turns = machine.read_int("task_turns")
    for _ in range(3):
        machine.tick()
        machine.run_until_idle()
    assert machine.failure is None
    assert machine.panicked is None
    assert all(run.finished for run in runs)
    assert machine.read_int("task_turns") == turns + 3


@both_tables
@pytest.mark.parametrize("name", USER_ROUTINES)
@pytest.mark.parametrize("vcpu", [0, 1])
def test_an_interrupt_while_a_routine_is_in_user_mode(name: str, vcpu: int, kpti: bool) -> None:
    machine = SmallMachine.boot(kpti=kpti, vcpus=2)
    run = machine.begin(ROUTINES[name].on(vcpu))
    processor = machine.vcpus[vcpu]
    for _ in range(STEPS_MAX):
        if processor.state == "in user mode":
            break
        processor.run(1)
    assert processor.state == "in user mode"
    machine.tick()
    done = machine.read_int("routine_done", offset=8 * vcpu)
    machine.run_until_idle()
    assert machine.read_int("routine_done", offset=8 * vcpu) == done + 1
    assert_lives(machine, run)


@both_tables
@pytest.mark.parametrize("name", ROUTINES)
def test_a_routine_that_is_begun_by_an_interrupt_of_the_task(name: str, kpti: bool) -> None:
    machine = SmallMachine.boot(kpti=kpti)
    (vcpu,) = machine.vcpus
    busy = machine.begin(ROUTINES["busy"])
    vcpu.run(3000)
    machine.tick()
    vcpu.run(3000)
    assert vcpu.state == "in user mode"
    run = machine.begin(ROUTINES[name])
    machine.run_until_idle()
    assert_lives(machine, busy, run)


@both_tables
@pytest.mark.parametrize("name", USER_ROUTINES)
@pytest.mark.parametrize("seed", [0, 5])
def test_two_vcpus_in_user_mode(name: str, kpti: bool, seed: int) -> None:
    machine = SmallMachine.boot(kpti=kpti, vcpus=2, seed=seed)
    runs = [machine.begin(ROUTINES[name].on(vcpu)) for vcpu in (1, 0)]
    for _ in range(50):
        machine.tick()
        machine.run(SHORT)
    machine.run_until_idle()
    assert_lives(machine, *runs)


@pytest.mark.parametrize("name", HOOKS)
def test_what_user_mode_comes_upon_is_in_its_own_tables(name: str) -> None:
    machine = SmallMachine.boot(kpti=True)
    assert machine.run_routine(name).changed
    hits = machine.read_int("evil_hits")
    machine.tick()
    machine.run_until_idle()
    assert_lives(machine, machine.begin(ROUTINES["user-store"]))
    assert (machine.read_int("evil_hits") > hits) is (name != "idtr")


@both_tables
def test_a_tour_leaves_a_guest_that_runs(kpti: bool) -> None:
    machine = SmallMachine.boot(kpti=kpti, vcpus=2)
    for name, routine in ROUTINES.items():
        machine.tick()
        result = machine.run_routine(name, 1)
        assert result.fault is None
        assert result.changed is (routine.target is not None)
    assert_lives(machine)


def test_the_hypercall_of_32_bit_code_returns_what_that_of_64_bits_does() -> None:
    machine = SmallMachine.boot()
    assert [machine.run_routine(name).value & (1 << 64) - 1 for name in ("hypercall", "hypercall-32")] == [ENOSYS] * 2
