"""What tools once said to running kernels, said to the emulator: it answers as they did, but for what is listed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from policyc.kvmi import DIALECTS, EventKind
from tests.support.kvmi_vectors import Conversation, conversations
from tests.support.recorded_guest import FOLDER, RecordedGuest
from tests.support.recorded_kernels import Difference, compare

RECORDED = [(dialect, talk) for dialect in ("v7", "v12") for talk in conversations(dialect)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "emulator.md"

BRAND = "the processor's name in CPUID is that of its model"
MTRRS = "MTRRs are all write-back; the recorded guest had them off, which is uncached"
REPEATED = "#BP is delivered at the first try; the recorded host once faulted in between, and its event came again"
HOOKED = "a connection is taken at once; the recorded kernel refused one while a vCPU was still being let go"
CUT = "the recording ends before the kernel's last messages"

REASONS = (BRAND, MTRRS, REPEATED, HOOKED, CUT)

CPUID_NAME = Difference("GetCpuid(vcpu=0, function=2147483650, index=0)", "its data", "other data")
MTRR_TYPE = Difference("GetMtrrType(vcpu=0, gpa=4096)", "its data", "other data")
UNHEARD = Difference("GetInfo()", "silence", "32 bytes")

DIFFERENCES: dict[tuple[str, str], list[tuple[Difference, str]]] = {
    ("v12", "sweep"): [
        (CPUID_NAME, BRAND),
        (MTRR_TYPE, MTRRS),
        (Difference("event breakpoint", "576 bytes", "silence"), REPEATED),
    ],
    ("v7", "sweep"): [
        (CPUID_NAME, BRAND),
        (MTRR_TYPE, MTRRS),
        (Difference("event breakpoint", "568 bytes", "silence"), REPEATED),
        (Difference("event trap", "silence", "568 bytes"), CUT),
    ],
    ("v7", "create2"): [(Difference("GetVersion()", "silence", "32 bytes"), HOOKED)],
    ("v7", "deny_cmd.12"): [(Difference("GetVersion()", "silence", "32 bytes"), CUT)],
    ("v7", "fatal.65.pipelined_VM_VCPU_VM_commands"): [
        (UNHEARD, CUT),
        (Difference("VcpuGetInfo(vcpu=0)", "silence", "24 bytes"), CUT),
        (UNHEARD, CUT),
    ],
}
"""By conversation, every message that the emulator sends otherwise, and why."""


def played(short: str, talk: Conversation) -> list[Difference]:
    """A conversation against a machine as that one was."""
    guest = RecordedGuest(
        vcpus=2 if talk.name == "smp2" else 1,
        cpu="intel" if talk.name.startswith(("ss", "create")) else "amd",
    )
    return compare(
        DIALECTS[f"kvmi-{short}"],
        talk,
        guest,
        commands=[] if talk.name.startswith("deny_cmd") else None,
        events=[] if talk.name.startswith("deny_ev") else None,
        ordered=talk.name == "hookguest.synthetic",
        until=EventKind.CREATE_VCPU,
    )


@pytest.mark.parametrize(("short", "talk"), RECORDED, ids=[f"{d}: {t.name}" for d, t in RECORDED])
def test_the_emulator_answers_as_the_kernel_did(short: str, talk: Conversation) -> None:
    assert played(short, talk) == [difference for difference, _ in DIFFERENCES.get((short, talk.name), [])]


def test_every_difference_is_documented() -> None:
    used = {reason for rows in DIFFERENCES.values() for _, reason in rows}
    listed = DOCUMENT.read_text("utf-8").split("<!-- recorded kernels -->")[1]
    assert re.findall(r"^- (.*)[.;]$", listed, re.MULTILINE) == list(REASONS)
    assert used == set(REASONS)


def test_what_the_recorded_guest_was_assembled_from(tmp_path: Path) -> None:
    if shutil.which("as") is None:
        return
    built = tmp_path / "guest.hex"
    subprocess.run([str(FOLDER / "build.sh"), str(built)], check=True)
    assert built.read_text() == (FOLDER / "guest.hex").read_text()
