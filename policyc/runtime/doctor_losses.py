"""What is lost with each command and event that the VMM doesn't allow: `-object introspection,command=…,event=…`.

The commands that arming itself needs are those of `policyc.runtime.needs`: without one of them no plan is enforced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from policyc.kvmi import (
    Command,
    ControlCr,
    ControlEvents,
    ControlMsr,
    ControlSinglestep,
    ControlVmEvents,
    EventKind,
    GetCpuid,
    GetInfo,
    GetRegisters,
    InjectException,
    PauseVcpu,
    ReadPhysical,
    SetPageAccess,
    SetRegisters,
    TranslateGva,
)
from policyc.runtime.doctor_case import Level

__all__ = ["LOST_WITH_COMMAND", "LOST_WITH_EVENT", "Loss", "command_name", "event_name"]


@dataclass(frozen=True, slots=True)
class Loss:
    """How much it weighs, and what can't be done without it."""

    level: Level
    what: str


def _all(what: str) -> Loss:
    return Loss(Level.BROKEN, what)


def _some(what: str) -> Loss:
    return Loss(Level.WEAK, what)


LOST_WITH_COMMAND: Mapping[type[Command], Loss] = {
    ControlEvents: _all("no event can be switched on"),
    GetInfo: _all("the number of vCPUs isn't known"),
    GetRegisters: _all("the guest's kernel can't be found"),
    InjectException: _all("nothing can be denied by a fault"),
    PauseVcpu: _all("the guest can't be stopped for arming"),
    ReadPhysical: _all("guest memory can't be read"),
    SetPageAccess: _all("no page can be protected"),
    SetRegisters: _all("no write can be skipped"),
    TranslateGva: _all("whether code is what it was can't be told"),
    ControlCr: _some("rules on cr0, cr3 and cr4 can't be armed"),
    ControlMsr: _some("rules on MSRs can't be armed"),
    ControlSinglestep: _some("rules on memory can't be armed where the host can single-step"),
    ControlVmEvents: _some("the VMM can't ask us to leave, it cuts the connection instead"),
    GetCpuid: _some("page rights can't be checked against the guest's processor"),
}

LOST_WITH_EVENT: Mapping[EventKind, Loss] = {
    EventKind.PF: _all("no access to memory is reported"),
    EventKind.PAUSE: _all("the guest can't be stopped for arming"),
    EventKind.TRAP: _some("what became of an injected fault can't be told"),
    EventKind.CR: _some("rules on cr0, cr3 and cr4 can't be armed"),
    EventKind.MSR: _some("rules on MSRs can't be armed"),
    EventKind.DESCRIPTOR: _some("rules on idtr, gdtr, ldtr and tr can't be armed"),
    EventKind.HYPERCALL: _some("rules on hypercalls can't be armed"),
    EventKind.BREAKPOINT: _some("rules on breakpoints can't be armed"),
    EventKind.XSETBV: _some("rules on xsetbv can't be armed"),
    EventKind.CPUID: _some("rules on cpuid can't be armed"),
    EventKind.CREATE_VCPU: _some("a vCPU that is added later is guarded late"),
    EventKind.UNHOOK: _some("the VMM can't ask us to leave, it cuts the connection instead"),
    EventKind.SINGLESTEP: _some("rules on memory can't be armed where the host can single-step"),
}
"""What isn't listed is used by no policy."""


def command_name(command: type[Command]) -> str:
    """KVMI's own name, without its prefix: SET_PAGE_ACCESS."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", command.__name__).upper()


def event_name(kind: EventKind) -> str:
    """KVMI's own name, without its prefix: PF."""
    return kind.name
