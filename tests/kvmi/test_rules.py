"""What the kernel's end makes of messages that aren't as they should be: a row for every check of every generation.

The recorded conversations show the same of real v7 and v12 kernels.
"""

from __future__ import annotations

import pytest

from policyc.addresses import Gpa, Gva
from policyc.kvmi import (
    V6,
    V7,
    V12,
    Action,
    CheckCommand,
    CheckEvent,
    Command,
    CommandReceived,
    ControlCmdResponse,
    ControlEvents,
    ControlSinglestep,
    ControlVmEvents,
    CrData,
    Dialect,
    EventKind,
    EventReplyReceived,
    GetCpuid,
    GetInfo,
    GetInfoReply,
    GetVersion,
    InjectException,
    KernelConnection,
    NewValue,
    PageAccess,
    PauseVcpu,
    PfData,
    PfReply,
    RemoteProtocolError,
    SetPageWriteBitmap,
    State,
    VcpuGetInfo,
    VcpuState,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import frame
from tests.support.kvmi_kernel import CLOSES, RECEIVED, SILENT, by_name, opened, outcome, payload, take
from tests.support.kvmi_vectors import Computed, computed

ALL = pytest.mark.parametrize("dialect", [V6, V7, V12], ids=repr)
GENERATION = {"v6": V6, "v7": V7, "v12": V12}

CHECKS = """
    command             payload                                                     v6      v7      v12
    GetVersion          -                                                           hand    hand    hand
    GetVersion          0000000000000000                                            hand    hand    hand
    CheckCommand        0200_0000_00000000                                          0       0       0
    CheckCommand        -                                                           -1      -1      -2
    CheckCommand        0200_0100_00000000                                          -22     -22     -22
    CheckCommand        0200_0000_01000000                                          -22     -22     -22
    CheckCommand        2800_0000_00000000                                          -1      -1      -2
    CheckCommand        4000_0000_00000000                                          -1      -22     -2
    CheckEvent          0000_0000_00000000                                          0       0       0
    CheckEvent          0000_0100_00000000                                          -22     -22     -22
    CheckEvent          0e00_0000_00000000                                          -1      -22     -2
    VcpuGetInfo         0000_0000_00000000                                          hand    hand    hand
    VcpuGetInfo         -                                                           hand    hand    hand
    VcpuGetInfo         0000_0100_00000000                                          close   close   -22
    VcpuGetInfo         0000_0000_01000000                                          close   close   -22
    VcpuGetInfo         0200_0000_00000000                                          -22     -22     -22
    VcpuGetInfo         0100_0000_00000000                                          hand    hand    hand
    ControlVmEvents     {unhook}_01_00_00000000                                     hand    hand    hand
    ControlVmEvents     {unhook}_02_00_00000000                                     hand    hand    -22
    ControlVmEvents     {unhook}_01_01_00000000                                     -22     -22     -22
    ControlVmEvents     {pf}_01_00_00000000                                         -22     -22     -22
    ControlVmEvents     6300_01_00_00000000                                         -22     -22     -22
    ControlEvents       0000_0000_00000000_{pf}_01_00_00000000                      hand    hand    hand
    ControlEvents       0000_0000_00000000_{pf}_02_00_00000000                      hand    hand    -22
    ControlEvents       0000_0000_00000000_{pf}_01_01_00000000                      -22     -22     -22
    ControlEvents       0000_0000_00000000_{unhook}_01_00_00000000                  -22     -22     -22
    ControlEvents       0000_0000_00000000_6300_01_00_00000000                      -22     -22     -22
    ControlMsr          0000_0000_00000000_01_00_0000_ff1f0000                      hand    -22     hand
    ControlMsr          0000_0000_00000000_01_00_0000_fe1f0000                      hand    hand    hand
    ControlMsr          0000_0000_00000000_01_00_0000_00200000                      -22     -22     -22
    ControlMsr          0000_0000_00000000_01_00_0000_000000c0                      hand    -22     hand
    ControlMsr          0000_0000_00000000_01_00_0000_010000c0                      hand    hand    hand
    ControlMsr          0000_0000_00000000_01_00_0000_ff1f00c0                      hand    -22     hand
    ControlMsr          0000_0000_00000000_01_00_0000_002000c0                      -22     -22     -22
    ControlMsr          0000_0000_00000000_01_01_0000_01000000                      -22     -22     -22
    ControlMsr          0000_0000_00000000_02_00_0000_01000000                      hand    hand    -22
    GetRegisters        0000_0000_00000000_0100_0000_00000000_01000000              hand    hand    hand
    GetRegisters        0000_0000_00000000_0200_0000_00000000_01000000              -22     -22     -22
    GetRegisters        0000_0000_00000000_0000_0100_00000000                       -22     -22     -22
    SetRegisters        0000_0000_00000000_00                                       hand    hand    -22
    SetRegisters        0000_0000_00000000_{144}                                    hand    hand    hand
    SetRegisters        0000_0000_00000000_{144}_00                                 hand    hand    hand
    InjectException     0000_0000_00000000_03_00_0100_00000000_0000000000000000     -22     -22     -22
    ReadPhysical        0010000000000000_0800_0000_00000000                         hand    hand    hand
    ReadPhysical        0010000000000000_0010_0000_00000000                         hand    hand    hand
    ReadPhysical        -                                                           -22     -22     -22
    ReadPhysical        0110000000000000_0010_0000_00000000                         -22     -22     -22
    ReadPhysical        0010000000000000_0110_0000_00000000                         -22     -22     -22
    WritePhysical       0010000000000000_0100_0000_00000000_aa                      hand    hand    hand
    WritePhysical       0010000000000000_0100_0000_00000000_aabb                    hand    hand    hand
    WritePhysical       0010000000000000_0200_0000_00000000_aa                      close   close   close
    WritePhysical       -                                                           close   close   close
    WritePhysical       0010000000000000_0000_0000_00000000                         -22     -22     -22
    WritePhysical       ff1f000000000000_0200_0000_00000000_aabb                    -22     -22     -22
"""


def check_rows() -> list[tuple[str, Dialect, str, str]]:
    rows = []
    for line in CHECKS.strip().splitlines()[1:]:
        name, hexed, *expected = line.split()
        rows += [(name, dialect, hexed, what) for dialect, what in zip((V6, V7, V12), expected, strict=True)]
    return rows


WORDS: dict[str, int | str] = {"hand": RECEIVED, "close": CLOSES, "0": 0, "-1": -1, "-2": -2, "-22": -22}


@pytest.mark.parametrize(("name", "dialect", "hexed", "expected"), check_rows(), ids=str)
def test_checks_that_all_generations_have(name: str, dialect: Dialect, hexed: str, expected: str) -> None:
    numbers = {kind.value: row.id.to_bytes(2, "little").hex() for kind, row in dialect.events.items()}
    filled = "" if hexed == "-" else hexed.replace("{144}", "00" * 144).format(**numbers).replace("_", "")
    assert outcome(opened(dialect), payload(dialect, by_name(name), filled)) == WORDS[expected]


V = "0000000000000000"
ONE_PAGE = "0010000000000000_05_00000000000000".replace("_", "")
OWN: list[tuple[Dialect, str, str, int | str]] = [
    (V6, "ControlCr", V + "01_00_0000_03000000", RECEIVED),
    (V7, "ControlCr", V + "02_00_0000_04000000", RECEIVED),
    (V7, "ControlCr", V + "01_01_0000_03000000", -22),
    (V7, "ControlCr", V + "01_00_0000_02000000", -22),
    (V12, "ControlCr", V + "03_01_0000_00000000", RECEIVED),
    (V12, "ControlCr", V + "03_02_0000_00000000", -22),
    (V12, "ControlCr", V + "08_01_0000_00000000", -22),
    (V6, "SetPageAccess", "0000_0100_00000000" + ONE_PAGE, RECEIVED),
    (V6, "SetPageAccess", "0000_0200_00000000" + ONE_PAGE, -22),
    (V7, "SetPageAccess", "0000_0200_00000000" + ONE_PAGE, -22),
    (V7, "SetPageAccess", "0000_0100_01000000" + ONE_PAGE, -22),
    (V7, "SetPageAccess", "0200_0100_00000000" + ONE_PAGE, RECEIVED),
    (V7, "SetPageAccess", "0300_0100_00000000" + ONE_PAGE, -22),
    (V7, "SetPageAccess", "0000_0000_00000000", RECEIVED),
    (V12, "SetPageAccess", "0100_0000_00000000" + ONE_PAGE, RECEIVED),
    (V12, "SetPageAccess", "0200_0000_00000000" + ONE_PAGE, CLOSES),
    (V12, "SetPageAccess", "0100_0100_00000000" + ONE_PAGE, -22),
    (V12, "ReadPhysical", "0010000000000000_0800_0100_00000000", -22),
    (V12, "WritePhysical", "0010000000000000_0100_0100_00000000_aa", -22),
    (V6, "PauseVcpu", "0100_0000_00000000_01_00_0000_00000000", RECEIVED),
    (V6, "PauseVcpu", "0100_0000_00000000_01_01_0000_00000000", -22),
    (V6, "PauseVcpu", "0200_0000_00000000_01_00_0000_00000000", -22),
    (V7, "PauseVcpu", "0100_0000_00000000_01_ff_ffff_ffffffff", RECEIVED),
    (V7, "PauseVcpu", "", RECEIVED),
    (V7, "PauseVcpu", "0200_0000_00000000_01_00_0000_00000000", -22),
    (V7, "PauseVcpu", "0001_0000_00000000_01_00_0000_00000000", CLOSES),
    (V7, "PauseVcpu", "0000_0100_00000000_01_00_0000_00000000", CLOSES),
    (V7, "PauseVcpu", "0000_0000_01000000_01_00_0000_00000000", CLOSES),
    (V12, "PauseVcpu", "0100_01_00_00000000", RECEIVED),
    (V12, "PauseVcpu", "0100_02_00_00000000", -22),
    (V12, "PauseVcpu", "0100_01_01_00000000", -22),
    (V12, "PauseVcpu", "0200_01_00_00000000", -22),
    (V6, "ControlCmdResponse", "01_01_0100_00000000", CLOSES),
    (V7, "ControlCmdResponse", "01_01_00_01_00000000", CLOSES),
    (V7, "ControlCmdResponse", "01_01_00_00_01000000", CLOSES),
    (V7, "ControlCmdResponse", "01_01_01_00_00000000", 0),
    (V7, "ControlCmdResponse", "00_01_00_00_00000000", SILENT),
    (V7, "ControlCmdResponse", "00_02_00_00_00000000", 0),
    (V12, "ControlCleanup", "01_00000000000000", RECEIVED),
    (V12, "ControlCleanup", "02_00000000000000", -22),
    (V12, "ControlCleanup", "00_00000000000001", -22),
    (V7, "GetXcr", V + "00_ffffffffffffff", RECEIVED),
    (V7, "GetXcr", V + "01_00000000000000", -22),
    (V12, "GetXcr", V + "00_00000000000001", -22),
    (V12, "GetXcr", V + "01_00000000000000", -22),
    (V7, "SetXsave", V + "00" * 4096, RECEIVED),
    (V7, "SetXsave", V + "00" * 64, RECEIVED),
    (V7, "SetXsave", V + "00" * 4097, -22),
    (V12, "SetXsave", V + "00" * 4096, RECEIVED),
    (V12, "SetXsave", V + "00" * 4095, -22),
    (V12, "SetXsave", V + "00" * 4097, RECEIVED),
    (V7, "ControlSinglestep", V + "01_00000000000000", RECEIVED),
    (V7, "ControlSinglestep", V + "02_00000000000000", RECEIVED),
    (V7, "ControlSinglestep", V + "01_00000000000001", -22),
    (V12, "ControlSinglestep", V + "02_00000000000000", -22),
    (V6, "InjectException", V + "0e_01_0000_00000000_0000000000000000", RECEIVED),
    (V7, "InjectException", V + "0e_01_0000_00000000_0000000000000000", -22),
    (V6, "GetPageAccess", "0000_0200_00000000_0010000000000000", -22),
    (V6, "GetPageWriteBitmap", "0000_0200_00000000_0010000000000000", -22),
    (V6, "SetPageWriteBitmap", "0000_0200_00000000_0010000000000000_ffffffff_00000000", -22),
    (V7, "SetPageWriteBitmap", "0000_0100_00000000_0010000000000000_ffffffff_00000000", -1),
    (V7, "SetPageSve", "0000_01_00_00000000_0010000000000000", RECEIVED),
    (V7, "SetPageSve", "0000_02_00_00000000_0010000000000000", -22),
    (V7, "SetPageSve", "0300_01_00_00000000_0010000000000000", -22),
    (V7, "SetEptView", V + "0300_0000_00000000", -22),
    (V7, "ControlEptView", V + "0300_01_00_00000000", -22),
    (V7, "SetVeInfo", V + "0010000000000000_01_01_0000_00000000", -22),
]


@pytest.mark.parametrize(
    ("dialect", "name", "hexed", "expected"), OWN, ids=[f"{r[0]}: {r[1]} {r[2][:48]}" for r in OWN]
)
def test_checks_of_one_generation(dialect: Dialect, name: str, hexed: str, expected: int | str) -> None:
    assert outcome(opened(dialect), payload(dialect, by_name(name), hexed.replace("_", ""))) == expected


# --- ids, permissions, sizes ---


@pytest.mark.parametrize("vector", [v for v in computed() if v.label.startswith("unknown")], ids=lambda v: v.generation)
def test_an_unknown_id_is_answered_as_computed(vector: Computed) -> None:

    kernel = opened(GENERATION[vector.generation])
    assert take(kernel, frame(0xFFFF, 0x14, b"whatever")) == []
    assert kernel.data_to_send() == [vector.data]


@ALL
def test_the_largest_message_and_one_byte_more(dialect: Dialect) -> None:
    number = dialect.commands[GetInfo].id
    assert outcome(opened(dialect), frame(number, 1, bytes(8184))) == RECEIVED
    assert outcome(opened(dialect), frame(number, 1, bytes(8185))) == CLOSES
    # The size is judged before a byte of the payload is there.
    assert outcome(opened(dialect), frame(number, 1, bytes(8185))[:8]) == CLOSES


ALWAYS: dict[type[Command], int | str] = {GetVersion: RECEIVED, CheckCommand: 0, CheckEvent: 0}


@ALL
def test_only_three_commands_are_always_allowed(dialect: Dialect) -> None:
    for cls, row in dialect.commands.items():
        kernel = opened(dialect, commands=[])
        expected = ALWAYS.get(cls, -1)
        asked = dialect.commands[GetVersion].id.to_bytes(2, "little") if cls is CheckCommand else b"\0\0"
        assert outcome(kernel, frame(row.id, 1, asked + bytes(6))) == expected, cls


@ALL
def test_forbidden_events(dialect: Dialect) -> None:
    kernel = opened(dialect, events=[EventKind.CR])
    codec = codec_of(dialect)

    def asked(command: Command) -> int | str:
        return outcome(kernel, codec.command(command).encode(command, 1))

    assert asked(CheckEvent(EventKind.CR)) == 0
    assert asked(CheckEvent(EventKind.PF)) == -1
    assert asked(ControlEvents(0, EventKind.CR, True)) == RECEIVED
    assert asked(ControlEvents(0, EventKind.PF, True)) == -1
    assert asked(ControlVmEvents(EventKind.UNHOOK, True)) == -1
    assert asked(InjectException(0, 3)) == (-1 if dialect is V12 else RECEIVED)
    assert asked(PauseVcpu(0)) == {V6: -1, V7: CLOSES, V12: -1}[dialect]


def test_single_step_needs_its_event_in_v12_alone() -> None:
    message = V + "0100000000000000"

    assert outcome(opened(V12, events=[]), payload(V12, ControlSinglestep, message)) == -1
    assert outcome(opened(V7, events=[]), payload(V7, ControlSinglestep, message)) == RECEIVED


def test_error_reports_need_their_event() -> None:

    off, on = "00_01_01_00_00000000".replace("_", ""), "01_01_01_00_00000000".replace("_", "")
    assert outcome(opened(V7, events=[]), payload(V7, ControlCmdResponse, off)) == CLOSES
    assert outcome(opened(V7, events=[]), payload(V7, ControlCmdResponse, on)) == 0


@ALL
def test_a_vcpu_that_is_not_started(dialect: Dialect) -> None:
    kernel = opened(dialect)
    kernel.stopped = {1}
    assert outcome(kernel, payload(dialect, VcpuGetInfo, "0100000000000000")) == -11
    assert outcome(kernel, payload(dialect, VcpuGetInfo, "0000000000000000")) == RECEIVED
    pause = codec_of(dialect).command(PauseVcpu(1)).encode(PauseVcpu(1), 1)
    assert outcome(kernel, pause) == RECEIVED
    kernel.send_event(EventKind.PAUSE, 1, VcpuState())
    kernel.data_to_send()
    assert outcome(kernel, payload(dialect, VcpuGetInfo, "0100000000000000")) == RECEIVED


# --- replies switched off ---


def silent(dialect: Dialect) -> KernelConnection:

    kernel = opened(dialect)
    assert outcome(kernel, payload(dialect, ControlCmdResponse, "0001000000000000")) == SILENT
    return kernel


def test_unknown_and_forbidden_commands_in_silence() -> None:
    assert outcome(silent(V6), frame(999, 1, b"")) == -95
    assert outcome(silent(V7), frame(999, 1, b"")) == CLOSES
    assert outcome(silent(V7), payload(V7, SetPageWriteBitmap, "")) == CLOSES


@pytest.mark.parametrize("dialect", [V6, V7], ids=repr)
def test_answers_in_silence(dialect: Dialect) -> None:
    kernel = silent(dialect)
    for message in (payload(dialect, VcpuGetInfo, "0700000000000000"), payload(dialect, CheckCommand, "0200")):
        assert outcome(kernel, message) == SILENT
    (received,) = take(kernel, payload(dialect, GetInfo, ""))
    assert isinstance(received, CommandReceived)
    with pytest.raises(RemoteProtocolError, match="no command with data while replies are off, got GetInfo"):
        kernel.answer(received, GetInfoReply(2))
    assert kernel.state is State.ERROR


def test_refusals_in_silence_of_v7() -> None:
    kernel = silent(V7)
    info, cpuid = take(kernel, payload(V7, GetInfo, "") + payload(V7, GetCpuid, V + "0000000000000000"))
    assert isinstance(info, CommandReceived)
    assert isinstance(cpuid, CommandReceived)
    kernel.refuse(info, -12)
    assert kernel.data_to_send() == []
    with pytest.raises(RemoteProtocolError):
        kernel.refuse(cpuid, -2)


# --- event replies ---


def waiting(dialect: Dialect, kind: EventKind = EventKind.PAUSE) -> KernelConnection:
    """A kernel whose vCPU 0 waits for the reply to event 1."""

    kernel = opened(dialect)
    data = {EventKind.CR: CrData(3, 1, 2), EventKind.PF: PfData(Gva(1), Gpa(1), PageAccess.W)}.get(kind)
    assert kernel.send_event(kind, 0, VcpuState(), data) == 1
    kernel.data_to_send()
    return kernel


def event_reply(dialect: Dialect, hexed: str, seq: int = 1) -> bytes:
    return frame(dialect.framing.event_reply, seq, bytes.fromhex(hexed.replace("_", "")))


GOOD = "0000_0000_00000000_00_63_0000_00000000"

PAUSE_REPLIES: list[tuple[str, str, dict[Dialect, int | str]]] = [
    ("a good one", GOOD, dict.fromkeys((V6, V7, V12), RECEIVED)),
    ("shorter than its head", GOOD[:-4], dict.fromkeys((V6, V7, V12), CLOSES)),
    ("empty", "", dict.fromkeys((V6, V7, V12), CLOSES)),
    ("longer than it may be", GOOD + "00", dict.fromkeys((V6, V7, V12), CLOSES)),
    ("padding after the event", "0000_0000_00000000_00_01_0100_00000000", dict.fromkeys((V6, V7, V12), CLOSES)),
    ("padding at the end", "0000_0000_00000000_00_01_0000_01000000", dict.fromkeys((V6, V7, V12), CLOSES)),
    ("padding in the header", "0000_0100_00000000_00_01_0000_00000000", {V6: CLOSES, V7: CLOSES, V12: -22}),
    ("no such vCPU", "0700_0000_00000000_00_01_0000_00000000", dict.fromkeys((V6, V7, V12), -22)),
    (
        "RETRY, which PAUSE doesn't take",
        "0000_0000_00000000_01_01_0000_00000000",
        {V6: RECEIVED, V7: RECEIVED, V12: CLOSES},
    ),
    (
        "an action that doesn't exist",
        "0000_0000_00000000_09_01_0000_00000000",
        {V6: RECEIVED, V7: RECEIVED, V12: CLOSES},
    ),
    ("a vCPU that doesn't wait", "0100_0000_00000000_00_01_0000_00000000", {V6: SILENT, V7: SILENT, V12: CLOSES}),
]


@ALL
@pytest.mark.parametrize(("what", "hexed", "expected"), PAUSE_REPLIES, ids=[row[0] for row in PAUSE_REPLIES])
def test_event_replies(dialect: Dialect, what: str, hexed: str, expected: dict[Dialect, int | str]) -> None:
    kernel = waiting(dialect)
    assert outcome(kernel, event_reply(dialect, hexed)) == expected[dialect]
    assert kernel.waiting == ({} if expected[dialect] in (CLOSES, RECEIVED) else {0: EventKind.PAUSE})


@ALL
def test_an_event_reply_with_another_number(dialect: Dialect) -> None:
    assert outcome(waiting(dialect), event_reply(dialect, GOOD, seq=2)) == CLOSES


@ALL
def test_an_action_that_the_event_does_not_take_is_no_action(dialect: Dialect) -> None:
    if dialect is not V12:
        assert take(waiting(dialect), event_reply(dialect, "0000000000000000 01 01 0000 00000000")) == [
            EventReplyReceived(1, 0, EventKind.PAUSE, None, None)
        ]


@ALL
def test_what_a_reply_leaves_out_is_zero(dialect: Dialect) -> None:
    assert take(waiting(dialect, EventKind.CR), event_reply(dialect, GOOD)) == [
        EventReplyReceived(1, 0, EventKind.CR, Action.CONTINUE, NewValue(0))
    ]
    assert take(waiting(dialect, EventKind.CR), event_reply(dialect, GOOD + "3412")) == [
        EventReplyReceived(1, 0, EventKind.CR, Action.CONTINUE, NewValue(0x1234))
    ]


CTX = "1070000000000000 04000000 {step} {rep} {pad} 11223344" + "00" * 252
PF_REPLIES: list[tuple[Dialect, str, int | str | PfReply]] = [
    (V7, "", PfReply(Gva(0))),
    (V7, "00" * 273, CLOSES),
    (V7, CTX.format(step="00", rep="01", pad="0000"), PfReply(Gva(0x7010), bytes.fromhex("11223344"), True)),
    (V7, CTX.format(step="01", rep="00", pad="0000"), CLOSES),
    (V7, CTX.format(step="00", rep="00", pad="0100"), CLOSES),
    (V6, CTX.format(step="01", rep="00", pad="0000"), PfReply(Gva(0x7010), bytes.fromhex("11223344"), False, True)),
    (V6, CTX.format(step="00", rep="00", pad="0100"), PfReply(Gva(0x7010), bytes.fromhex("11223344"))),
    (V7, "0000000000000000 01010000", CLOSES),
    (V7, "0000000000000000 00010000", PfReply(Gva(0), bytes(256))),
    (V12, "00", CLOSES),
]


@pytest.mark.parametrize(("dialect", "hexed", "expected"), PF_REPLIES)
def test_page_fault_replies(dialect: Dialect, hexed: str, expected: int | str | PfReply) -> None:
    kernel = waiting(dialect, EventKind.PF)
    message = event_reply(dialect, GOOD + hexed.replace(" ", ""))
    if isinstance(expected, PfReply):
        assert take(kernel, message) == [EventReplyReceived(1, 0, EventKind.PF, Action.CONTINUE, expected)]
    else:
        assert outcome(kernel, message) == expected
