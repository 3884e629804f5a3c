"""The examination of scripted kernels: what it learns, in every dialect, of guests that say little or leave."""

from __future__ import annotations

from collections import Counter

import pytest

from policyc.addresses import GVA_UNKNOWN, Gfn, Gpa, Gva
from policyc.guest.linux_kernel import KernelFound, KernelNotReady, WrongKernel
from policyc.guest.readers import build_profile
from policyc.kvmi import (
    DIALECTS,
    V7,
    V12,
    Action,
    Command,
    ControlEvents,
    ControlMsr,
    ControlVmEvents,
    CpuMode,
    CrData,
    Dialect,
    ErrorCode,
    EventKind,
    GetCpuid,
    GetInfo,
    GetInfoReply,
    GetMaxGfn,
    GetRegisters,
    InjectException,
    NewValue,
    PageAccess,
    PauseVcpu,
    PfData,
    ReplyData,
    SetPageAccess,
    SetPageWriteBitmap,
    SetRegisters,
    UnsupportedDialectError,
    VcpuGetInfo,
    WritePhysical,
)
from policyc.runtime import doctor
from policyc.runtime.doctor_chart import Cpu, Permission, Stage, VcpuFacts
from policyc.runtime.doctor_examine import MAX_LISTED_VCPUS
from policyc.runtime.frame_trials import Watch
from policyc.runtime.steps import Inquire, Leave
from tests.support.consultation import Consultation, OldSeries, patient
from tests.support.doctor_cases import firmware, silence_about
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, SYSTEM_MAP

CHANGES = (SetPageAccess, WritePhysical, SetRegisters, InjectException, ControlEvents, ControlMsr, PauseVcpu)
"""Commands that change something in the guest, or stop it."""


@pytest.fixture(params=DIALECTS.values(), ids=str)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found = request.param
    assert isinstance(found, Dialect)
    return found


# ---- a guest that answers


def test_examination__fills_in_the_chart(dialect: Dialect) -> None:
    consultation = Consultation(patient(dialect, vcpus=3, stopped=(2,)))
    chart = consultation.examine()
    assert (chart.stage, chart.ended, chart.fault, chart.silences) == (Stage.EXAMINED, None, None, [])
    assert chart.hello is not None
    assert chart.hello.name == "scripted"
    assert chart.negotiated is not None
    assert chart.negotiated.dialect is dialect
    assert chart.vcpus == (
        VcpuFacts(0, True, 2_400_000_000),
        VcpuFacts(1, True, 2_400_000_000),
        VcpuFacts(2, False),
    )
    assert chart.started == (0, 1)
    assert chart.cpu == Cpu("GenuineIntel", 6, 0x5E, 3, "A processor \x1b[2J for tests")
    assert chart.kernel is not None
    assert (chart.kernel.mode, chart.kernel.is_kernel) == (CpuMode.LONG, True)
    assert chart.kernel.registers.lstar == IMAGE_BASE + SLIDE + 0x80
    assert chart.memory_end == (None if dialect is V12 else Gpa(64 << 20))
    assert set(chart.commands) == set(dialect.commands)
    assert set(chart.events) == set(dialect.events)
    denied = {command for command, found in chart.commands.items() if found is not Permission.ALLOWED}
    assert denied == ({SetPageWriteBitmap} if dialect is V7 else set())
    assert set(chart.events.values()) == {Permission.ALLOWED}


def test_examination__leaves_the_guest_as_it_was(dialect: Dialect) -> None:
    peer = patient(dialect, vcpus=2)
    consultation = Consultation(peer)
    consultation.examine()
    assert [command for command in peer.commands if isinstance(command, CHANGES)] == []
    assert consultation.disconnected == doctor.DONE
    assert (peer.rights, peer.kernel.waiting) == ({}, {})


def test_examination__asks_for_unhook_first(dialect: Dialect) -> None:
    peer = patient(dialect)
    Consultation(peer).examine()
    switches = [command for command in peer.commands if isinstance(command, ControlVmEvents)]
    assert switches == [ControlVmEvents(EventKind.UNHOOK, enable=True)]
    assert peer.commands.index(switches[0]) == 1, "right after GET_VERSION"


@pytest.mark.parametrize(
    ("cpu", "vendor", "is_intel", "is_amd"),
    [
        ("intel", "GenuineIntel", True, False),
        ("amd", "AuthenticAMD", False, True),
        ("other", "CentaurHauls", False, False),
    ],
)
def test_cpu(cpu: str, vendor: str, is_intel: bool, is_amd: bool) -> None:
    chart = Consultation(patient(V12, cpu=cpu)).examine()
    assert chart.cpu is not None
    assert (chart.cpu.vendor, chart.cpu.is_intel, chart.cpu.is_amd) == (vendor, is_intel, is_amd)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [("intel", (0x6, 0x5E, 3)), ("amd", (0x17, 0x1, 2)), ("other", (0x6, 0xF, 0xE))],
)
def test_cpu__adds_the_extended_fields(cpu: str, expected: tuple[int, int, int]) -> None:
    found = Consultation(patient(V7, cpu=cpu)).examine().cpu
    assert found is not None
    assert (found.family, found.model, found.stepping) == expected


def test_cpu__without_a_brand() -> None:
    def override(command: Command) -> ErrorCode | None:
        extended = isinstance(command, GetCpuid) and command.function >= 0x8000_0000
        return ErrorCode.ENOENT if extended else None

    found = Consultation(patient(V7, override=override)).examine().cpu
    assert found is not None
    assert found.brand is None


def test_cpu__unknown_where_cpuid_is_refused() -> None:
    chart = Consultation(patient(V7, without_commands=(GetCpuid,))).examine()
    assert (chart.cpu, chart.stage) == (None, Stage.EXAMINED)


# ---- permissions


def test_permissions__says_what_is_denied(dialect: Dialect) -> None:
    denied_command, denied_event = InjectException, EventKind.HYPERCALL
    peer = patient(dialect, without_commands=(denied_command,), without_events=(denied_event,))
    chart = Consultation(peer).examine()
    assert chart.commands[denied_command] is Permission.DENIED
    assert chart.events[denied_event] is Permission.DENIED
    assert not chart.may(denied_command)
    assert chart.may(GetRegisters, SetPageAccess)


def test_permissions__are_asked_again_since_qemu_allows_them_late() -> None:
    peer = patient(V12, without_commands=(GetRegisters,))
    consultation = Consultation(peer)
    peer.greet()
    consultation.talk()
    assert consultation.checkup.chart.commands[GetRegisters] is Permission.DENIED
    peer.kernel._commands |= {GetRegisters}
    consultation.pass_time(200)
    assert consultation.end().commands[GetRegisters] is Permission.ALLOWED


def test_permissions__are_not_asked_for_ever() -> None:
    consultation = Consultation(patient(V12, without_commands=(GetRegisters,)))
    consultation.examine()
    assert 100 < consultation.now < 101


def test_permissions__one_that_no_kernel_allows_isnt_waited_for() -> None:
    consultation = Consultation(patient(V7))
    consultation.examine(seconds=0)
    assert consultation.disconnected == doctor.DONE


# ---- vCPUs


def test_vcpus__where_their_question_is_forbidden_registers_tell() -> None:
    chart = Consultation(patient(V12, vcpus=2, stopped=(1,), without_commands=(VcpuGetInfo,))).examine()
    assert chart.vcpus == (VcpuFacts(0, True), VcpuFacts(1, False))
    assert chart.kernel is not None


def test_vcpus__that_nothing_is_said_about() -> None:
    chart = Consultation(patient(V12, without_commands=(VcpuGetInfo, GetRegisters))).examine()
    assert chart.vcpus == (VcpuFacts(0, None),)
    assert (chart.are_vcpus_silent, chart.cpu, chart.kernel) == (False, None, None)


def test_vcpus__that_the_vmm_does_not_run_are_silent(dialect: Dialect) -> None:
    consultation = Consultation(patient(dialect, vcpus=2, override=silence_about(VcpuGetInfo)))
    chart = consultation.examine()
    assert chart.vcpus == (VcpuFacts(0, None), VcpuFacts(1, None))
    assert (chart.are_vcpus_silent, chart.stage) == (True, Stage.EXAMINED)
    assert chart.silences == []
    assert consultation.now < 110


def test_vcpus__more_than_any_machine_has() -> None:
    def override(command: Command) -> ReplyData | None:
        return GetInfoReply(0xFFFF_FFFF) if isinstance(command, GetInfo) else None

    peer = patient(V12, override=override)
    chart = Consultation(peer).examine()
    assert len(chart.vcpus) == MAX_LISTED_VCPUS
    assert chart.started == (0,), "the kernel knows the others not to exist"


def test_vcpus__the_first_that_has_been_started_tells_about_the_guest() -> None:
    peer = patient(V7, vcpus=2, stopped=(0,))
    chart = Consultation(peer).examine()
    asked = {command.vcpu for command in peer.commands if isinstance(command, (GetCpuid, GetRegisters))}
    assert (chart.started, asked) == ((1,), {1})


# ---- the kernel in the guest


def test_kernel__firmware_has_no_lstar() -> None:
    profile = build_profile(SYSTEM_MAP)
    chart = Consultation(patient(V7, override=firmware), profile, is_probed=True).examine()
    assert chart.kernel is not None
    assert (chart.kernel.mode, chart.kernel.is_kernel) == (CpuMode.REAL, False)
    assert isinstance(chart.search, KernelNotReady)
    assert chart.probe is not None
    assert chart.probe.reason == "no kernel runs yet"


def test_profile__is_found(dialect: Dialect) -> None:
    chart = Consultation(patient(dialect), build_profile(SYSTEM_MAP)).examine()
    assert isinstance(chart.search, KernelFound)
    assert chart.search.slide == SLIDE


def test_profile__of_another_kernel() -> None:
    other = SYSTEM_MAP.replace(b"ffffffff81000c60", b"ffffffff81000c70")
    chart = Consultation(patient(V12), build_profile(other)).examine()
    assert isinstance(chart.search, WrongKernel)


def test_profile__that_cant_find_any_kernel() -> None:
    blind = b"".join(line for line in SYSTEM_MAP.splitlines(keepends=True) if b"asm_exc" not in line)
    chart = Consultation(patient(V12), build_profile(blind)).examine()
    assert chart.search is None
    assert chart.search_problem == "this profile doesn't say where system calls and interrupts enter the kernel"


# ---- events that come meanwhile


def test_events__are_let_pass(dialect: Dialect) -> None:
    """A CR that is answered without its value would become 0."""
    peer = patient(dialect, override=silence_about(GetInfo))
    consultation = Consultation(peer)
    peer.greet()
    consultation.talk()
    for kind, data in ((EventKind.HYPERCALL, None), (EventKind.CR, CrData(3, 0x1000, 0x2000))):
        peer.kernel.send_event(kind, 0, peer.vcpu_state(0, 0), data)
        consultation.talk()
    assert [(answer.action, answer.value) for answer in peer.answers] == [
        (Action.CONTINUE, None),
        (Action.CONTINUE, NewValue(0x2000)),
    ]


def test_unhook__makes_it_leave_at_once(dialect: Dialect) -> None:
    peer = patient(dialect, override=silence_about(GetInfo))
    consultation = Consultation(peer)
    peer.greet()
    consultation.talk()
    peer.kernel.send_vm_event(EventKind.UNHOOK)
    consultation.talk()
    chart = consultation.end()
    assert (chart.stage, chart.ended) == (Stage.NEGOTIATED, "the VMM asks to be let go")


def test_leave__ends_it() -> None:
    consultation = Consultation(patient(V7))
    consultation.feed(Leave("asked to leave"))
    assert consultation.disconnected == "asked to leave"


def test_inquiry__is_not_for_it() -> None:
    assert len(doctor.step(doctor.Checkup(), 0.0, Inquire(7, GetInfo()))) == 1


# ---- peers that don't get so far


def test_silence__instead_of_a_hello() -> None:
    consultation = Consultation(patient(V7))
    consultation.pass_time(9.9)
    assert consultation.disconnected is None
    consultation.pass_time(0.2)
    chart = consultation.end()
    assert (chart.stage, chart.ended) == (Stage.CONNECTED, "the peer was silent for 10 seconds")


def test_hang_up__after_the_hello() -> None:
    peer = patient(V7)
    consultation = Consultation(peer)
    peer.greet()
    consultation.tool_reads(b"".join(peer.kernel.data_to_send()))
    chart = consultation.end("the peer closed the connection")
    assert (chart.stage, chart.ended) == (Stage.GREETED, "the peer closed the connection")


def test_hang_up__meanwhile(dialect: Dialect) -> None:
    peer = patient(dialect, override=silence_about(GetInfo))
    consultation = Consultation(peer)
    peer.greet()
    consultation.talk()
    chart = consultation.end("the peer closed the connection")
    assert (chart.stage, chart.ended) == (Stage.NEGOTIATED, "the peer closed the connection")
    assert set(chart.commands) == set(dialect.commands), "what it said before is kept"


@pytest.mark.parametrize("errno", [0, int(ErrorCode.EPERM)])
def test_old_series__is_refused_by_name(errno: int) -> None:
    chart = Consultation(OldSeries(errno)).examine()
    assert chart.stage is Stage.GREETED
    assert isinstance(chart.fault, UnsupportedDialectError)
    assert chart.fault.got == "kvmi-v10 or kvmi-v11"


def test_slow_kernel__does_not_keep_us_for_ever() -> None:
    """Each question is answered just in time, and there are many."""
    peer = patient(V7, without_commands=(GetCpuid,))
    consultation = Consultation(peer, build_profile(SYSTEM_MAP), is_probed=True, is_late=True)
    chart = consultation.examine(seconds=1000)
    assert chart.stage is Stage.NEGOTIATED
    assert chart.ended == "the guest's kernel took more than 90 seconds to answer everything"
    assert 190 <= consultation.now < 215


def test_mute_kernel__is_asked_everything_once_and_left(dialect: Dialect) -> None:
    peer = patient(dialect, override=silence_about(GetInfo, GetMaxGfn, GetRegisters, VcpuGetInfo))
    consultation = Consultation(peer, is_probed=True)
    chart = consultation.examine()
    assert chart.stage is Stage.EXAMINED
    silent = ["the size of the guest's memory: 1 commands unanswered for 5 seconds"] if dialect is not V12 else []
    assert chart.silences == [*silent, "the number of vCPUs: 1 commands unanswered for 5 seconds"]
    assert chart.probe is not None
    assert chart.probe.reason == "no vCPU that has been started answers"


def test_watch__counts_writes_alone() -> None:
    peer = patient(V7, override=silence_about(GetInfo))
    consultation = Consultation(peer, is_probed=True)
    peer.greet()
    consultation.talk()
    for access in (PageAccess.R, PageAccess.X, PageAccess.W):
        data = PfData(Gva(GVA_UNKNOWN), Gpa(0x7123), access)
        peer.kernel.send_event(EventKind.PF, 0, peer.vcpu_state(0, 0), data)
        consultation.talk()
    assert consultation.checkup.watch == Watch(Counter({Gfn(7): 1}))
    assert [answer.action for answer in peer.answers] == [Action.CONTINUE] * 3
