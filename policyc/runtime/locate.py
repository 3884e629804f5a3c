"""Where everything lies in a running guest: its kernel, once it has booted, and its descriptor tables."""

from __future__ import annotations

from dataclasses import dataclass

from policyc.addresses import ADDRESS_SPACE_END, Gva, GvaRange, Range
from policyc.guest.landmarks import profile_of_landmarks
from policyc.guest.linux_boot import BootState
from policyc.guest.linux_kernel import KernelFound, KernelNotReady, VcpuRegisters, WrongKernel, find_kernel
from policyc.guest.profile import Identity, Profile
from policyc.kvmi import (
    GetRegisters,
    GetRegistersReply,
    SystemRegisters,
)
from policyc.plan.model import Plan
from policyc.runtime.bind import Location
from policyc.runtime.procedure import Emit, Procedure, Sleep, ask, read_pages, time_now
from policyc.runtime.records import StateRecord

__all__ = ["ArmingOptions", "Refusal", "locate", "location_of", "profile_of"]

LSTAR = 0xC000_0082


@dataclass(frozen=True, slots=True)
class ArmingOptions:
    """What an operator decides about arming.

    Attributes:
        boot_timeout: seconds to wait for the kernel to come up.
        poll: seconds between two looks at a guest that isn't ready.
        skip_unmapped: guard what is mapped of a place instead of refusing the plan.
        verify: seconds between two looks at guarded bytes that nobody may write; 0 for none.
        self_test: whether to take evidence, once armed, that writes to protected frames are reported.
        stop_limit: seconds that vCPUs may stand still for arming; over it the guest runs on and arming is tried again.
    """

    boot_timeout: float = 120.0
    poll: float = 0.25
    skip_unmapped: bool = False
    stop_limit: float = 0.1
    verify: float = 30.0
    self_test: bool = True


@dataclass(frozen=True, slots=True)
class Refusal:
    """The guest can't be guarded by this plan: one sentence, and details one a line.

    `transient` says that the same guest may be guarded another time: it didn't answer, or hadn't booted.
    """

    fact: str
    details: tuple[str, ...] = ()
    transient: bool = False


def profile_of(plan: Plan) -> Profile:
    """What the plan knows of its guest's kernel.

    Raises:
        ProfileError: its landmarks aren't those of a kernel.
    """
    facts = plan.guest
    identity = Identity(facts.build_id, facts.banner)
    return profile_of_landmarks(facts.landmarks, identity, os=facts.os, arch=facts.arch, digest=facts.profile_digest)


def locate(plan: Plan, options: ArmingOptions) -> Procedure[KernelFound | Refusal]:
    """Find the kernel, waiting for it to boot."""
    profile = profile_of(plan)
    deadline = (yield from time_now()) + options.boot_timeout
    said, unsettled = "", False
    while True:
        registers = yield from _registers_of(0)
        if registers is None:
            outcome: KernelFound | KernelNotReady | WrongKernel = KernelNotReady("vCPU 0 hasn't been started")
        else:
            sregs, lstar = registers
            outcome = yield from read_pages(find_kernel(profile, _search_registers(sregs, lstar)))
        if isinstance(outcome, WrongKernel):
            return Refusal(outcome.reason, tuple(str(one) for one in outcome.disagreements))
        if isinstance(outcome, KernelFound):
            settled = unsettled and outcome.boot is BootState.UNSETTLED
            if settled or outcome.boot in (BootState.RUNNING, BootState.UNKNOWN):
                return outcome
            unsettled = outcome.boot is BootState.UNSETTLED
            reason = f"the kernel is {outcome.boot.value}"
        else:
            reason = outcome.reason
        if (yield from time_now()) >= deadline:
            return Refusal(f"no kernel after {options.boot_timeout:g} seconds: {reason}", transient=True)
        if reason != said:
            said = reason
            yield Emit(StateRecord("WAITING_FOR_KERNEL", reason))
        yield Sleep(1.0 if unsettled else options.poll)


def _registers_of(vcpu: int) -> Procedure[tuple[SystemRegisters, int] | None]:
    result = yield from ask(GetRegisters(vcpu, msrs=(LSTAR,)))
    if not isinstance(result, GetRegistersReply):
        return None
    return result.sregs, result.msrs[0].data


def _search_registers(sregs: SystemRegisters, lstar: int) -> VcpuRegisters:
    return VcpuRegisters(
        cr0=sregs.cr0,
        cr3=sregs.cr3,
        cr4=sregs.cr4,
        efer=sregs.efer,
        idt_base=Gva(sregs.idt.base),
        idt_limit=sregs.idt.limit,
        lstar=lstar,
    )


def location_of(found: KernelFound, vcpus: frozenset[int]) -> Procedure[tuple[Location, frozenset[int]]]:
    """Where extents count from, and the vCPUs that have been started, whose registers say it."""
    idts: set[GvaRange] = set()
    gdts: set[GvaRange] = set()
    started: set[int] = set()
    for vcpu in sorted(vcpus):
        registers = yield from _registers_of(vcpu)
        if registers is not None:
            started.add(vcpu)
            sregs, _ = registers
            idts.add(_table_range(sregs.idt.base, sregs.idt.limit))
            gdts.add(_table_range(sregs.gdt.base, sregs.gdt.limit))
    location = Location(found.slide, found.space, tuple(sorted(idts)), tuple(sorted(gdts)))
    return location, frozenset(started)


def _table_range(base: int, limit: int) -> GvaRange:
    """The bytes of a descriptor table; one that would pass the end of the address space is cut there."""
    return Range(Gva(base), Gva(min(base + limit + 1, ADDRESS_SPACE_END)))
