"""The Linux machine alone: a real kernel goes on where it was taken, works, and can be attacked."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from policyc.emulator.deliver import Delivery
from policyc.emulator.linux.attacks import ROUTINES
from policyc.emulator.linux.machine import LinuxMachine
from policyc.emulator.vcpu import Vcpu
from policyc.guest.linux_anchors import gate_target
from tests.support.linux_guest import linux_snapshot
from tests.support.linux_ticks import let_run

FORKED = "total_forks"


@pytest.fixture(scope="module")
def attacked() -> LinuxMachine:
    """One machine, which every attack is tried on in turn."""
    machine = LinuxMachine(linux_snapshot())
    machine.type_line("workload &")
    let_run(machine, 100)
    return machine


def test_kernel__goes_on_with_its_work_for_two_thousand_ticks() -> None:
    machine = LinuxMachine(linux_snapshot())
    faults: Counter[str] = Counter()
    delivered = Vcpu.deliver

    def count(vcpu: Vcpu, delivery: Delivery) -> None:
        mode = "user" if vcpu.engine.cpl else "kernel"
        faults[f"{mode} page fault" if delivery.vector == 14 else f"{mode} {delivery.vector}"] += 1
        delivered(vcpu, delivery)

    machine.vcpus[0].deliver = lambda delivery: count(machine.vcpus[0], delivery)  # type: ignore[method-assign]
    assert machine.booted
    jiffies, forks = machine.read_int("jiffies"), machine.read_int(FORKED)
    let_run(machine, 5)
    machine.type_line("workload &")
    let_run(machine, 1995)
    assert machine.booted
    assert (machine.failure, machine.panicked, machine.taint) == (None, None, 0)
    assert machine.ticks == 2000
    assert machine.read_int("jiffies") - jiffies >= 2000
    assert machine.read_int(FORKED) - forks > 20
    assert faults["user page fault"] > 500
    assert faults["kernel page fault"] > 20
    machine.type_line('echo "round $(cat /tmp/round)"')
    let_run(machine, 50)
    said = re.search(rb"round (\d+)", machine.devices.uart.output)
    assert said is not None
    assert int(said[1]) >= 5


def test_console__obeys_and_answers() -> None:
    machine = LinuxMachine(linux_snapshot())
    let_run(machine, 300)
    machine.type_line("echo $((6 * 7)) > /tmp/answer; cat /tmp/answer; uname -r; hostname")
    let_run(machine, 100)
    release = machine.snapshot.origin.kernel.removeprefix("linux-image-")
    assert machine.devices.uart.output.decode().splitlines() == ["42", release, "policyc"]


def test_machine__gives_the_same_run_again() -> None:
    runs = []
    for _ in range(2):
        machine = LinuxMachine(linux_snapshot())
        machine.type_line("workload &")
        let_run(machine, 60)
        runs.append(
            (machine.instructions, machine.now, machine.vcpus[0].engine.get("rip"), machine.read_int("jiffies"))
        )
    assert runs[0] == runs[1]


def test_slide__is_the_kernels(attacked: LinuxMachine) -> None:
    assert attacked.symbol("_text") == 0xFFFF_FFFF_8100_0000 + attacked.slide
    assert attacked.vcpus[0].engine.msr_read(0xC000_0082) == attacked.symbol("entry_SYSCALL_64")
    assert attacked.read("linux_banner", 14) == b"Linux version "


@pytest.mark.parametrize("name", ROUTINES)
def test_routine__has_its_way_where_nobody_guards(attacked: LinuxMachine, name: str) -> None:
    jiffies, forks = attacked.read_int("jiffies"), attacked.read_int(FORKED)
    result = attacked.run_routine(name)
    assert result.fault is None
    assert result.changed is (ROUTINES[name].target is not None)
    let_run(attacked, 300)
    assert attacked.read_int("jiffies") > jiffies
    assert attacked.read_int(FORKED) > forks
    assert (attacked.failure, attacked.panicked, attacked.taint) == (None, None, 0)


def test_idt_entry__leaves_a_gate_that_user_mode_may_take_to_the_attacker() -> None:
    machine = LinuxMachine(linux_snapshot())
    gate = machine.run_routine("idt-entry").after
    assert gate_target(gate) == machine.attacker.routine("hooked_interrupt")
    handler = int.from_bytes(gate[:2] + gate[6:12], "little")
    assert handler in machine.attacker.code
    selector, stack, flags, reserved = gate[2:4].hex(), gate[4], gate[5], gate[12:].hex()
    assert (selector, stack, flags, reserved) == ("1000", 0, 0xEE, "00000000")


def test_routine__waits_for_its_turn_and_for_the_one_before(attacked: LinuxMachine) -> None:
    run = attacked.begin(ROUTINES["hypercall"])
    with pytest.raises(ValueError, match=r"^the guest is busy with another routine$"):
        attacked.begin(ROUTINES["patch"])
    while not run.finished:
        attacked.tick()
        attacked.run_until_idle()
    assert run.result().value == -1000  # -KVM_ENOSYS: no tool has asked for hypercalls


def test_exception_in_an_attack__ends_it_alone() -> None:
    machine = LinuxMachine(linux_snapshot())
    let_run(machine, 300)
    engine = machine.vcpus[0].engine
    before = [engine.get(name) for name in ("rip", "rsp", "rflags", "cr0", "cr3")]
    machine.memory.write(machine.gpa(machine.attacker.routine("store_plainly")), b"\x0f\x0b")
    result = machine.run_routine("core-pattern")
    assert (result.fault, result.changed) == (6, False)
    assert [engine.get(name) for name in ("rip", "rsp", "rflags", "cr0", "cr3")] == before
    let_run(machine, 100)
    assert (machine.panicked, machine.taint) == (None, 0)


@pytest.mark.parametrize(
    ("code", "kept"),
    [("480fc7f0", 0), ("0fc7f0", 0), ("660fc7f0", 0xFFFF_FFFF_FFFF_0000)],
    ids=["rax", "eax", "ax"],
)
def test_rdrand__fills_a_register_the_same_way_each_time(code: str, kept: int) -> None:
    values = []
    for _ in range(2):
        machine = LinuxMachine(linux_snapshot())
        let_run(machine, 300)
        routine = bytes.fromhex("48c7c0ffffffff" + code + "7201f4c3")  # mov rax, -1; rdrand; jc to ret; hlt
        machine.memory.write(machine.gpa(machine.attacker.routine("store_plainly")), routine)
        run = machine.begin(replace(ROUTINES["core-pattern"], answers=True))
        while not run.finished:
            machine.tick()
            machine.run_until_idle()
        values.append(run.result().value & (1 << 64) - 1)
    size = {"480fc7f0": 64, "0fc7f0": 32, "660fc7f0": 16}[code]
    assert values[0] == values[1]
    assert values[0] >> size << size == kept
    assert values[0] not in (kept, (1 << 64) - 1)


def test_build__is_of_the_kernel_that_the_manifest_names() -> None:
    origin = linux_snapshot().origin
    names = [name for name, _, _ in origin.packages]
    assert names[:2] == [origin.kernel, "busybox-static"]
    assert origin.banner.startswith(f"Linux version {origin.kernel.removeprefix('linux-image-')} ")
    assert all(len(digest) == 64 for _, _, digest in origin.packages)
    assert b"BUG" not in linux_snapshot().console
