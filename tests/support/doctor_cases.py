"""Cases of every kind that an examination may bring, by name: made from scripted kernels and made-up hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from policyc.guest.readers import build_profile
from policyc.kvmi import (
    V6,
    V7,
    V12,
    Command,
    ControlEvents,
    ControlMsr,
    CpuMode,
    ErrorCode,
    EventKind,
    Features,
    GetMaxGfn,
    GetRegisters,
    GetRegistersReply,
    GetVersion,
    GetVersionReply,
    MsrEntry,
    PageAccess,
    Registers,
    RemoteProtocolError,
    ReplyData,
    SetPageAccess,
    SystemRegisters,
    VcpuGetInfo,
    page_entries,
)
from policyc.runtime.doctor_case import Case
from policyc.runtime.doctor_chart import Chart, Stage
from policyc.runtime.doctor_host import Host
from policyc.runtime.doctor_place import Account, Place, Rights, Site
from policyc.runtime.doctor_processes import Process, Vmm
from policyc.runtime.transport import Occupant
from tests.support.consultation import BIT_CLEAR, BIT_SET, Consultation, OldSeries, Peer, patient
from tests.support.scripted_kernel import SILENCE, SYSTEM_MAP

__all__ = ["CASES", "HOSTILE", "PATH", "QEMU", "examined", "firmware", "nobody", "silence_about"]

PATH = Path("/run/policyc/guest.sock")
QEMU = Process(4711, "qemu-system-x86")
HOSTILE = "a name \x1b[2J\u202e of a process"

SITE = Site(
    Rights("srw-rw----", "policyc", "kvm"),
    Rights("drwxrws---", "policyc", "kvm"),
    (Account("policyc", None), Account("libvirt-qemu", None)),
)
KVMI_HOST = Host(release="5.15.0-kvmi", has_kvm=True, introspection=True, ksm=False, huge_pages="never")

Answer = Callable[[Command], ReplyData | ErrorCode | None]


def nobody(host: Host = KVMI_HOST, *, occupant: Occupant | None = Occupant.NOTHING, site: Site = SITE) -> Case:
    """Nobody came within ten seconds."""
    return Case(Place(PATH, occupant), site, host, Chart(stage=Stage.NOBODY), waited=10)


def unlistened(place: Place, problem: str, remedy: str | None = None) -> Case:
    """The socket couldn't be made."""
    chart = Chart(stage=Stage.NOBODY)
    return Case(place, SITE, KVMI_HOST, chart, listened=False, problem=problem, remedy=remedy)


def examined(peer: Peer, *, profile: bytes | None = None, is_probed: bool = False, host: Host = KVMI_HOST) -> Case:
    """A guest came and said what it says."""
    known = build_profile(profile) if profile is not None else None
    chart = Consultation(peer, known, is_probed).examine()
    return came(chart, is_probed=is_probed, host=host)


def came(chart: Chart, *, is_probed: bool = False, has_secret: bool = False, host: Host = KVMI_HOST) -> Case:
    """A guest came, and this is what is known of it."""
    place = Place(PATH, Occupant.NOTHING)
    return Case(place, SITE, host, chart, peer=QEMU, waited=10, has_secret=has_secret, is_probed=is_probed)


def gone_after_hello(*, has_secret: bool) -> Case:
    peer = patient(V7)
    consultation = Consultation(peer)
    peer.greet()
    consultation.tool_reads(b"".join(peer.kernel.data_to_send()))
    return came(consultation.end("the peer closed the connection"), has_secret=has_secret)


def gone_meanwhile() -> Case:
    consultation = Consultation(patient(V12, override=silence_about(GetVersion)))
    consultation.peer.greet()
    consultation.talk()
    consultation.checkup.chart.stage = Stage.NEGOTIATED
    return came(consultation.end("the peer closed the connection"))


def fault(stage: Stage) -> Case:
    chart = Chart(stage=stage, ended="the peer broke the protocol: expected this, got that")
    chart.fault = RemoteProtocolError("this", "that")
    return came(chart)


def silence_about(*commands: type[Command]) -> Answer:
    return lambda command: SILENCE if isinstance(command, commands) else None


def refusing(*commands: type[Command]) -> Answer:
    return lambda command: ErrorCode.EINVAL if isinstance(command, commands) else None


def keeping_protected(command: Command) -> ErrorCode | None:
    is_release = isinstance(command, SetPageAccess) and page_entries(command)[0][1] == PageAccess.RWX
    return ErrorCode.EINVAL if is_release else None


def offering_single_step(command: Command) -> ReplyData | None:
    if isinstance(command, GetVersion):
        return GetVersionReply(max_message_size=8184, features=Features(singlestep=True))
    return None


def firmware(command: Command) -> ReplyData | None:
    if not isinstance(command, GetRegisters):
        return None
    msrs = tuple(MsrEntry(index, 0) for index in command.msrs)
    return GetRegistersReply(CpuMode.REAL, Registers(), SystemRegisters(), msrs)


def silent_reads_while_protected() -> Case:
    peer = patient(V12, counters=(BIT_CLEAR, BIT_SET))
    before = peer.override
    frames = 0

    def answer(command: Command) -> ReplyData | ErrorCode | None:
        nonlocal frames
        frames += isinstance(command, SetPageAccess)
        return SILENCE if frames == 3 and peer.rights else before(command)

    peer.override = answer
    return examined(peer, is_probed=True)


def without_uuid() -> Case:
    case = examined(patient(V12))
    hello = case.chart.hello
    assert hello is not None
    case.chart.hello = type(hello)(bytes(16), HOSTILE, form=hello.form)
    return case


HOSTS: Mapping[str, Host] = {
    "no KVM": Host(),
    "another kernel": Host(release="6.1.0", has_kvm=True),
    "introspection off": Host(has_kvm=True, introspection=False),
    "locks": Host(has_kvm=True, introspection=True, locks=("AppArmor", "SELinux"), vmms=(Vmm(QEMU),)),
    "elsewhere": Host(
        has_kvm=True,
        introspection=True,
        vmms=(Vmm(QEMU, True, "/tmp/introspector", True), Vmm(Process(1, HOSTILE), True, None, False)),
    ),
    "waiting": Host(has_kvm=True, introspection=True, vmms=(Vmm(QEMU, True, str(PATH), True),)),
}

LOCKED_OUT = Site(
    SITE.socket, Rights("drwxrwxrwt", "root", "root"), (Account("qemu", "may not search `/run/policyc`"),)
)

CASES: Mapping[str, Callable[[], Case]] = {
    **{f"nobody, {name}": partial(nobody, host) for name, host in HOSTS.items()},
    "nobody, left behind": lambda: nobody(occupant=Occupant.LEFT_BEHIND),
    "nobody, locked out": lambda: nobody(site=LOCKED_OUT),
    "in use": lambda: unlistened(Place(PATH, Occupant.IN_USE, holder=Process(7, "policyc")), "in use"),
    "in use by somebody": lambda: unlistened(Place(PATH, Occupant.IN_USE), "in use"),
    "a file": lambda: unlistened(Place(PATH, Occupant.OTHER, kind="a file"), "a file", "move it"),
    "no directory": lambda: unlistened(Place(PATH, Occupant.NOTHING), "can't listen", "make the directory first"),
    "out of reach": lambda: unlistened(Place(PATH, None, problem="Permission denied"), "can't listen"),
    "no hello": lambda: came(Chart(ended="the peer was silent for 10 seconds")),
    "another hello": lambda: fault(Stage.CONNECTED),
    "gone after the hello": lambda: gone_after_hello(has_secret=False),
    "gone after the hello, with a secret": lambda: gone_after_hello(has_secret=True),
    "another protocol": lambda: fault(Stage.GREETED),
    "old series": lambda: examined(OldSeries(0)),
    "gone meanwhile": gone_meanwhile,
    "v6": lambda: examined(patient(V6)),
    "v7 on Intel": lambda: examined(patient(V7)),
    "v7 on AMD": lambda: examined(patient(V7, cpu="amd")),
    "v12 on Intel": lambda: examined(patient(V12, override=offering_single_step)),
    "v12 on AMD": lambda: examined(patient(V12, cpu="amd")),
    "another processor": lambda: examined(patient(V12, cpu="other")),
    "merging host": lambda: examined(patient(V12), host=Host(has_kvm=True, ksm=True, huge_pages="always")),
    "denied": lambda: examined(
        patient(V12, without_commands=(ControlEvents, ControlMsr), without_events=(EventKind.PF, EventKind.CR))
    ),
    "vCPUs": lambda: examined(patient(V7, vcpus=5, stopped=(2, 4))),
    "a paused machine": lambda: examined(patient(V12, vcpus=2, override=silence_about(VcpuGetInfo))),
    "unanswered": lambda: examined(patient(V7, override=silence_about(GetMaxGfn))),
    "firmware": lambda: examined(patient(V12, override=firmware), profile=SYSTEM_MAP, is_probed=True),
    "the profile's kernel": lambda: examined(patient(V12), profile=SYSTEM_MAP),
    "another kernel": lambda: examined(
        patient(V12), profile=SYSTEM_MAP.replace(b"81000c60", b"81000c70").replace(b"81000a10", b"81000a40")
    ),
    "a hooked gate": lambda: examined(patient(V12), profile=SYSTEM_MAP.replace(b"81000c60", b"81000c70")),
    "an unusable profile": lambda: examined(
        patient(V12), profile=b"".join(line for line in SYSTEM_MAP.splitlines(True) if b"asm_exc" not in line)
    ),
    "without UUID": without_uuid,
    "reported": lambda: examined(patient(V7), is_probed=True),
    "partly reported": lambda: examined(patient(V7, counters=(BIT_CLEAR,)), is_probed=True),
    "deaf": lambda: examined(patient(V7, is_deaf=True), is_probed=True),
    "deaf, without comparison": lambda: examined(patient(V7, is_deaf=True, counters=(BIT_SET,)), is_probed=True),
    "mute": lambda: examined(patient(V12, is_mute=True), is_probed=True),
    "unproven": lambda: examined(patient(V12, counters=()), is_probed=True),
    "unprotectable": lambda: examined(patient(V12, override=refusing(SetPageAccess)), is_probed=True),
    "unreleased": lambda: examined(patient(V12, override=keeping_protected), is_probed=True),
    "cut short": silent_reads_while_protected,
}
"""Every kind of outcome, by name; each is made anew."""
