"""The write test against kernels that report writes, miss some, miss all, or refuse: what it concludes and leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gfn, Gpa, gfn_of
from policyc.guest.readers import build_profile
from policyc.kvmi import (
    V7,
    V12,
    Command,
    ControlEvents,
    CpuMode,
    DescriptorTable,
    Dialect,
    ErrorCode,
    EventKind,
    GetCpuid,
    GetRegisters,
    GetRegistersReply,
    MsrEntry,
    PageAccess,
    PauseVcpu,
    ReadPhysical,
    Registers,
    ReplyData,
    SetPageAccess,
    SystemRegisters,
    page_entries,
)
from policyc.runtime.doctor_chart import Chart, Stage
from policyc.runtime.frame_trials import (
    LOOK_PAUSE,
    LOOKS,
    TRIED_OF_A_KIND,
    FrameOutcome,
    FrameTrial,
    ProbeResult,
    ProbeVerdict,
)
from tests.support.consultation import BIT_CLEAR, BIT_SET, Consultation, Patient, patient
from tests.support.scripted_kernel import IMAGE_BASE, IMAGE_GPA, SILENCE, SLIDE, SYSTEM_MAP

FRAME_SET = Gfn((IMAGE_GPA >> 12) + BIT_SET)
FRAME_CLEAR = Gfn((IMAGE_GPA >> 12) + BIT_CLEAR)


def probed(peer: Patient) -> tuple[ProbeResult, Chart]:
    """What the test brought; whatever it was, nothing is left behind."""
    consultation = Consultation(peer, is_probed=True)
    chart = consultation.examine()
    assert chart.probe is not None
    assert chart.stage is Stage.EXAMINED
    assert consultation.now < 130
    return chart.probe, chart


def outcomes(result: ProbeResult) -> dict[int, FrameOutcome]:
    return {trial.gfn: trial.outcome for trial in result.trials}


# ---- what comes of it


def test_probe__writes_are_reported(dialect: Dialect) -> None:
    peer = patient(dialect, vcpus=2)
    result, _ = probed(peer)
    assert result == ProbeResult(
        (FrameTrial(FRAME_SET, FrameOutcome.REPORTED, 1), FrameTrial(FRAME_CLEAR, FrameOutcome.REPORTED, 1))
    )
    assert result.verdict is ProbeVerdict.REPORTED
    assert (peer.rights, peer.listening, peer.kernel.waiting) == ({}, set(), {})


def test_probe__every_vcpu_listens_before_a_frame_is_protected(dialect: Dialect) -> None:
    peer = patient(dialect, vcpus=3)
    probed(peer)
    order = [command for command in peer.commands if isinstance(command, (PauseVcpu, ControlEvents, SetPageAccess))]
    first = next(at for at, command in enumerate(order) if isinstance(command, SetPageAccess))
    assert order[:first] == [
        *(PauseVcpu(vcpu, wait=True) for vcpu in range(3)),
        *(ControlEvents(vcpu, EventKind.PF, enable=True) for vcpu in range(3)),
    ]
    assert order[-3:] == [ControlEvents(vcpu, EventKind.PF, enable=False) for vcpu in range(3)]
    entries = [entry for command in order if isinstance(command, SetPageAccess) for entry in page_entries(command)]
    assert [(gfn_of(Gpa(gpa)), rights) for gpa, rights in entries] == [
        (FRAME_SET, PageAccess.RX),
        (FRAME_SET, PageAccess.RWX),
        (FRAME_CLEAR, PageAccess.RX),
        (FRAME_CLEAR, PageAccess.RWX),
    ]


def test_probe__a_kernel_that_misses_writes_where_bit_1_is_set() -> None:
    result, _ = probed(patient(V7, is_deaf=True))
    assert outcomes(result) == {FRAME_SET: FrameOutcome.SILENT, FRAME_CLEAR: FrameOutcome.REPORTED}
    assert result.verdict is ProbeVerdict.DEAF


def test_probe__a_kernel_that_misses_all_writes(dialect: Dialect) -> None:
    result, _ = probed(patient(dialect, is_mute=True))
    assert outcomes(result) == {FRAME_SET: FrameOutcome.SILENT, FRAME_CLEAR: FrameOutcome.SILENT}
    assert result.verdict is ProbeVerdict.SILENT


@pytest.mark.parametrize(
    ("counters", "is_deaf", "verdict"),
    [
        ((BIT_CLEAR,), True, ProbeVerdict.PARTLY),
        ((BIT_SET,), True, ProbeVerdict.DEAF),
        ((BIT_SET,), False, ProbeVerdict.REPORTED),
    ],
)
def test_probe__with_frames_of_one_kind_only(counters: tuple[int, ...], is_deaf: bool, verdict: ProbeVerdict) -> None:
    result, _ = probed(patient(V7, counters=counters, is_deaf=is_deaf))
    assert len(result.trials) == 1
    assert result.verdict is verdict


def test_probe__nothing_counts() -> None:
    result, _ = probed(patient(V12, counters=()))
    assert result == ProbeResult(reason="no frame of kernel data was found in which nothing but counters change")
    assert result.verdict is ProbeVerdict.UNPROVEN


def test_probe__nobody_writes_any_more() -> None:
    """Counters that ran while they were sampled stand still under protection."""
    peer = patient(V12)
    peer.override = stopping_at_protection(peer)
    result, _ = probed(peer)
    assert set(outcomes(result).values()) == {FrameOutcome.UNWRITTEN}
    assert result.verdict is ProbeVerdict.UNPROVEN
    assert peer.rights == {}


def stopping_at_protection(peer: Patient) -> Callable[[Command], ReplyData | ErrorCode | None]:
    before = peer.override

    def answer(command: Command) -> ReplyData | ErrorCode | None:
        if isinstance(command, SetPageAccess):
            peer.counters = ()
        return before(command)

    return answer


def test_probe__uses_the_clock_that_a_profile_names() -> None:
    """`jiffies` is tried first, and even where its frame holds more than counters."""
    named = SYSTEM_MAP.replace(b"ffffffff81008000 B _end\n", b"ffffffff81008088 B jiffies\nffffffff81009000 B _end\n")
    peer = patient(V12, counters=(BIT_CLEAR,))
    peer.override = scribbling(peer)
    consultation = Consultation(peer, build_profile(named), is_probed=True)
    chart = consultation.examine()
    assert chart.probe is not None
    assert outcomes(chart.probe) == {FRAME_CLEAR: FrameOutcome.REPORTED}


def scribbling(peer: Patient) -> Callable[[Command], ReplyData | ErrorCode | None]:
    """Puts an address into the frame each time that it is read."""
    before, addresses = peer.override, iter(range(0xFFFF_8880_0000_0000, 0xFFFF_8881_0000_0000, 64))

    def answer(command: Command) -> ReplyData | ErrorCode | None:
        if isinstance(command, ReadPhysical) and gfn_of(command.gpa) == FRAME_CLEAR and FRAME_CLEAR not in peer.rights:
            peer.memory.set_entry(IMAGE_GPA + BIT_CLEAR * 4096 + 0x100, next(addresses))
        return before(command)

    return answer


def test_probe__a_frame_with_more_than_counters_isnt_tried() -> None:
    peer = patient(V12, counters=(BIT_CLEAR,))
    peer.override = scribbling(peer)
    result, _ = probed(peer)
    assert result.reason == "no frame of kernel data was found in which nothing but counters change"


def test_probe__silence_counts_only_where_nothing_of_the_kind_is_reported() -> None:
    """A device writes to one frame; another with bit 1 set is reported all the same."""
    heard = FrameTrial(Gfn(0x12), FrameOutcome.REPORTED, 3)
    by_device = FrameTrial(Gfn(0x16), FrameOutcome.SILENT)
    assert ProbeResult((by_device, heard)).verdict is ProbeVerdict.REPORTED
    assert ProbeResult((by_device,)).verdict is ProbeVerdict.DEAF


def test_probe__is_bounded() -> None:
    assert pytest.approx(6.0) == TRIED_OF_A_KIND * 2 * LOOKS * LOOK_PAUSE


# ---- what keeps it from being made


@pytest.mark.parametrize(
    ("commands", "events", "reason"),
    [
        ((SetPageAccess,), (), "the VMM doesn't allow SET_PAGE_ACCESS"),
        ((PauseVcpu, ControlEvents), (), "the VMM doesn't allow CONTROL_EVENTS, PAUSE_VCPU"),
        ((), (EventKind.PF,), "the VMM doesn't allow PF events"),
        ((), (EventKind.PAUSE,), "the VMM doesn't allow PAUSE events"),
    ],
)
def test_probe__needs_permissions(
    dialect: Dialect, commands: tuple[type[Command], ...], events: tuple[EventKind, ...], reason: str
) -> None:
    peer = patient(dialect, without_commands=commands, without_events=events)
    result, _ = probed(peer)
    assert result == ProbeResult(reason=reason)
    assert not any(isinstance(command, (PauseVcpu, SetPageAccess)) for command in peer.commands)


def test_probe__needs_every_vcpu() -> None:
    result, _ = probed(patient(V12, vcpus=2, stopped=(1,)))
    assert result.reason == "a vCPU that hasn't been started could write unseen once it is"


def test_probe__page_faults_that_cant_be_switched_on() -> None:
    def override(command: Command) -> ErrorCode | None:
        return ErrorCode.EBUSY if isinstance(command, ControlEvents) and command.enable else None

    peer = patient(V12, override=override)
    result, _ = probed(peer)
    assert result.reason is not None
    assert result.reason.startswith("page-fault events can't be switched on: ControlEvents: EBUSY")
    assert (result.trials, peer.rights, peer.kernel.waiting) == ((), {}, {})


def test_probe__a_kernel_that_refuses_to_protect() -> None:
    def override(command: Command) -> ErrorCode | None:
        return ErrorCode.EINVAL if isinstance(command, SetPageAccess) else None

    result, _ = probed(patient(V12, override=override))
    assert set(outcomes(result).values()) == {FrameOutcome.REFUSED}
    assert result.verdict is ProbeVerdict.UNPROVEN
    assert result.unrestored == ()


def test_probe__a_vcpu_that_never_stands_still() -> None:
    peer = patient(V12, vcpus=2, silent_pauses={1})
    result, _ = probed(peer)
    assert result.reason == "PAUSE events unanswered for 5 seconds"
    assert (peer.rights, peer.kernel.waiting, peer.listening) == ({}, {}, set())


def test_probe__a_kernel_that_falls_silent_with_a_frame_protected() -> None:
    """The frame is released all the same."""
    peer = patient(V12)
    before = peer.override

    def answer(command: Command) -> ReplyData | ErrorCode | None:
        if isinstance(command, ReadPhysical) and peer.rights:
            return SILENCE
        return before(command)

    peer.override = answer
    result, _ = probed(peer)
    assert result.reason == "1 commands unanswered for 5 seconds"
    assert (peer.rights, peer.listening) == ({}, set())


def test_probe__a_kernel_that_does_not_release() -> None:
    """What can't be put back is said; the end of the connection does it."""
    peer = patient(V12)
    before = peer.override

    def answer(command: Command) -> ReplyData | ErrorCode | None:
        if isinstance(command, SetPageAccess) and page_entries(command)[0][1] == PageAccess.RWX:
            return SILENCE
        return before(command)

    peer.override = answer
    result, _ = probed(peer)
    assert result.unrestored == ("SetPageAccess: unanswered",) * 2
    assert result.verdict is ProbeVerdict.REPORTED


def test_probe__is_left_where_it_stands_when_the_vmm_asks() -> None:
    peer = patient(V7)
    consultation = Consultation(peer, is_probed=True)
    peer.greet()
    consultation.talk()
    while not peer.rights:
        consultation.pass_time(0.05)
    peer.kernel.send_vm_event(EventKind.UNHOOK)
    consultation.talk()
    chart = consultation.end()
    assert (chart.ended, chart.probe) == ("the VMM asks to be let go", None)


def test_probe__hidden_cpuid_is_no_obstacle() -> None:
    result, chart = probed(patient(V7, without_commands=(GetCpuid,)))
    assert (result.verdict, chart.cpu) == (ProbeVerdict.REPORTED, None)


# ---- registers that a guest may show


u64 = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, (1 << 64) - 1, (1 << 63) - 1, 0xFFFF_8000_0000_0000, IMAGE_BASE + SLIDE]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(u64, min_size=6, max_size=6), st.integers(0, 0xFFFF), st.booleans(), st.booleans())
def test_probe__takes_any_registers(values: list[int], limit: int, real_root: bool, is_profiled: bool) -> None:
    """Whatever they say, the examination comes to its end and nothing stays protected."""
    cr0, cr3, cr4, efer, base, lstar = values
    peer = patient(V12)
    before, root = peer.override, peer.root if real_root else cr3

    def answer(command: Command) -> ReplyData | ErrorCode | None:
        if not isinstance(command, GetRegisters):
            return before(command)
        sregs = SystemRegisters(idt=DescriptorTable(base, limit), cr0=cr0, cr3=root, cr4=cr4, efer=efer)
        msrs = tuple(MsrEntry(index, lstar) for index in command.msrs)
        return GetRegistersReply(CpuMode.LONG, Registers(), sregs, msrs)

    peer.override = answer
    chart = Consultation(peer, build_profile(SYSTEM_MAP) if is_profiled else None, is_probed=True).examine()
    assert chart.stage is Stage.EXAMINED
    assert (peer.rights, peer.listening) == ({}, set())
