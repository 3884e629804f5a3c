"""What only one kind of event says, and what only one kind of reply: a frozen dataclass for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policyc.addresses import Gpa, Gva
    from policyc.kvmi.vocabulary import Descriptor, PageAccess

__all__ = [
    "BreakpointData",
    "CmdErrorData",
    "CpuidData",
    "CrData",
    "DescriptorData",
    "EventData",
    "EventReplyData",
    "MsrData",
    "NewValue",
    "PfData",
    "PfReply",
    "SinglestepData",
    "TrapData",
    "XsetbvData",
]


@dataclass(frozen=True, slots=True)
class EventData:
    """The part of an event that only its kind has."""


@dataclass(frozen=True, slots=True)
class PfData(EventData):
    """An access to a restricted frame, before it is performed.

    Attributes:
        gva: `GVA_UNKNOWN` where the kernel doesn't know it.
        gpa: the full address, not only its frame.
        access: the one kind of access that was caught.
        view: the EPT view, in v6 alone; v7 has it in the event itself.
    """

    gva: Gva
    gpa: Gpa
    access: PageAccess
    view: int = 0


@dataclass(frozen=True, slots=True)
class CrData(EventData):
    """A write to CR0, CR3 or CR4 that would change it."""

    cr: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class MsrData(EventData):
    """A guest write to an MSR that would change it."""

    msr: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class XsetbvData(EventData):
    """A write to XCR0 that has changed it; v6 and v7 send no data."""

    xcr: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class BreakpointData(EventData):
    """An INT3 at `gpa` (all ones if unmapped)."""

    gpa: Gpa
    insn_len: int


@dataclass(frozen=True, slots=True)
class DescriptorData(EventData):
    """An instruction that reads or writes a descriptor table register."""

    descriptor: Descriptor
    write: bool


@dataclass(frozen=True, slots=True)
class TrapData(EventData):
    """What was really delivered after INJECT_EXCEPTION; `type` is v6's own, `address` is CR2."""

    vector: int
    error_code: int
    address: int
    type: int = 0


@dataclass(frozen=True, slots=True)
class SinglestepData(EventData):
    """One instruction has been executed, unless `failed`; v6 sends no data."""

    failed: bool


@dataclass(frozen=True, slots=True)
class CpuidData(EventData):
    """The guest executed CPUID; the result is already in its registers, RIP not yet advanced (v7)."""

    function: int
    index: int
    insn_length: int


@dataclass(frozen=True, slots=True)
class CmdErrorData(EventData):
    """A command failed while replies were off (v7); numbers as on the wire, `err` negative."""

    err: int
    msg_seq: int
    msg_id: int


@dataclass(frozen=True, slots=True)
class EventReplyData:
    """What a reply says besides the action."""


@dataclass(frozen=True, slots=True)
class NewValue(EventReplyData):
    """The value a CR or MSR shall get. A reply without it writes 0, so it is never left out."""

    value: int


@dataclass(frozen=True, slots=True)
class PfReply(EventReplyData):
    """With CONTINUE, in v6 and v7: let the instruction read other bytes than memory holds.

    Attributes:
        ctx_addr: guest virtual address of the substitute.
        ctx_data: up to 256 bytes.
        rep_complete: no more events for the remaining rounds of a REP instruction.
        singlestep: v6 with RETRY: let the one instruction pass and send a SINGLESTEP event.
    """

    ctx_addr: Gva
    ctx_data: bytes = b""
    rep_complete: bool = False
    singlestep: bool = False
