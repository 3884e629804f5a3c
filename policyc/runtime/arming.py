"""From a connection to an armed guest, and back: the two long conversations with the kernel.

The order matters and is the same in every dialect: UNHOOK first, so that the VMM can ask us to leave; the kernel found
and everything translated while the guest runs; then every vCPU stopped, the walk compared again, events switched on,
and only then pages restricted, since a vCPU without page-fault events passes restricted pages silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policyc.addresses import PAGE_SIZE, frame_start
from policyc.guest.errors import ProfileError, WalkLimitError
from policyc.guest.requests import page_of
from policyc.kvmi import (
    Dialect,
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
from policyc.plan.model import Plan
from policyc.runtime.bind import BindError, Binding, Location, bind
from policyc.runtime.bound import BoundPlan
from policyc.runtime.locate import ArmingOptions, Refusal, locate, location_of
from policyc.runtime.needs import Needs, check_permissions, event_commands, needs_of
from policyc.runtime.procedure import Pause, Procedure, Resume, TimedOutError, ask, ask_all, read_pages

__all__ = ["Armed", "arm", "disarm", "guard_vcpu"]

MAX_REWALKS = 3


@dataclass(frozen=True, slots=True)
class Armed:
    """The guest is guarded."""

    bound: BoundPlan
    vcpus: int


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
    needs = needs_of(plan)
    denied = yield from check_permissions(dialect, needs)
    if denied:
        return Refusal("the VMM doesn't allow what the plan needs", denied)
    info = yield from ask(GetInfo())
    if not isinstance(info, GetInfoReply) or info.vcpu_count < 1:
        return Refusal("the kernel doesn't say how many vCPUs the guest has")
    found = yield from locate(plan, options)
    if isinstance(found, Refusal):
        return found
    vcpus = frozenset(range(info.vcpu_count))
    location, started = yield from location_of(found, vcpus)
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
    results = yield from ask_all(event_commands(needs_of(plan), vcpu))
    return tuple(str(result) for result in results if isinstance(result, Refused))


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


def _restrict(bound: BoundPlan, vcpus: frozenset[int], needs: Needs) -> Procedure[Refusal | None]:
    """Events on every vCPU, then rights; everything is undone if the kernel refuses any of it."""
    for vcpu in sorted(vcpus):
        results = yield from ask_all(event_commands(needs, vcpu))
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


def _undo_events(vcpus: frozenset[int], needs: Needs) -> Procedure[None]:
    yield from ask_all(command for vcpu in sorted(vcpus) for command in event_commands(needs, vcpu, enable=False))


def _page_commands(bound: BoundPlan, *, lift: bool) -> Iterator[SetPageAccess]:
    return set_pages(
        PageRun(first, count, PageAccess.RWX if lift else PageAccess(int(allowed)))
        for first, count, allowed in bound.runs()
    )
