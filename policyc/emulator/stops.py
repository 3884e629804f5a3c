"""Why the engine came back: one value for each thing that a processor leaves the guest for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policyc.addresses import Gpa, Gva
    from policyc.emulator.decode import Instruction

__all__ = [
    "Breakpoint",
    "BudgetSpent",
    "GuestFault",
    "Halted",
    "Hypercall",
    "PageViolation",
    "Sensitive",
    "Shutdown",
    "SoftwareInterrupt",
    "Stop",
]


@dataclass(frozen=True, slots=True)
class BudgetSpent:
    """The instructions asked for have been run."""


@dataclass(frozen=True, slots=True)
class Halted:
    """HLT was executed; RIP is past it."""


@dataclass(frozen=True, slots=True)
class PageViolation:
    """The guest's tables allow the access, the frame's rights don't. Nothing was done; RIP is on the instruction.

    Attributes:
        kind: the one right that was missing: `walk.READ`, `WRITE` or `FETCH`.
    """

    gva: Gva
    gpa: Gpa
    kind: int


@dataclass(frozen=True, slots=True)
class GuestFault:
    """An exception for the guest's own handler; RIP is where the processor would push it.

    Attributes:
        error_code: None for vectors without one.
        cr2: the address of a page fault.
    """

    vector: int
    error_code: int | None = None
    cr2: Gva | None = None


@dataclass(frozen=True, slots=True)
class SoftwareInterrupt:
    """INT n of `size` bytes; RIP is on it."""

    vector: int
    size: int


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """INT3 of `size` bytes; RIP is on it."""

    size: int


@dataclass(frozen=True, slots=True)
class Hypercall:
    """VMCALL or VMMCALL; RIP is on it."""

    size: int


@dataclass(frozen=True, slots=True)
class Sensitive:
    """An instruction that introspection may want to see first; RIP is on it and it has not been executed."""

    instruction: Instruction


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The processor can't go on: a fault while a double fault was delivered, or code outside RAM."""

    reason: str


Stop = (
    BudgetSpent
    | Halted
    | PageViolation
    | GuestFault
    | SoftwareInterrupt
    | Breakpoint
    | Hypercall
    | Sensitive
    | Shutdown
)
