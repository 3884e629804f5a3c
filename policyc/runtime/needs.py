"""What a plan needs of a kernel: the commands and events that must be allowed, and how they are switched on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policyc.catalog import EVENTS, LEGALITY, RETRYABLE, Mechanism, column_of_access
from policyc.kvmi import (
    CheckCommand,
    CheckEvent,
    Command,
    ControlCr,
    ControlEvents,
    ControlMsr,
    ControlSinglestep,
    ControlVmEvents,
    Dialect,
    ErrorCode,
    EventKind,
    GetInfo,
    GetRegisters,
    InjectException,
    PauseVcpu,
    ReadPhysical,
    Refused,
    SetPageAccess,
    SetRegisters,
    TranslateGva,
)
from policyc.plan.model import EventKey, Plan
from policyc.runtime.mechanisms import MECHANISMS
from policyc.runtime.procedure import Procedure, Sleep, ask, ask_all

__all__ = ["Needs", "announce_vcpus", "check_permissions", "event_commands", "needs_of", "unsupported_rules"]

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

_CARRIED_OUT: frozenset[Mechanism | None] = frozenset({*MECHANISMS, Mechanism.NO_REPLY})
"""What has no reply is recorded, and nothing else is to be done."""


@dataclass(frozen=True, slots=True)
class Needs:
    """The events a plan needs switched on."""

    kinds: tuple[EventKind, ...]
    crs: tuple[int, ...]
    msrs: tuple[int, ...]


def unsupported_rules(plan: Plan) -> list[str]:
    """The rules and watches that this version can't carry out, in words.

    The compiler lets no effect through that its event can't carry, but a plan file may come from anywhere.
    """
    found = [f"`{watch.id}`: `watch`" for watch in plan.watches]
    for rule in plan.rules:
        columns = {EVENTS[rule.event.word].column} if rule.event is not None else column_of_access(rule.access)
        for column in sorted(columns, key=lambda column: column.value):
            if LEGALITY[rule.effect.kind].get(column) not in _CARRIED_OUT:
                found.append(f"`{rule.id}`: {rule.effect.kind.name.lower()} on {column.value}")
            elif rule.effect.retries and column not in RETRYABLE:
                found.append(f"`{rule.id}`: `retry` on {column.value}")
    return found


def needs_of(plan: Plan) -> Needs:
    """The events that the plan's rules are about; what every plan needs anyway isn't among them."""
    keys = {rule.event for rule in plan.rules if rule.event is not None}
    kinds = {_kind_of(key) for key in keys} - {EventKind.UNHOOK, EventKind.CREATE_VCPU}
    if any(rule.access for rule in plan.rules):
        kinds.add(EventKind.PF)
    return Needs(
        kinds=tuple(sorted(kinds, key=lambda kind: kind.value)),
        crs=tuple(sorted({register for key in keys if (register := EVENTS[key.word].register) is not None})),
        msrs=tuple(sorted({key.numbers[0] for key in keys if key.word == "msr"})),
    )


def _kind_of(key: EventKey) -> EventKind:
    return EventKind[EVENTS[key.word].kvmi]


def check_permissions(dialect: Dialect, needs: Needs, *, steps: bool) -> Procedure[tuple[str, ...]]:
    """Ask for UNHOOK, then whether everything else is allowed; what isn't, in words.

    Args:
        steps: whether the host can single-step. Where pages are guarded it has to be allowed to: a guest can bring
            about that it's needed, and a step that is refused must not be a reason to open a page.
    """
    steps = steps and EventKind.PF in needs.kinds
    needed = [*NEEDED_COMMANDS, *([ControlCr] if needs.crs else []), *([ControlMsr] if needs.msrs else [])]
    needed += [ControlSinglestep] if steps else []
    absent = [f"event {kind.value}" for kind in needs.kinds if kind not in dialect.events]
    absent += [f"command {command.__name__}" for command in needed if command not in dialect.commands]
    if absent:
        return tuple(f"{dialect.name} has no {what}" for what in absent)
    checks: list[Command] = [CheckCommand(command) for command in needed]
    # Without TRAP, v12 refuses to inject, and nobody else says whether an exception was delivered.
    checks += [CheckEvent(kind) for kind in (*needs.kinds, EventKind.TRAP)]
    checks += [CheckEvent(EventKind.SINGLESTEP)] if steps else []
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
    return ()


def announce_vcpus(dialect: Dialect) -> Procedure[bool]:
    """Have the kernel announce each vCPU before its first instruction; whether it will."""
    if EventKind.CREATE_VCPU not in dialect.events:
        return False
    return not isinstance((yield from ask(ControlVmEvents(EventKind.CREATE_VCPU, enable=True))), Refused)


def event_commands(needs: Needs, vcpu: int, *, enable: bool = True) -> Sequence[Command]:
    """What switches these events on, or off, for one vCPU."""
    return [
        *(ControlEvents(vcpu, kind, enable) for kind in needs.kinds),
        *(ControlCr(vcpu, cr, enable) for cr in needs.crs),
        *(ControlMsr(vcpu, msr, enable) for msr in needs.msrs),
    ]
