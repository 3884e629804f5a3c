"""What the console of a Linux guest answers to lines that only the small one obeys."""

from __future__ import annotations

import io

import pytest

from policyc.emulator.options import GuestOptions
from policyc.emulator.process import run_guest
from tests.support.linux_guest import linux_folder


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("online 1", "this guest has one vCPU, which it neither starts nor takes down"),
        ("offline 0", "this guest has one vCPU, which it neither starts nor takes down"),
        ("hotplug", "a Linux guest has one vCPU"),
        ("act patch @1", "act patch @1: never finished: vCPU 1 isn't online"),
    ],
)
def test_line__is_refused_with_a_sentence(line: str, answer: str) -> None:
    out = io.StringIO()
    status = run_guest(GuestOptions(snapshot=linux_folder(), name="linux"), io.StringIO(f"{line}\nquit\n"), out)
    assert (status, out.getvalue().splitlines()) == (0, [answer])


def test_attack__has_no_answer_but_the_hypercall_has() -> None:
    out = io.StringIO()
    lines = io.StringIO("attack modprobe-path\nact hypercall\nquit\n")
    assert run_guest(GuestOptions(snapshot=linux_folder(), name="linux"), lines, out) == 0
    attack, act = out.getvalue().splitlines()
    assert ", returned, " in attack
    assert ", returned -1000, " in act
