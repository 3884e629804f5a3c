"""The evidence taken after arming, and the slow look at guarded bytes, on kernels that hide something."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyc.cli.demo_guest import GuestProcess
from policyc.cli.demo_tool import WatchedTool
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.image import small_system_map
from policyc.guest.readers import build_profile
from policyc.runtime.locate import ArmingOptions

DEAF = "this kernel misses writes to protected frames whose number has bit 1 set"


@pytest.mark.parametrize(
    ("dialect", "options", "severity", "fact", "state"),
    [
        ("v7", (), "info", "writes to protected frames are reported", "ARMED"),
        ("v12", (), "info", "writes to protected frames are reported", "ARMED"),
        ("v7", ("--quirk", "v7-gfn-bit1"), "critical", DEAF, "DEGRADED"),
    ],
)
def test_self_test__says_what_was_seen(
    dialect: str, options: tuple[str, ...], severity: str, fact: str, state: str, tmp_path: Path
) -> None:
    profile = build_profile(small_system_map().encode())
    plan = compile_policies([Source("p", "deny write to kernel .rodata")], profile).plan
    assert plan is not None
    tool = WatchedTool(plan, profile, tmp_path / "s", tmp_path / "audit", ArmingOptions(verify=0.0))
    tool.start()
    guest = GuestProcess(tmp_path / "s", dialect, *options)
    try:
        tool.wait_until_armed()
        record = tool.wait_for("self-test: ")
        assert str(record["fact"]).startswith(f"self-test: {fact}")
        assert (record["severity"], record["state"]) == (severity, state)
        assert record["frames"]
    finally:
        tool.stop()
        guest.stop()


def test_msr_on_amd__that_no_event_tells_of_is_noticed(tmp_path: Path) -> None:
    profile = build_profile(small_system_map().encode())
    plan = compile_policies([Source("p", "entry: on msr lstar when old != 0 deny")], profile).plan
    assert plan is not None
    tool = WatchedTool(plan, profile, tmp_path / "s", tmp_path / "audit", ArmingOptions(self_test=False))
    tool.start()
    guest = GuestProcess(tmp_path / "s", "v12", "--cpu", "amd", "--quirk", "amd-msr")
    try:
        armed = tool.wait_for("0 pages guarded")
        assert armed["state"] == "DEGRADED"
        said = guest.tell("attack lstar")
        assert said["outcome"] == "changed"
        record = tool.wait_for("MSR 0xc0000082 of vCPU 0 was changed")
        assert (record["severity"], record["rules"]) == ("critical", ["entry"])
        assert (record["old"], record["new"]) == (f"0x{said['before']}", f"0x{said['after']}")
    finally:
        tool.stop()
        guest.stop()
