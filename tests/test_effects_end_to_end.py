"""Effects other than plain denial, by real machine code over real sockets: the guest is a process of its own."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from policyc.cli.demo_guest import GuestProcess
from policyc.cli.demo_tool import WatchedTool
from policyc.compiler.options import CheckOptions
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.defects import Quirk
from policyc.emulator.image import small_system_map
from policyc.emulator.options import GuestOptions
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from tests.support.audit_schema import check_record
from tests.support.emulator_process import GuestThread

PROFILE: Profile = build_profile(small_system_map().encode())

CASES: Mapping[str, tuple[str, str, str, Mapping[str, int | None]]] = {
    "agent: on hypercall 34/24 inject ud": ("act hypercall", "refused", "injected exception 6", {"events": 2}),
    "debug: on breakpoint deny by fault": ("act int3", "unchanged", "injected exception 13", {"fault": 13}),
    "code: retry 3 then deny write to kernel .text": (
        "attack inline-hook",
        "unchanged",
        "skipped the instruction",
        {"events": 4, "fault": None},
    ),
    "table: retry 2 then inject ss write to kernel:sys_call_table": (
        "attack xchg",
        "unchanged",
        "injected exception 12",
        {"events": 4, "fault": 12},
    ),
    "idt: on idtr write deny by fault": ("attack idtr", "unchanged", "injected exception 13", {"fault": 13}),
    "gdt: on gdtr read deny": ("act read-gdtr", "unchanged", "skipped the instruction", {"fault": None}),
    "state: on xsetbv log": ("act xsetbv", "changed", "let through", {"events": 1}),
    "entry: on msr lstar log": ("attack lstar", "changed", "let through", {"events": 1}),
    "bits: on cr4 pin smep": ("attack smep-clear", "changed", "kept the bits 0x100000", {"events": 1}),
}
"""By rule, all in force at once: what the guest is told to do, the outcome, what was done, what else the guest says."""


@contextmanager
def watched(text: str, dialect: str, folder: Path) -> Iterator[WatchedTool]:
    """A tool that listens; every line of its log keeps to the schema."""
    result = compile_policies([Source("p.policy", text)], PROFILE, CheckOptions(target=f"kvmi-{dialect}"))
    assert result.plan is not None, [diagnostic.message for diagnostic in result.diagnostics]
    tool = WatchedTool(result.plan, PROFILE, folder / "s", folder / "audit.ndjson")
    tool.start()
    try:
        yield tool
    finally:
        tool.stop()
    for line in (folder / "audit.ndjson").read_text().splitlines():
        check_record(json.loads(line))


@contextmanager
def guarded(text: str, dialect: str, folder: Path) -> Iterator[tuple[WatchedTool, GuestProcess]]:
    """A guest with an armed tool."""
    with watched(text, dialect, folder) as tool:
        guest = GuestProcess(folder / "s", dialect)
        try:
            tool.wait_until_armed()
            yield tool, guest
        finally:
            guest.stop()


@contextmanager
def spoken_to(
    text: str, dialect: str, folder: Path, *, quirks: Collection[Quirk] = ()
) -> Iterator[tuple[WatchedTool, GuestThread]]:
    """The same with a guest in a thread of ours, for what the process can be told beside attacks."""
    options = GuestOptions(socket=folder / "s", dialect=f"kvmi-{dialect}", reconnect=0.05, quirks=frozenset(quirks))
    with watched(text, dialect, folder) as tool:
        guest = GuestThread(options)
        try:
            guest.type("status")
            tool.wait_until_armed()
            yield tool, guest
        finally:
            guest.type("quit")
            guest.end()


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_effects__reach_the_guest(dialect: str, tmp_path: Path) -> None:
    with guarded(" ".join(CASES), dialect, tmp_path) as (tool, guest):
        for rule, (line, outcome, done, expected) in CASES.items():
            said = guest.tell(line)
            assert (said["outcome"], {name: said[name] for name in expected}) == (outcome, expected), rule
            record = tool.verdict()
            assert record is not None
            assert (record["done"], record["rules"][0]["rule"]) == (done, rule.split(":")[0])  # type: ignore[index]  # JSON
            assert guest.tell("act neighbour")["outcome"] == "changed"


def test_cpuid__is_logged_in_v7(tmp_path: Path) -> None:
    with guarded("leaf: on cpuid 0 log", "v7", tmp_path) as (tool, guest):
        assert guest.tell("act cpuid")["outcome"] == "done"
        record = tool.verdict()
        assert record is not None
        assert (record["leaf"], record["done"]) == ("0x0", "let through")


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_crash__that_the_vmm_ignores_becomes_a_denial(dialect: str, tmp_path: Path) -> None:
    with spoken_to("code: crash write to kernel .text", dialect, tmp_path, quirks={Quirk.CRASH_IGNORED}) as (_, guest):
        guest.type("attack inline-hook")
        said = guest.hear("attack")
        assert (said["outcome"], said["events"]) == ("unchanged", 2)
    records = [json.loads(line) for line in (tmp_path / "audit.ndjson").read_text().splitlines()]
    done = [record["done"] for record in records if record["kind"] == "verdict"]
    assert done == ["asked the VMM to stop the guest", "skipped the instruction"]
    critical = [record["fact"] for record in records if record["kind"] == "state" and record["severity"] == "critical"]
    assert critical[0] == "vCPU 0 runs on after CRASH: what would stop the guest is kept from happening from now on"


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_unhook__is_recorded_by_its_rule(dialect: str, tmp_path: Path) -> None:
    with spoken_to("leave: on unhook log", dialect, tmp_path) as (tool, guest):
        guest.type("unhook")
        assert guest.hear("disconnected")["reason"] == "the tool closed the connection"
        end = tool.stop()
        assert end is not None
        assert end.reason == "the guest has been let go"
    records = [json.loads(line) for line in (tmp_path / "audit.ndjson").read_text().splitlines()]
    (record,) = [record for record in records if record["kind"] == "verdict"]
    assert (record["event"], record["done"], "vcpu" in record) == ("unhook", "let go", False)
