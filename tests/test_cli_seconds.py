"""Lengths of time on the command line are numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.policyc_command import call_policyc

OPTIONS = {
    "run plan.json --socket s": ["--verify"],
    "doctor --socket s": ["--wait"],
    "guest run": ["--settle", "--reconnect", "--tick", "--boot", "--handshake-timeout", "--unhook-timeout"],
    "guest replay recording": ["--deadline"],
}


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, options in OPTIONS.items() for option in options]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1s"])
def test_seconds__nothing_else_is_taken(tmp_path: Path, command: str, option: str, value: str) -> None:
    (tmp_path / "plan.json").touch()
    (tmp_path / "recording").touch()
    ran = call_policyc(*command.split(), option, value, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert f"Invalid value for '{option}'" in ran.err
