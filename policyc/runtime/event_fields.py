"""The fields of a KVMI event as conditions name them: one row a field, decoded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

from policyc.kvmi import CpuidData, CrData, Event, EventData, EventKind, MsrData, Registers, SystemRegisters, XsetbvData

__all__ = ["READERS", "EventFields"]


class EventFields:
    """Reads the fields of one event; calling it with a word gives the value, or None where the event has none."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, word: str) -> int | None:
        """The field's value."""
        return READERS[word](self)

    @cached_property
    def regs(self) -> Registers:
        """The general registers."""
        return self.event.regs

    @cached_property
    def sregs(self) -> SystemRegisters:
        """Segments and control registers."""
        return self.event.sregs

    @cached_property
    def data(self) -> EventData | None:
        """What only this kind of event has."""
        return self.event.data


Reader = Callable[[EventFields], "int | None"]


def _general(word: str) -> Reader:
    def read(fields: EventFields) -> int:
        value: int = getattr(fields.regs, word)
        return value

    return read


def _control(word: str) -> Reader:
    def read(fields: EventFields) -> int:
        value: int = getattr(fields.sregs, word)
        return value

    return read


def _page_fault(word: str) -> Reader:
    def read(fields: EventFields) -> int | None:
        return int(getattr(fields.event, word)) if fields.event.kind is EventKind.PF else None

    return read


def _old(fields: EventFields) -> int | None:
    data = fields.data
    return data.old if isinstance(data, (CrData, MsrData, XsetbvData)) else None


def _new(fields: EventFields) -> int | None:
    data = fields.data
    return data.new if isinstance(data, (CrData, MsrData, XsetbvData)) else None


def _leaf(fields: EventFields) -> int | None:
    data = fields.data
    return data.function if isinstance(data, CpuidData) else None


def _privilege_level(fields: EventFields) -> int:
    # The DPL of SS is the CPL in every mode (Intel SDM vol. 3C 25.4.1); KVM keeps it so on AMD too.
    return fields.sregs.ss.dpl


GENERAL_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    "rip",
)

READERS: Mapping[str, Reader] = {
    **{word: _general(word) for word in GENERAL_REGISTERS},
    **{word: _control(word) for word in ("cr0", "cr3", "cr4", "efer")},
    **{word: _page_fault(word) for word in ("gva", "gpa", "access")},
    "cpl": _privilege_level,
    "bits": lambda fields: 8 * fields.event.mode,
    "vcpu": lambda fields: fields.event.vcpu,
    "old": _old,
    "new": _new,
    "leaf": _leaf,
}
"""Every field of the catalogue but `size`, which no event carries: it is decoded from the code at RIP."""
