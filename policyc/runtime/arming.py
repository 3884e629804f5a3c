"""From a connection to an armed guest, and back: the two long conversations with the kernel.

The order matters and is the same in every dialect: UNHOOK first, so that the VMM can ask us to leave; the kernel found
and everything translated while the guest runs; then every vCPU stopped, the walk compared again, events switched on,
and only then pages restricted, since a vCPU without page-fault events passes restricted pages silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policyc.addresses import PAGE_SIZE, Gva, GvaRange, Range, frame_start
from policyc.catalog import EVENTS, LEGALITY, EffectKind, column_of_access
from policyc.guest.errors import ProfileError, WalkLimitError
from policyc.guest.landmarks import profile_of_landmarks
from policyc.guest.linux_boot import BootState
from policyc.guest.linux_kernel import KernelFound, KernelNotReady, VcpuRegisters, WrongKernel, find_kernel
from policyc.guest.profile import Identity
from policyc.guest.requests import page_of
from policyc.kvmi.dialects import Dialect
from policyc.kvmi.messages import (
    CheckCommand,
    CheckEvent,
    Command,
    ControlCr,
    ControlEvents,
    ControlMsr,
    ControlVmEvents,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    GetRegistersReply,
    InjectException,
    PauseVcpu,
    ReadPhysical,
    Refused,
    SetPageAccess,
    SetRegisters,
    TranslateGva,
)
from policyc.kvmi.pages import PageRun, set_pages
from policyc.kvmi.registers import SystemRegisters
from policyc.kvmi.vocabulary import ErrorCode, EventKind, PageAccess
from policyc.plan.model import EventKey, Plan
from policyc.runtime.bind import BindError, Binding, Location, bind
from policyc.runtime.bound import BoundPlan
from policyc.runtime.mechanisms import MECHANISMS
from policyc.runtime.procedure import Emit, Pause, Procedure, Resume, Sleep, TimedOutError, ask, ask_all, read_pages
from policyc.runtime.records import StateRecord

__all__ = ["Armed", "ArmingOptions", "Refusal", "arm", "disarm", "guard_vcpu", "unsupported_rules"]

LSTAR = 0xC000_0082
MAX_REWALKS = 3
PERMISSION_RETRIES = 10
PERMISSION_PAUSE = 0.05
"""QEMU allows commands one by one after it has handed the socket over, so an early -EPERM may be too early."""

NEEDED_COMMANDS: tuple[type[Command], ...] = (
    ControlEvents,
    GetInfo,
    GetRegisters,
    InjectException,
    PauseVcpu,
    ReadPhysical,
    SetPageAccess,
    SetRegisters,
    TranslateGva,
)


@dataclass(frozen=True, slots=True)
class ArmingOptions:
    """What an operator decides about arming.

    Attributes:
        boot_timeout: seconds to wait for the kernel to come up.
        poll: seconds between two looks at a guest that isn't ready.
        skip_unmapped: guard what is mapped of a place instead of refusing the plan.
    """

    boot_timeout: float = 120.0
    poll: float = 0.25
    skip_unmapped: bool = False


@dataclass(frozen=True, slots=True)
class Armed:
    """The guest is guarded."""

    bound: BoundPlan
    vcpus: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The guest can't be guarded by this plan: one sentence, and details one a line."""

    fact: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Needs:
    """The events a plan needs switched on."""

    kinds: tuple[EventKind, ...]
    crs: tuple[int, ...]
    msrs: tuple[int, ...]


def unsupported_rules(plan: Plan) -> list[str]:
    """The rules whose mechanism this version can't carry out, in words."""
    found = []
    for rule in plan.rules:
        columns = {EVENTS[rule.event.word].column} if rule.event is not None else column_of_access(rule.access)
        for column in columns:
            if LEGALITY[rule.effect.kind][column] not in MECHANISMS and rule.effect.kind is not EffectKind.ALLOW:
                found.append(f"`{rule.id}`: {rule.effect.kind.name.lower()} on {column.value}")
            elif rule.effect.retries:
                found.append(f"`{rule.id}`: `retry`")
    return found


def arm(plan: Plan, dialect: Dialect, options: ArmingOptions) -> Procedure[Armed | Refusal]:
    """Arm the guest at the other end; nothing is left restricted after a refusal."""
    try:
        return (yield from _arm(plan, dialect, options))
    except (BindError, WalkLimitError) as error:
        refusal = Refusal(str(error))
    except ProfileError as error:
        refusal = Refusal(error.message)
    except TimedOutError as error:
        refusal = Refusal(f"the guest or its kernel doesn't answer: {error}")
    yield Resume()
    return refusal


def _arm(plan: Plan, dialect: Dialect, options: ArmingOptions) -> Procedure[Armed | Refusal]:
    needs = _needs(plan)
    denied = yield from _check_permissions(dialect, needs)
    if denied:
        return Refusal("the VMM doesn't allow what the plan needs", denied)
    info = yield from ask(GetInfo())
    if not isinstance(info, GetInfoReply) or info.vcpu_count < 1:
        return Refusal("the kernel doesn't say how many vCPUs the guest has")
    found = yield from _locate(plan, options)
    if isinstance(found, Refusal):
        return found
    vcpus = frozenset(range(info.vcpu_count))
    location, started = yield from _location(found, vcpus)
    binding = yield from read_pages(bind(plan, location, skip_unmapped=options.skip_unmapped))
    # A vCPU that isn't started sends its PAUSE event before its first instruction: it is given its events there.
    yield from ask_all(PauseVcpu(vcpu, wait=True) for vcpu in sorted(vcpus))
    yield Pause(started)
    rewalked = yield from _walk_again(plan, location, binding, options)
    if isinstance(rewalked, Refusal):
        yield Resume()
        return rewalked
    refusal = yield from _restrict(rewalked.plan, started, needs)
    yield Resume()
    return refusal or Armed(rewalked.plan, info.vcpu_count)


def disarm(bound: BoundPlan) -> Procedure[tuple[str, ...]]:
    """Lift every restriction; returns what the kernel refused, in words."""
    results = yield from ask_all(_page_commands(bound, lift=True))
    return tuple(str(result) for result in results if isinstance(result, Refused))


def guard_vcpu(plan: Plan, vcpu: int) -> Procedure[tuple[str, ...]]:
    """Switch the plan's events on for one more vCPU; returns what the kernel refused, in words."""
    results = yield from ask_all(_event_commands(_needs(plan), vcpu))
    return tuple(str(result) for result in results if isinstance(result, Refused))


# --- what the plan needs ---


def _needs(plan: Plan) -> _Needs:
    keys = {rule.event for rule in plan.rules if rule.event is not None}
    kinds = {_kind_of(key) for key in keys} - {EventKind.UNHOOK, EventKind.CREATE_VCPU}
    if any(rule.access for rule in plan.rules):
        kinds.add(EventKind.PF)
    return _Needs(
        kinds=tuple(sorted(kinds, key=lambda kind: kind.value)),
        crs=tuple(sorted({register for key in keys if (register := EVENTS[key.word].register) is not None})),
        msrs=tuple(sorted({key.numbers[0] for key in keys if key.word == "msr"})),
    )


def _kind_of(key: EventKey) -> EventKind:
    return EventKind[EVENTS[key.word].kvmi]


def _check_permissions(dialect: Dialect, needs: _Needs) -> Procedure[tuple[str, ...]]:
    """Ask for UNHOOK, then whether everything else is allowed; what isn't, in words."""
    needed = [*NEEDED_COMMANDS, *([ControlCr] if needs.crs else []), *([ControlMsr] if needs.msrs else [])]
    checks: list[Command] = [CheckCommand(command) for command in needed]
    checks += [CheckEvent(kind) for kind in needs.kinds]
    lacking: list[str] = []
    for attempt in range(PERMISSION_RETRIES):
        results = yield from ask_all([ControlVmEvents(EventKind.UNHOOK, enable=True), *checks])
        refused = [result for result in results if isinstance(result, Refused)]
        if not refused:
            break
        lacking = [str(result) for result in refused]
        if any(result.errno != ErrorCode.EPERM for result in refused) or attempt == PERMISSION_RETRIES - 1:
            return tuple(lacking)
        yield Sleep(PERMISSION_PAUSE)
    if EventKind.CREATE_VCPU in dialect.events:
        yield from ask(ControlVmEvents(EventKind.CREATE_VCPU, enable=True))
    return ()


# --- where everything lies ---


def _locate(plan: Plan, options: ArmingOptions) -> Procedure[KernelFound | Refusal]:
    """Find the kernel, waiting for it to boot."""
    facts = plan.guest
    profile = profile_of_landmarks(
        facts.landmarks,
        Identity(facts.build_id, facts.banner),
        os=facts.os,
        arch=facts.arch,
        digest=facts.profile_digest,
    )
    waited, said, unsettled = 0.0, "", False
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
            if outcome.boot in (BootState.RUNNING, BootState.UNKNOWN) or unsettled:
                return outcome
            unsettled = outcome.boot is BootState.UNSETTLED
            reason = f"the kernel is {outcome.boot.value}"
        else:
            reason = outcome.reason
        if waited >= options.boot_timeout:
            return Refusal(f"no kernel after {options.boot_timeout:g} seconds: {reason}")
        if reason != said:
            said = reason
            yield Emit(StateRecord("WAITING_FOR_KERNEL", reason))
        pause = 1.0 if unsettled else options.poll
        yield Sleep(pause)
        waited += pause


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


def _location(found: KernelFound, vcpus: frozenset[int]) -> Procedure[tuple[Location, frozenset[int]]]:
    """Where extents count from, and the vCPUs that have been started, whose registers say it."""
    idts: set[GvaRange] = set()
    gdts: set[GvaRange] = set()
    started: set[int] = set()
    for vcpu in sorted(vcpus):
        registers = yield from _registers_of(vcpu)
        if registers is not None:
            started.add(vcpu)
            sregs, _ = registers
            idts.update(_table_range(sregs.idt.base, sregs.idt.limit))
            gdts.update(_table_range(sregs.gdt.base, sregs.gdt.limit))
    location = Location(found.slide, found.space, tuple(sorted(idts)), tuple(sorted(gdts)))
    return location, frozenset(started)


def _table_range(base: int, limit: int) -> Iterator[GvaRange]:
    if base and base + limit + 1 <= 1 << 64:
        yield Range(Gva(base), Gva(base + limit + 1))


def _walk_again(
    plan: Plan, location: Location, binding: Binding, options: ArmingOptions
) -> Procedure[Binding | Refusal]:
    """With every vCPU stopped, make sure that what was translated while they ran still holds."""
    for _ in range(MAX_REWALKS):
        changed = yield from _changed(binding)
        if not changed:
            return binding
        binding = yield from read_pages(bind(plan, location, skip_unmapped=options.skip_unmapped))
    return Refusal(f"the guest's page tables changed {MAX_REWALKS} times while they were read")


def _changed(binding: Binding) -> Procedure[bool]:
    tables = binding.walk.tables()
    results = yield from ask_all(ReadPhysical(frame_start(gfn), PAGE_SIZE) for gfn in tables.gfns)
    pages = {gfn: getattr(result, "data", None) for gfn, result in zip(tables.gfns, results, strict=True)}
    return bool(binding.walk.changed({gfn: page_of(pages, gfn) for gfn in tables.gfns}))


# --- switching it on ---


def _restrict(bound: BoundPlan, vcpus: frozenset[int], needs: _Needs) -> Procedure[Refusal | None]:
    """Events on every vCPU, then rights; everything is undone if the kernel refuses any of it."""
    for vcpu in sorted(vcpus):
        results = yield from ask_all(_event_commands(needs, vcpu))
        refused = [result for result in results if isinstance(result, Refused)]
        if refused:
            yield from _undo_events(vcpus, needs)
            return Refusal(f"vCPU {vcpu} can't be given the plan's events", tuple(map(str, refused)))
    results = yield from ask_all(_page_commands(bound, lift=False))
    refused = [result for result in results if isinstance(result, Refused)]
    if refused:
        yield from ask_all(_page_commands(bound, lift=True))
        yield from _undo_events(vcpus, needs)
        return Refusal("the kernel refuses the plan's page rights", tuple(map(str, refused)))
    return None


def _event_commands(needs: _Needs, vcpu: int, *, enable: bool = True) -> Sequence[Command]:
    return [
        *(ControlEvents(vcpu, kind, enable) for kind in needs.kinds),
        *(ControlCr(vcpu, cr, enable) for cr in needs.crs),
        *(ControlMsr(vcpu, msr, enable) for msr in needs.msrs),
    ]


def _undo_events(vcpus: frozenset[int], needs: _Needs) -> Procedure[None]:
    yield from ask_all(command for vcpu in sorted(vcpus) for command in _event_commands(needs, vcpu, enable=False))


def _page_commands(bound: BoundPlan, *, lift: bool) -> Iterator[SetPageAccess]:
    return set_pages(
        PageRun(first, count, PageAccess.RWX if lift else PageAccess(int(allowed)))
        for first, count, allowed in bound.runs()
    )
