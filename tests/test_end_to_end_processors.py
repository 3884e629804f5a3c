"""The tool against guests with several vCPUs, and through all that happens in a machine's life; real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyc.cli.demo_guest import GuestProcess
from policyc.diagnostics import Source
from tests.support.guarded_guest import GuardService, Record, compiled, guarded, unguarded
from tests.support.withholding import withheld

POLICIES = Path(__file__).parent.parent / "policies"

STRICT = """\
text: deny write to kernel .text
    except from kernel:text_poke_memcpy, kernel:__text_poke because "jump labels"
rodata: deny write to kernel .rodata
object: deny write to kernel:guarded_object
idt: deny write to idt
pins: on cr4 when clears(smep | smap) pin smep | smap
entry: on msr lstar when old != 0 deny
tables: on idtr write deny except from kernel:load_current_idt because "processors come online"
"""


@pytest.fixture(params=["v7", "v12"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def computes_in_user_mode(guest: GuestProcess) -> None:
    """Whoever looks a few times sees it there."""
    assert "in user mode" in {state for _ in range(20) for state in guest.tell("status")["vcpus"]}  # type: ignore[attr-defined]


def by_vcpu(verdicts: list[Record]) -> list[tuple[int, str]]:
    return [(record["vcpu"], record["rules"][0]["rule"]) for record in verdicts]


def test_several_vcpus__are_guarded_each(dialect: str, tmp_path: Path) -> None:
    with guarded(compiled(STRICT), dialect, tmp_path, "--vcpus", "4") as (service, guest):
        assert service.state("ARMED")["vcpus"] == 4
        for vcpu in range(4):
            for attack in ("inline-hook", "straddle", "smep-clear", "lstar", "idtr"):
                assert guest.tell(f"attack {attack} @{vcpu}")["outcome"] == "unchanged", (attack, vcpu)
            expected = ["text", "object", "pins", "entry", "tables"]
            assert by_vcpu(service.verdicts()) == [(vcpu, rule) for rule in expected]


def test_unstarted_vcpus__are_guarded_before_their_first_instruction(dialect: str, tmp_path: Path) -> None:
    with guarded(compiled(STRICT), dialect, tmp_path, "--vcpus", "4", "--online", "2") as (service, guest):
        assert service.state("ARMED")["vcpus"] == 4
        for vcpu in (3, 2):
            assert guest.tell(f"online {vcpu}")["returned"] == 0
            assert service.verdicts() == [], "what comes up from zero clears nothing"
            for attack in ("smep-clear", "lstar", "idtr", "xchg"):
                assert guest.tell(f"attack {attack} @{vcpu}")["outcome"] == "unchanged", attack
            assert by_vcpu(service.verdicts()) == [(vcpu, rule) for rule in ("pins", "entry", "tables", "rodata")]
        assert not [record for record in service.records if record.get("severity") == "critical"]


def test_pin__lets_a_processor_set_the_bits_as_it_comes_up(dialect: str, tmp_path: Path) -> None:
    with guarded(compiled("on cr4 pin smep | smap"), dialect, tmp_path, "--vcpus", "2", "--online", "1") as (
        service,
        guest,
    ):
        service.state("ARMED")
        assert guest.tell("online 1")["returned"] == 0
        (record,) = service.verdicts()
        assert (record["vcpu"], record["old"], record["done"]) == (1, "0x20", "let through")
        said = guest.tell("attack smep-clear @1")
        assert said["outcome"] == "unchanged"
        assert int(str(said["before"]), 16) >> 20 & 3 == 3
        (record,) = service.verdicts()
        assert record["done"] == "kept the bits 0x300000"


@pytest.mark.parametrize("policies", ["shipped", "strict"])
def test_offline_and_online__raise_no_alarm(policies: str, dialect: str, tmp_path: Path) -> None:
    """Nor does loading the IDT again, patching, or being busy; and the processor is still guarded afterwards."""
    shipped = [Source(path.name, path.read_text()) for path in sorted(POLICIES.glob("*.policy"))]
    plan = compiled(*(shipped if policies == "shipped" else [STRICT]))
    with guarded(plan, dialect, tmp_path, "--vcpus", "3", "--seed", "7") as (service, guest):
        service.state("ARMED")
        for line in ("offline 2", "act reload-idt", "online 2", "act reload-idt @2", "offline 1", "online 1"):
            assert guest.tell(line)["returned"] == 0, line
        for line in ("act patch @1", "act ipi @2", "act reload-cr3 @1", "act busy"):
            said = guest.tell(line)
            assert said["outcome"] in ("changed", "done"), str(said)
        # The shipped policies write down who loads an IDT, and let it be.
        assert {record["severity"] for record in service.verdicts()} <= {"info"}
        for vcpu in (1, 2):
            assert guest.tell(f"attack inline-hook @{vcpu}")["outcome"] == "unchanged"
        assert [record["vcpu"] for record in service.verdicts()] == [1, 2]
        assert not [record for record in service.records if "isn't guarded" in str(record.get("fact"))]


def test_hotplug__is_guarded(dialect: str, tmp_path: Path) -> None:
    """v7 announces the vCPU; v12 doesn't, and is asked each second."""
    with guarded(compiled(STRICT), dialect, tmp_path) as (service, guest):
        service.state("ARMED")
        assert guest.tell("hotplug")["vcpu"] == 1
        if dialect == "v12":
            record = service.wait(lambda record: "ran unguarded" in str(record.get("fact")))
            assert str(record["fact"]).startswith("vCPU 1 is new, and ran unguarded for up to 1.")
            assert record["severity"] == "high"
        assert guest.tell("online 1")["returned"] == 0
        for attack in ("straddle", "lstar", "smep-clear"):
            assert guest.tell(f"attack {attack} @1")["outcome"] == "unchanged", attack
        assert by_vcpu(service.verdicts()) == [(1, "object"), (1, "entry"), (1, "pins")]


def test_kpti__the_kernel_is_found_from_a_vcpu_in_user_mode(dialect: str, tmp_path: Path) -> None:
    """Its CR3 maps no kernel text. The guest computes in user mode from before the tool comes until after it has armed,
    and is in the kernel for a tick's handler at most.
    """
    with unguarded(tmp_path / "s", dialect, "--kpti") as guest:
        for _ in range(64):
            guest.tell("act busy")
        computes_in_user_mode(guest)
        service = GuardService(compiled(STRICT), tmp_path / "s", tmp_path / "audit.ndjson")
        try:
            service.state("ARMED")
            computes_in_user_mode(guest)
            assert guest.tell("attack inline-hook")["outcome"] == "unchanged"
            assert guest.tell("attack syscall-hook")["outcome"] == "unchanged"
            assert by_vcpu(service.verdicts()) == [(0, "text"), (0, "rodata")]
        finally:
            service.stop()


def test_boot__with_the_tool_there_from_power_on(dialect: str, tmp_path: Path) -> None:
    arguments = ("--boot", "3600", "--vcpus", "2", "--online", "1")
    with guarded(compiled(STRICT), dialect, tmp_path, *arguments) as (service, guest):
        assert service.state("WAITING_FOR_KERNEL")["fact"] == "LSTAR is 0: firmware or a boot loader runs"
        slide = guest.tell("boot")["slide"]
        assert service.state("ARMED")["slide"] == f"{slide:#x}"
        assert guest.tell("online 1")["returned"] == 0
        assert guest.tell("attack straddle @1")["outcome"] == "unchanged"
        assert by_vcpu(service.verdicts()) == [(1, "object")]


def test_reset__arms_again_at_another_slide(dialect: str, tmp_path: Path) -> None:
    with guarded(compiled(STRICT), dialect, tmp_path, "--vcpus", "2") as (service, guest):
        slides = {service.state("ARMED")["slide"]}
        for _ in range(3):
            guest.tell("reset")
            assert service.state("LOST")["severity"] == "critical"
            slides.add(service.state("ARMED")["slide"])
            assert guest.tell("attack syscall-hook @1")["outcome"] == "unchanged"
        assert len(slides) > 1


def test_unhook__the_tool_leaves_in_time_and_may_come_again(dialect: str, tmp_path: Path) -> None:
    with guarded(compiled(STRICT), dialect, tmp_path, "--unhook-timeout", "20") as (service, guest):
        service.state("ARMED")
        guest.tell("unhook")
        assert guest.expect("disconnected")["reason"] == "the tool closed the connection"
        assert service.state("UNHOOKING")["fact"] == "the VMM asks to be let go"
        service.state("ARMED")
        assert guest.tell("attack straddle")["outcome"] == "unchanged"


def test_hang_up__in_the_middle_of_arming(dialect: str, tmp_path: Path) -> None:
    """After so many messages of the tool: nothing is left behind, and the next connection is guarded."""
    with unguarded(tmp_path / "s", dialect, "--vcpus", "3", "--online", "2") as guest:
        for messages in (1, 3, 20, 35, 50):
            guest.tell(f"hangup {messages}")
            service = GuardService(compiled(STRICT), tmp_path / "s", tmp_path / "audit.ndjson")
            try:
                assert guest.expect("disconnected")["reason"] == "the VMM hung up"
                service.wait(lambda record: str(record.get("fact")).startswith("connection ended"))
                assert "ARMED" not in {record.get("state") for record in service.records}
                service.state("ARMED")
                assert guest.tell("attack straddle @1")["outcome"] == "unchanged"
                assert by_vcpu(service.verdicts()) == [(1, "object")]
            finally:
                service.stop()
            assert guest.expect("disconnected")["reason"] == "the tool closed the connection"
            assert guest.tell("status")["restricted"] == 0


def test_dma__is_not_seen(dialect: str, tmp_path: Path) -> None:
    """What docs/limitations.md says: a device's store raises no event, whatever the rights."""
    with guarded(compiled("deny write to kernel:sys_call_table"), dialect, tmp_path) as (service, guest):
        service.state("ARMED")
        assert guest.tell("attack dma")["outcome"] == "changed"
        assert guest.tell("dma sys_call_table+0x138 4141414141414141")["size"] == 8
        assert guest.tell("attack syscall-hook")["before"] == "41" * 8
        assert len(service.verdicts()) == 1


def test_another_vcpu__is_stopped_while_the_first_stands_at_an_event(dialect: str, tmp_path: Path) -> None:
    """vCPU 0's event is withheld between guest and tool: nobody answers it. vCPU 1's attack is stopped all the same."""
    with withheld(tmp_path / "proxy", tmp_path / "s") as proxy:
        arguments = ("--vcpus", "2")
        with guarded(compiled(STRICT), dialect, tmp_path, *arguments, socket=tmp_path / "proxy") as (service, guest):
            service.state("ARMED")
            proxy.withhold(0)
            guest.say("attack straddle")
            guest.say("attack straddle @1")
            said = guest.expect("attack")
            assert (said["vcpu"], said["outcome"]) == (1, "unchanged")
            assert guest.tell("status")["vcpus"] == ["at pf", "halted"]
            assert by_vcpu(service.verdicts()) == [(1, "object")]
            proxy.release()
            said = guest.expect("attack")
            assert (said["vcpu"], said["outcome"]) == (0, "unchanged")
            assert by_vcpu(service.verdicts()) == [(0, "object")]


def test_breakpoint_rule__on_a_processor_that_starts_late(dialect: str, tmp_path: Path) -> None:
    """v7 announces it and then sends the PAUSE event that was asked for: switching BREAKPOINT on twice is an error."""
    plan = compiled("stop: on breakpoint log")
    with guarded(plan, dialect, tmp_path, "--vcpus", "2", "--online", "1") as (service, guest):
        service.state("ARMED")
        assert guest.tell("online 1")["returned"] == 0
        assert guest.tell("act int3 @1")["outcome"] == "changed"
        assert by_vcpu(service.verdicts()) == [(1, "stop")]
        assert [record["fact"] for record in service.records if record.get("severity") == "critical"] == []


def test_boot__processors_come_up_while_the_tool_waits_for_the_kernel(dialect: str, tmp_path: Path) -> None:
    """The kernel isn't running before they are: one that stood still until it is would never be waited for."""
    with guarded(compiled(STRICT), dialect, tmp_path, "--boot", "3600", "--vcpus", "4") as (service, guest):
        service.state("WAITING_FOR_KERNEL")
        guest.tell("boot")
        service.state("ARMED")
        assert guest.tell("status")["vcpus"] == ["halted"] * 4
        assert guest.tell("status")["jiffies"] < 500, "nothing was waited for"  # type: ignore[operator]
        for vcpu in range(4):
            assert guest.tell(f"attack straddle @{vcpu}")["outcome"] == "unchanged"
        assert by_vcpu(service.verdicts()) == [(vcpu, "object") for vcpu in range(4)]


def test_arming__with_a_processor_that_is_offline(dialect: str, tmp_path: Path) -> None:
    """It stands in a HLT that only INIT ends, answers commands all the same, and keeps what was switched on."""
    with unguarded(tmp_path / "s", dialect, "--vcpus", "3") as guest:
        assert guest.tell("offline 1")["returned"] == 0
        service = GuardService(compiled(STRICT), tmp_path / "s", tmp_path / "audit.ndjson")
        try:
            assert service.state("ARMED")["vcpus"] == 3
            assert guest.tell("online 1")["returned"] == 0
            assert service.verdicts() == []
            for attack in ("straddle", "smep-clear", "lstar"):
                assert guest.tell(f"attack {attack} @1")["outcome"] == "unchanged", attack
            assert by_vcpu(service.verdicts()) == [(1, "object"), (1, "pins"), (1, "entry")]
        finally:
            service.stop()
