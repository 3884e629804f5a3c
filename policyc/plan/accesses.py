"""What `decide` is asked about: an access to memory, or another event, and the code that it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from policyc.catalog import Access
from policyc.plan.evaluation import Fields, no_fields
from policyc.plan.model import EventKey
from policyc.plan.places import Base

__all__ = [
    "ALL_KNOWN",
    "FRAME_BELOW",
    "NEAR_ZONE",
    "UNKNOWN_CALLER",
    "MemoryAccess",
    "NoticedEvent",
    "Origin",
]

NEAR_ZONE = 1024
"""The most that one emulated instruction writes: how far below an object a store that reaches it may begin.

FXSAVE stores 512 bytes; REP INS stores what was read ahead from the port, up to 1024 (`pio_in_emulated` of the kernel's
arch/x86/kvm/emulate.c).
"""


FRAME_BELOW = 40
"""How far the frame of an exception reaches below its first word (Intel SDM vol. 3A 6.14.2, with an error code)."""

UNKNOWN_CALLER = -1
"""A return address that can't be read: it counts as what makes the verdict stricter."""


ALL_KNOWN: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Origin:
    """The code behind an access, as far as it has been established; None is not established yet.

    Attributes:
        rip: the instruction's address.
        return_address: the caller, where RIP is in a leaf copy routine; `UNKNOWN_CALLER` where it can't be read.
        rip_genuine: RIP's page is backed by the frame that binding saw there.
        return_genuine: the same of the return address.
    """

    rip: int
    return_address: int | None = None
    rip_genuine: bool | None = None
    return_genuine: bool | None = None


@dataclass(frozen=True, slots=True)
class MemoryAccess:
    """One access to memory.

    Attributes:
        size: bytes; None until the instruction has been decoded.
        unknown: fields that conditions don't know: the size, where decoding failed and `size` is the most that it may
            be; the addresses too, where this is a part of what is accessed.
        fields: the event's other fields, for conditions.
        frame: it may be the first word of an exception's frame, which is pushed downwards; None until that has been
            found out.
    """

    access: Access
    base: Base
    start: int
    size: int | None
    origin: Origin
    unknown: frozenset[str] = ALL_KNOWN
    fields: Fields = no_fields
    frame: bool | None = False

    def field(self, word: str) -> int | None:
        """The value of a field by its word in the catalogue; None where it isn't known."""
        if word in self.unknown:
            return None
        match word:
            case "access":
                return int(self.access)
            case "size":
                return self.size
            case "rip":
                return self.origin.rip
            case "gva" if self.base is Base.VIRTUAL:
                return self.start
            case "gpa" if self.base is Base.PHYSICAL:
                return self.start
            case _:
                return self.fields(word)


@dataclass(frozen=True, slots=True)
class NoticedEvent:
    """One event other than a page fault. `fields` are the event's, for conditions."""

    event: EventKey
    origin: Origin
    fields: Fields = no_fields

    def field(self, word: str) -> int | None:
        """The value of a field by its word in the catalogue; None where it isn't known."""
        return self.origin.rip if word == "rip" else self.fields(word)
