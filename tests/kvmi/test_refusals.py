"""What error numbers mean."""

from __future__ import annotations

import pytest

from policyc.addresses import Gpa
from policyc.kvmi import (
    CheckCommand,
    Command,
    ErrorCode,
    GetInfo,
    InjectException,
    PauseVcpu,
    ReadPhysical,
    SetPageAccess,
)
from policyc.kvmi.refusals import error_name, refusal


@pytest.mark.parametrize(
    ("command", "errno", "text"),
    [
        (GetInfo(), -1, "GetInfo: EPERM (-1): the VMM doesn't allow this command or event"),
        (CheckCommand(SetPageAccess), -2, "CheckCommand: ENOENT (-2): the kernel doesn't know the command"),
        (ReadPhysical(Gpa(0), 1), -2, "ReadPhysical: ENOENT (-2): no memory at that address"),
        (PauseVcpu(0), -16, "PauseVcpu: EBUSY (-16): too many pauses are queued for the vCPU"),
        (
            InjectException(0, 3),
            -16,
            "InjectException: EBUSY (-16): an exception is pending, or the vCPU is single-stepping",
        ),
        (GetInfo(), -5, "GetInfo: errno -5 (-5): not an error of the KVMI protocol"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_meaning_depends_on_the_command(command: Command, errno: int, text: str) -> None:
    assert str(refusal(command, errno)) == text


def test_every_code_has_its_name() -> None:
    assert [error_name(code) for code in ErrorCode] == [code.name for code in ErrorCode]
