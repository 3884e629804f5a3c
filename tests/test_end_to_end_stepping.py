"""An instruction that KVM can't emulate, beside a guarded object, over real sockets: executed, and the page guarded."""

from __future__ import annotations

from pathlib import Path

import pytest

from policyc.emulator.image import small_system_map
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from tests.test_end_to_end import guarded


@pytest.fixture(scope="module")
def profile() -> Profile:
    return build_profile(small_system_map().encode())


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_collateral_of_cmpxchg16b__is_executed_and_its_page_stays_guarded(
    profile: Profile, dialect: str, tmp_path: Path
) -> None:
    rule = "rule: deny write to kernel:neighbour_before"
    with guarded(profile, rule, dialect, tmp_path) as (tool, guest):
        before = tool.read("neighbour_before", 0, 0x358)
        said = guest.tell("attack cmpxchg16b")
        assert (said["outcome"], said["fault"]) == ("changed", None)
        assert tool.verdict() is None
        status = guest.tell("status")
        assert (status["connection"], status["restricted"]) == ("armed", 1)
        assert tool.read("neighbour_before", 0, 0x358) == before
        assert guest.tell("act neighbour")["outcome"] == "changed"
        assert tool.stop() is not None
    audit = (tmp_path / "audit.ndjson").read_text()
    assert audit.count("stepping an instruction of vCPU 0: it was executed") == (1 if dialect == "v12" else 0)
    assert "DEGRADED" not in audit
