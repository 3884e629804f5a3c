"""Attacks by real machine code, over real sockets, in both dialects: stopped with the rule, successful without it.

The guest is a process of its own; what became of its memory is read twice, by the tool over KVMI and by the machine
from its own RAM. The tool is the service that `policyc run` runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from policyc.cli.demo_guest import GuestProcess
from policyc.cli.demo_tool import WatchedTool
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.image import small_system_map
from policyc.emulator.routines import ROUTINES, Memory
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.plan.model import Plan
from tests.support.audit_schema import check_record

HARMLESS = "on hypercall 34/24 log"

ATTACKS = {
    "inline-hook": ("deny write to kernel .text", "skipped the instruction"),
    "syscall-hook": ("deny write to kernel:sys_call_table", "skipped the instruction"),
    "straddle": ("deny write to kernel:guarded_object", "skipped the instruction"),
    "rep-movs": ("deny write to kernel .text", "injected exception 13"),
    "xchg": ("deny write to kernel:sys_call_table", "injected exception 13"),
    "idt-entry": ("deny write to idt", "skipped the instruction"),
    "wp-clear": ("deny write to kernel:sys_call_table", "skipped the instruction"),
    "cmpxchg16b": ("deny write to kernel:guarded_object", "injected exception 13"),
    "smep-clear": ("on cr4 pin smep | smap", "kept the bits"),
    "lstar": ("on msr lstar deny", "kept the old value"),
    "idtr": ("on idtr write deny", "skipped the instruction"),
}
"""What stops each attack, and how."""


@pytest.fixture(scope="module")
def profile() -> Profile:
    return build_profile(small_system_map().encode())


@pytest.fixture(params=["v7", "v12"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def compile_text(profile: Profile, text: str) -> Plan:
    plan = compile_policies([Source("test.policy", text)], profile).plan
    assert plan is not None
    return plan


@contextmanager
def guarded(profile: Profile, text: str, dialect: str, folder: Path) -> Iterator[tuple[WatchedTool, GuestProcess]]:
    """A guest with an armed tool."""
    tool = WatchedTool(compile_text(profile, text), profile, folder / "s", folder / "audit.ndjson")
    tool.start()
    guest = GuestProcess(folder / "s", dialect)
    try:
        tool.wait_until_armed()
        yield tool, guest
    finally:
        tool.stop()
        guest.stop()
    lines = (folder / "audit.ndjson").read_text().splitlines()
    assert lines
    for line in lines:
        check_record(json.loads(line))


def ticks(tool: WatchedTool) -> int:
    return int.from_bytes(tool.read("jiffies", 0, 8), "little")


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack__is_stopped_by_the_rule_that_names_it(
    profile: Profile, dialect: str, attack: str, tmp_path: Path
) -> None:
    rule, done = ATTACKS[attack]
    target = ROUTINES[attack].target
    with guarded(profile, f"rule: {rule}", dialect, tmp_path) as (tool, guest):
        where = (target.symbol, target.offset, target.size) if isinstance(target, Memory) else ("jiffies", 0, 8)
        before = tool.read(*where)
        said = guest.tell(f"attack {attack}")
        assert said["outcome"] == "unchanged"
        assert said["before"] == said["after"]
        if isinstance(target, Memory):
            assert tool.read(*where) == before
        record = tool.verdict()
        assert record is not None
        assert str(record["done"]).startswith(done)
        assert record["rules"] == [
            {
                "policy": "test.policy",
                "rule": "rule",
                "mode": "enforce",
                "severity": "medium",
                "file": "test.policy",
                "line": 1,
            }
        ]
        started = ticks(tool)
        assert guest.tell("act neighbour")["outcome"] == "changed"
        assert ticks(tool) > started


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack__succeeds_without_the_rule(profile: Profile, dialect: str, attack: str, tmp_path: Path) -> None:
    with guarded(profile, HARMLESS, dialect, tmp_path) as (tool, guest):
        said = guest.tell(f"attack {attack}")
        assert said["outcome"] == "changed"
        assert tool.verdict() is None


def test_monitor_mode__lets_the_attack_succeed_and_records_it(profile: Profile, dialect: str, tmp_path: Path) -> None:
    text = "deny write to kernel .text mode monitor"
    with guarded(profile, text, dialect, tmp_path) as (tool, guest):
        assert guest.tell("attack inline-hook")["outcome"] == "changed"
        record = tool.verdict()
        assert record is not None
        assert (record["effect"], record["would"], record["done"]) == ("allow", "deny", "let through")


def test_patching__needs_its_exception(profile: Profile, dialect: str, tmp_path: Path) -> None:
    rule = "deny write to kernel .text"
    excepted = rule + ' except from kernel:__text_poke because "the kernel patches itself"'
    with guarded(profile, rule, dialect, tmp_path) as (_, guest):
        assert guest.tell("act patch")["outcome"] == "unchanged"
    with guarded(profile, excepted, dialect, tmp_path) as (tool, guest):
        assert guest.tell("act patch")["outcome"] == "changed"
        assert tool.exempted == 6


def test_leaving__gives_the_guest_its_rights_back(profile: Profile, dialect: str, tmp_path: Path) -> None:
    with guarded(profile, "deny write to kernel .text", dialect, tmp_path) as (tool, guest):
        assert guest.tell("attack inline-hook")["outcome"] == "unchanged"
        end = tool.stop()
        assert end is not None
        assert end.reason == "the guest has been let go"
        assert guest.tell("attack inline-hook")["outcome"] == "changed"


def test_guest_of_another_kernel__is_refused(profile: Profile, dialect: str, tmp_path: Path) -> None:
    moved = small_system_map().replace("ffffffff81001360 T entry_SYSCALL_64", "ffffffff81001368 T entry_SYSCALL_64")
    assert moved != small_system_map()
    other = build_profile(moved.encode())
    tool = WatchedTool(compile_text(other, "deny write to kernel .text"), other, tmp_path / "s", tmp_path / "a")
    tool.start()
    guest = GuestProcess(tmp_path / "s", dialect)
    try:
        from policyc.cli.exit_codes import CommandError

        with pytest.raises(CommandError, match="contradict the profile"):
            tool.wait_until_armed()
        assert guest.tell("attack inline-hook")["outcome"] == "changed"
    finally:
        tool.stop()
        guest.stop()
