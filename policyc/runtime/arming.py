"""From a connection to an armed guest, and back: the two long conversations with the kernel.

The order matters and is the same in every dialect: UNHOOK first, so that the VMM can ask us to leave; the kernel found
and everything translated while the guest runs; then every vCPU stopped, the walk compared again, events switched on,
and only then pages restricted, since a vCPU without page-fault events passes restricted pages silently.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from policyc.addresses import PAGE_SIZE, frame_start
from policyc.catalog import HostLimit
from policyc.guest.errors import ProfileError, WalkLimitError
from policyc.guest.linux_kernel import KernelFound
from policyc.guest.requests import page_of
from policyc.kvmi import (
    ControlEvents,
    Dialect,
    EventKind,
    GetInfo,
    GetInfoReply,
    PageAccess,
    PageRun,
    PauseVcpu,
    ReadPhysical,
    Refused,
    SetPageAccess,
    set_pages,
)
from policyc.kvmi.tool import MAX_VCPUS
from policyc.plan.model import Plan
from policyc.runtime.bind import BindError, Binding, Location, bind
from policyc.runtime.bound import BoundPlan
from policyc.runtime.locate import ArmingOptions, Refusal, locate, location_of
from policyc.runtime.msr_values import read_msrs
from policyc.runtime.needs import Needs, announce_vcpus, check_permissions, event_commands, needs_of
from policyc.runtime.procedure import (
    Pause,
    Procedure,
    Resume,
    Sleep,
    TimedOutError,
    ask,
    ask_all,
    held_vcpus,
    read_pages,
    time_now,
)
from policyc.runtime.processor import limits_of, maker_of, needs_maker

__all__ = ["Armed", "arm", "disarm", "guard_vcpu"]

MAX_REWALKS = 3
MAX_STOPS = 3
"""How often vCPUs are stopped for arming; the last stop may take longer than the limit."""

EXCLUSIVE = frozenset({EventKind.BREAKPOINT})
"""Events that a v7 kernel refuses to switch to what they are."""

STOP_PAUSE = 0.05
"""Seconds that the guest runs between two of them."""


@dataclass(frozen=True, slots=True)
class Armed:
    """The guest is guarded.

    Attributes:
        binding: the plan in this guest's memory, and what that rests on.
        found: the kernel that runs there.
        guarded: the vCPUs that have been given the plan's events.
        overlong_stop: its vCPUs stood still for longer than they should have.
        announced: the kernel will announce vCPUs that are plugged in.
        limits: what the plan needs and this host doesn't report.
        msrs: what (vCPU, MSR) held while all stood still, where the host doesn't report writes to MSRs.
    """

    binding: Binding
    found: KernelFound
    vcpus: int
    guarded: frozenset[int]
    overlong_stop: bool = False
    announced: bool = False
    limits: tuple[HostLimit, ...] = ()
    msrs: Mapping[tuple[int, int], int] = field(default_factory=dict)


def arm(plan: Plan, dialect: Dialect, options: ArmingOptions, *, steps: bool) -> Procedure[Armed | Refusal]:
    """Arm the guest at the other end; nothing is left restricted after a refusal.

    Args:
        steps: whether the host says that it can single-step.
    """
    try:
        return (yield from _arm(plan, dialect, options, steps=steps))
    except (BindError, WalkLimitError) as error:
        refusal = Refusal(str(error))
    except ProfileError as error:
        refusal = Refusal(error.message)
    except TimedOutError as error:
        refusal = Refusal(f"the guest or its kernel doesn't answer: {error}", transient=True)
    yield Resume()
    return refusal


def _arm(plan: Plan, dialect: Dialect, options: ArmingOptions, *, steps: bool) -> Procedure[Armed | Refusal]:
    if plan.target not in ("any", dialect.name):
        return Refusal(f"the plan was compiled for {plan.target}, and this kernel speaks {dialect.name}")
    needs = needs_of(plan)
    denied = yield from check_permissions(dialect, needs, steps=steps)
    if denied:
        return Refusal("the VMM doesn't allow what the plan needs", denied)
    maker = (yield from maker_of(0)) if needs_maker(plan, dialect, needs) else None
    if plan.cpu != maker:
        plan = replace(plan, cpu="any")
    found = yield from locate(plan, options)
    if isinstance(found, Refusal):
        return found
    # Not earlier: a vCPU that comes into being from now on is held until the guest is armed, and a kernel that is still
    # booting waits for its processors.
    announced = yield from announce_vcpus(dialect)
    count = yield from vcpu_count()
    if count is None:
        return Refusal("the kernel doesn't say how many vCPUs the guest has")
    vcpus = frozenset(range(count))
    location, started = yield from location_of(found, vcpus)
    binding = yield from _bind(plan, location, options)
    limits = limits_of(dialect, maker, needs)
    for attempt in range(MAX_STOPS):
        last = attempt == MAX_STOPS - 1
        outcome = yield from _stop_and_restrict(plan, found, binding, vcpus, started, options, limits, last=last)
        yield Resume()
        if isinstance(outcome, Armed):
            return replace(outcome, announced=announced)
        if outcome is not None:
            return outcome
        yield Sleep(STOP_PAUSE)
    raise AssertionError("the last attempt has an outcome")


def _stop_and_restrict(
    plan: Plan,
    found: KernelFound,
    binding: Binding,
    vcpus: frozenset[int],
    started: frozenset[int],
    options: ArmingOptions,
    limits: tuple[HostLimit, ...],
    *,
    last: bool,
) -> Procedure[Armed | Refusal | None]:
    """With every vCPU stopped, compare what was read while they ran, and arm.

    None where the stop took longer than it may before anything was restricted, unless this is the last attempt.
    """
    # A vCPU that isn't started sends its PAUSE event before its first instruction: it is given its events there.
    results = yield from ask_all(PauseVcpu(vcpu, wait=True) for vcpu in sorted(vcpus))
    refused = tuple(str(result) for result in results if isinstance(result, Refused))
    if refused:
        return Refusal("the kernel doesn't stop every vCPU", refused, transient=True)
    yield Pause(started)
    stopped = yield from time_now()
    current = yield from _read_again(plan, found, binding, vcpus, options)
    if isinstance(current, Refusal):
        return current
    late = (yield from time_now()) - stopped > options.stop_limit
    if late and not last:
        return None
    needs, guarded = needs_of(plan), set[int]()
    # A change is seen by comparison alone there, so what it is compared with is read before anybody goes on.
    seen = (yield from read_msrs(sorted((yield from held_vcpus())), needs.msrs)) if limits else []
    msrs = {(vcpu, msr): value for vcpu, msr, value in seen if isinstance(value, int)}
    refusal = yield from _restrict(current.plan, needs, guarded)
    return refusal or Armed(
        current, found, len(vcpus), frozenset(guarded), overlong_stop=late, limits=limits, msrs=msrs
    )


def vcpu_count() -> Procedure[int | None]:
    """How many vCPUs the guest has; None where the kernel says none, or more than any guest has."""
    info = yield from ask(GetInfo())
    return info.vcpu_count if isinstance(info, GetInfoReply) and 0 < info.vcpu_count <= MAX_VCPUS else None


def disarm(bound: BoundPlan) -> Procedure[tuple[str, ...]]:
    """Lift every restriction; returns what the kernel refused, in words."""
    results = yield from ask_all(_page_commands(bound, lift=True))
    return tuple(str(result) for result in results if isinstance(result, Refused))


def guard_vcpu(plan: Plan, vcpu: int) -> Procedure[tuple[str, ...]]:
    """Switch the plan's events on for one more vCPU, which stands still; returns what the kernel refused, in words.

    It may have them already: v7 sends CREATE_VCPU and then the PAUSE event that was asked for earlier. Its BREAKPOINT
    can't be switched on twice, so all that can't be is switched off first, and whether it was on doesn't matter.
    """
    needs = needs_of(plan)
    yield from ask_all(ControlEvents(vcpu, kind, False) for kind in needs.kinds if kind in EXCLUSIVE)
    results = yield from ask_all(event_commands(needs, vcpu))
    return tuple(str(result) for result in results if isinstance(result, Refused))


def _bind(plan: Plan, location: Location, options: ArmingOptions) -> Procedure[Binding]:
    return (yield from read_pages(bind(plan, location, cpu=plan.cpu, skip_unmapped=options.skip_unmapped)))


def _read_again(
    plan: Plan, found: KernelFound, binding: Binding, vcpus: frozenset[int], options: ArmingOptions
) -> Procedure[Binding | Refusal]:
    """Make sure that what was translated while the vCPUs ran still holds: page tables, and where IDTs and GDTs lie."""
    location, started = yield from location_of(found, vcpus)
    # One that was started just before it was asked to pause runs on until it does; a later one never begins to.
    yield Pause(started)
    for _ in range(MAX_REWALKS):
        if location == binding.location and not (yield from _changed(binding)):
            return binding
        binding = yield from _bind(plan, location, options)
    if not (yield from _changed(binding)):
        return binding
    return Refusal(f"the guest's page tables changed {MAX_REWALKS} times while they were read", transient=True)


def _changed(binding: Binding) -> Procedure[bool]:
    tables = binding.walk.tables()
    results = yield from ask_all(ReadPhysical(frame_start(gfn), PAGE_SIZE) for gfn in tables.gfns)
    pages = {gfn: getattr(result, "data", None) for gfn, result in zip(tables.gfns, results, strict=True)}
    return bool(binding.walk.changed({gfn: page_of(pages, gfn) for gfn in tables.gfns}))


def _restrict(bound: BoundPlan, needs: Needs, guarded: set[int]) -> Procedure[Refusal | None]:
    """Events on every vCPU that stands still, then rights; everything is undone if the kernel refuses any of it.

    A vCPU may come to its first instruction meanwhile. It is held there, and given its events before anybody goes on.

    Args:
        guarded: takes up the vCPUs that have been given their events.
    """
    refused = yield from _guard_held(needs, guarded)
    if not refused:
        results = yield from ask_all(_page_commands(bound, lift=False))
        refused = tuple(str(result) for result in results if isinstance(result, Refused))
        if refused:
            yield from ask_all(_page_commands(bound, lift=True))
    if not refused:
        refused = yield from _guard_held(needs, guarded)
        if refused:
            yield from ask_all(_page_commands(bound, lift=True))
    if refused:
        yield from _undo_events(guarded, needs)
        return Refusal("the kernel refuses what the plan needs", refused)
    return None


def _guard_held(needs: Needs, guarded: set[int]) -> Procedure[tuple[str, ...]]:
    """Switch events on for every vCPU that is held and not among `guarded` yet; what was refused, in words."""
    while new := sorted((yield from held_vcpus()) - guarded):
        guarded.update(new)
        results = yield from ask_all(command for vcpu in new for command in event_commands(needs, vcpu))
        refused = tuple(str(result) for result in results if isinstance(result, Refused))
        if refused:
            return refused
    return ()


def _undo_events(vcpus: Collection[int], needs: Needs) -> Procedure[None]:
    yield from ask_all(command for vcpu in sorted(vcpus) for command in event_commands(needs, vcpu, enable=False))


def _page_commands(bound: BoundPlan, *, lift: bool) -> Iterator[SetPageAccess]:
    return set_pages(
        PageRun(first, count, PageAccess.RWX if lift else PageAccess(int(allowed)))
        for first, count, allowed in bound.runs()
    )
