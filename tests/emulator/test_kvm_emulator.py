"""What KVM's emulator knows, by a few instructions of each kind."""

from __future__ import annotations

import pytest

from policyc.emulator.decode import decode
from policyc.emulator.kvm_emulator import emulated

KNOWN = (
    "488903",
    "f348a5",
    "a5",
    "f048ff03",
    "488703",
    "f30f7f03",
    "660fe703",
    "0fc303",
    "8f03",
    "0f38f103",
    "0f6f03",
    "d93b",
    "50",
    "0f944303",
)
UNKNOWN = (
    "480fc70b",
    "0fae23",
    "dd5308",
    "c5fe7f03",
    "0f1303",
    "f20f1103",
    "660fd603",
    "0fae1b",
    "0fae03",
    "480fae0b",
    "0f5803",
    "0f6303",
    "d803",
)


@pytest.mark.parametrize("code", KNOWN)
def test_it_performs(code: str) -> None:
    insn = decode(bytes.fromhex(code))
    assert insn is not None
    assert emulated(insn)


@pytest.mark.parametrize("code", UNKNOWN)
def test_it_does_not_perform(code: str) -> None:
    insn = decode(bytes.fromhex(code))
    assert insn is not None
    assert not emulated(insn)
