"""The examination of a guest: everything that can be asked of a KVMI kernel without changing anything in the guest.

Each question stands alone: what one doesn't bring back is noted, and the next is asked all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from policyc.addresses import Gva, frame_start
from policyc.guest.errors import ProfileError, WalkLimitError
from policyc.guest.linux_kernel import VcpuRegisters, find_kernel
from policyc.guest.profile import Profile
from policyc.kvmi import (
    CheckCommand,
    CheckEvent,
    Command,
    ControlVmEvents,
    Dialect,
    ErrorCode,
    EventKind,
    GetCpuid,
    GetCpuidReply,
    GetInfo,
    GetInfoReply,
    GetMaxGfn,
    GetMaxGfnReply,
    GetRegisters,
    GetRegistersReply,
    Refused,
    ReplyData,
    SetPageWriteBitmap,
    VcpuGetInfo,
    VcpuGetInfoReply,
)
from policyc.runtime.doctor_chart import Chart, Cpu, KernelState, Permission, Stage, VcpuFacts, permission_of
from policyc.runtime.doctor_probe import probe, saying
from policyc.runtime.frame_trials import Watch
from policyc.runtime.needs import PERMISSION_PAUSE, PERMISSION_RETRIES
from policyc.runtime.procedure import Procedure, Resume, Sleep, TimedOutError, ask, ask_all, read_pages

__all__ = ["MAX_LISTED_VCPUS", "examine"]

LSTAR = 0xC000_0082
BRAND_LEAVES = (0x8000_0002, 0x8000_0003, 0x8000_0004)
EXTENDED_LEAVES = 0x8000_0000

NEVER_ALLOWED = frozenset({CheckCommand(SetPageWriteBitmap)})
"""What a kvmi-v7 kernel leaves out of the list of commands that a VMM can allow: it isn't worth waiting for."""

MAX_LISTED_VCPUS = 4096
"""vCPUs that are asked one by one; a kernel that claims more has the rest taken for granted."""


def examine(chart: Chart, dialect: Dialect, profile: Profile | None, watch: Watch | None) -> Procedure[None]:
    """Fill in the chart of a guest whose kernel speaks `dialect`.

    Args:
        chart: has the hello.
        profile: the kernel to look for, if any.
        watch: hears of page faults; given, the write test is made as well.
    """
    yield saying("asking what is allowed")
    yield from _try(chart, "what is allowed", _permissions(chart, dialect))
    yield from _try(chart, "the size of the guest's memory", _memory(chart, dialect))
    yield saying("asking the vCPUs")
    yield from _vcpus(chart)
    if chart.started:
        first = chart.started[0]
        yield from _try(chart, "the guest's CPUID", _cpu(chart, first))
        yield from _try(chart, "the guest's registers", _kernel(chart, first))
    if profile is not None and chart.kernel is not None:
        yield saying("looking for the profile's kernel")
        yield from _try(chart, "the guest's memory", _search(chart, profile, chart.kernel.registers))
    if watch is not None:
        chart.probe = yield from probe(chart, profile, watch)
    chart.stage = Stage.EXAMINED


def _try(chart: Chart, what: str, asking: Procedure[None]) -> Procedure[None]:
    """Ask, and note it where no answer comes."""
    try:
        yield from asking
    except TimedOutError as error:
        chart.silences.append(f"{what}: {error}")
        yield Resume()


def _permissions(chart: Chart, dialect: Dialect) -> Procedure[None]:
    """Ask for every command and event; a no is asked again, since QEMU allows them after it has handed over."""
    commands, events = list(dialect.commands), list(dialect.events)
    checks: list[Command] = [*map(CheckCommand, commands), *map(CheckEvent, events)]
    for _ in range(PERMISSION_RETRIES):
        # With UNHOOK on, a VMM that wants to stop the machine can ask us to leave first.
        results = yield from ask_all([ControlVmEvents(EventKind.UNHOOK, enable=True), *checks])
        found = [permission_of(result) for result in results[1:]]
        chart.commands = dict(zip(commands, found[: len(commands)], strict=True))
        chart.events = dict(zip(events, found[len(commands) :], strict=True))
        denied = [check for check, answer in zip(checks, found, strict=True) if answer is Permission.DENIED]
        if not set(denied) - NEVER_ALLOWED:
            return
        yield Sleep(PERMISSION_PAUSE)


def _memory(chart: Chart, dialect: Dialect) -> Procedure[None]:
    if chart.hello is not None:
        # A VMM that has no memory map to show sends 0.
        chart.memory_end = chart.hello.max_gpa or None
    if GetMaxGfn in dialect.commands and chart.may(GetMaxGfn):
        answer = yield from ask(GetMaxGfn())
        if isinstance(answer, GetMaxGfnReply):
            chart.memory_end = frame_start(answer.gfn)


def _vcpus(chart: Chart) -> Procedure[None]:
    """Which vCPUs there are and which have been started; one that the VMM doesn't run answers nothing at all."""
    question = VcpuGetInfo if chart.may(VcpuGetInfo) else GetRegisters
    try:
        info = yield from ask(GetInfo())
        count = min(info.vcpu_count, MAX_LISTED_VCPUS) if isinstance(info, GetInfoReply) else 0
        chart.vcpus = tuple(VcpuFacts(index, None) for index in range(count))
        results = yield from ask_all(question(index) for index in range(count))
        chart.vcpus = tuple(_vcpu(index, result) for index, result in enumerate(results))
    except TimedOutError as error:
        chart.are_vcpus_silent = bool(chart.vcpus)
        if not chart.vcpus:
            chart.silences.append(f"the number of vCPUs: {error}")


def _vcpu(index: int, result: ReplyData | Refused) -> VcpuFacts:
    if isinstance(result, Refused):
        # A question that the VMM forbids is refused before the vCPU is looked at.
        return VcpuFacts(index, False if result.errno == ErrorCode.EAGAIN else None)
    return VcpuFacts(index, True, result.tsc_speed if isinstance(result, VcpuGetInfoReply) else 0)


def _cpu(chart: Chart, vcpu: int) -> Procedure[None]:
    leaves = (0, 1, EXTENDED_LEAVES)
    basic, features, extended = yield from ask_all(GetCpuid(vcpu, leaf) for leaf in leaves)
    if not isinstance(basic, GetCpuidReply) or not isinstance(features, GetCpuidReply):
        return
    brand = None
    if isinstance(extended, GetCpuidReply) and extended.eax >= BRAND_LEAVES[-1]:
        parts = yield from ask_all(GetCpuid(vcpu, leaf) for leaf in BRAND_LEAVES)
        found = [part for part in parts if isinstance(part, GetCpuidReply)]
        brand = _brand(found) if len(found) == len(BRAND_LEAVES) else None
    vendor = struct.pack("<III", basic.ebx, basic.edx, basic.ecx).decode("ascii", "backslashreplace")
    chart.cpu = Cpu(vendor, *_family(features.eax), brand or None)


def _family(signature: int) -> tuple[int, int, int]:
    """Family, model and stepping of leaf 1's EAX, the extended fields added as both vendors have it."""
    family, model, stepping = signature >> 8 & 0xF, signature >> 4 & 0xF, signature & 0xF
    if family in (0x6, 0xF):
        model += (signature >> 16 & 0xF) << 4
    if family == 0xF:
        family += signature >> 20 & 0xFF
    return family, model, stepping


def _brand(leaves: Sequence[GetCpuidReply]) -> str:
    raw = b"".join(struct.pack("<IIII", leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) for leaf in leaves)
    return " ".join(raw.partition(b"\0")[0].decode("ascii", "backslashreplace").split())


def _kernel(chart: Chart, vcpu: int) -> Procedure[None]:
    answer = yield from ask(GetRegisters(vcpu, msrs=(LSTAR,)))
    if not isinstance(answer, GetRegistersReply):
        return
    sregs = answer.sregs
    registers = VcpuRegisters(
        cr0=sregs.cr0,
        cr3=sregs.cr3,
        cr4=sregs.cr4,
        efer=sregs.efer,
        idt_base=Gva(sregs.idt.base),
        idt_limit=sregs.idt.limit,
        lstar=answer.msrs[0].data,
    )
    chart.kernel = KernelState(answer.mode, registers)


def _search(chart: Chart, profile: Profile, registers: VcpuRegisters) -> Procedure[None]:
    try:
        chart.search = yield from read_pages(find_kernel(profile, registers))
    except ProfileError as error:
        chart.search_problem = error.message
    except WalkLimitError as error:
        chart.search_problem = str(error)
