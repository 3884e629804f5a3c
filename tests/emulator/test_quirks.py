"""The fields that Unicorn doesn't offer are found, and an engine without them is refused."""

from __future__ import annotations

import os

import pytest
import unicorn

from policyc.emulator import quirks
from policyc.emulator.context import GPR_NAMES, Layout
from policyc.emulator.engine import Engine
from policyc.emulator.memory import Memory
from policyc.emulator.quirks import LayoutError, measure


def test_what_was_measured_is_what_the_engine_says() -> None:
    engine = Engine(Memory(2 << 20))
    for number, name in enumerate(GPR_NAMES):
        engine.set(name, 0x1000 + number)
    engine.set_table("idtr", 0x1234_5000, 0x321)
    engine.msr_write(0xC000_0082, 0x77)
    engine.context.load()
    assert engine.context.gprs_and_rip() == tuple(0x1000 + number for number in range(17))
    assert engine.context.segment("idt")[1:3] == (0x1234_5000, 0x321)
    assert engine.context.control_registers()[3] == engine.get("cr3")
    assert engine.context.msr(0xC000_0082) == 0x77


def test_it_is_measured_once() -> None:
    assert measure() is measure()


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("find_gprs", "the general registers"),
        ("find_segments", "the segment registers"),
        ("find_exception", "the exception in flight"),
        ("find_counter", "its instruction counter"),
    ],
)
def test_an_engine_whose_layout_is_another_is_refused(monkeypatch: pytest.MonkeyPatch, method: str, field: str) -> None:
    """Each search finds nothing when the context that it looks through is empty."""
    probe = quirks._Probe()
    monkeypatch.setattr(quirks._Probe, "block", lambda self: bytes(64))
    monkeypatch.setattr(os, "pread", lambda *_: bytes(64))
    with pytest.raises(LayoutError) as caught:
        getattr(probe, method)(*([0] if method == "find_segments" else []))
    assert str(caught.value) == (
        f"unicorn {unicorn.__version__} doesn't keep {field} where policyc can find it: install unicorn 2.1.4 or a "
        "later 2.1 release (pip install 'policyc[guest]')"
    )


def test_a_layout_that_is_wrong_does_not_pass_its_trial() -> None:
    right = measure()
    for name in ("hflags", "old_exception"):
        values = {field: getattr(right, field) for field in right.__dataclass_fields__}
        values[name] += 4
        with pytest.raises(LayoutError):
            quirks._try_out(Layout(**values))
