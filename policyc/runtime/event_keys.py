"""Which event of the language a KVMI event is: one row a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from policyc.catalog import DELIVERED_HYPERCALL, EVENTS, Access
from policyc.kvmi import (
    CpuidData,
    CrData,
    Descriptor,
    DescriptorData,
    Event,
    EventKind,
    MsrData,
    RemoteProtocolError,
)
from policyc.plan.model import EventKey

__all__ = ["KEYS", "key_of"]


def key_of(event: Event) -> EventKey:
    """The event as rules name it.

    Raises:
        KeyError: it is none that a rule could be about.
        RemoteProtocolError: it is about a register that no kernel reports.
    """
    return KEYS[event.kind](event)


def _cr(event: Event) -> EventKey:
    data = event.data
    assert isinstance(data, CrData)
    key = EventKey(f"cr{data.cr}")
    if key.word not in EVENTS:
        raise RemoteProtocolError("a write to CR0, CR3 or CR4", f"one to CR{data.cr}")
    return key


def _msr(event: Event) -> EventKey:
    data = event.data
    assert isinstance(data, MsrData)
    return EventKey("msr", (data.msr,))


def _descriptor(event: Event) -> EventKey:
    data = event.data
    assert isinstance(data, DescriptorData)
    return EventKey(Descriptor(data.descriptor).name.lower(), (int(Access.W if data.write else Access.R),))


def _cpuid(event: Event) -> EventKey:
    data = event.data
    assert isinstance(data, CpuidData)
    return EventKey("cpuid", (data.function,))


def _plain(word: str, *numbers: int) -> Callable[[Event], EventKey]:
    key = EventKey(word, numbers)
    return lambda event: key


KEYS: Mapping[EventKind, Callable[[Event], EventKey]] = {
    EventKind.CR: _cr,
    EventKind.MSR: _msr,
    EventKind.DESCRIPTOR: _descriptor,
    EventKind.CPUID: _cpuid,
    EventKind.XSETBV: _plain("xsetbv"),
    # The kernel delivers this one pair alone, and doesn't repeat the numbers in the event.
    EventKind.HYPERCALL: _plain("hypercall", *DELIVERED_HYPERCALL),
    EventKind.BREAKPOINT: _plain("breakpoint"),
    EventKind.CREATE_VCPU: _plain("vcpu"),
    EventKind.UNHOOK: _plain("unhook"),
}
