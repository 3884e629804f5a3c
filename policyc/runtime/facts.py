"""Facts about one event that verdicts may turn on, established by asking the kernel only when they do.

Everything is read from a hostile guest. What can't be established counts as what makes the verdict stricter: the
largest size, a caller that nobody trusts, code that isn't what was bound.
"""

from __future__ import annotations

from dataclasses import replace

from policyc.addresses import PAGE_SIZE, Gpa, Gva, page_offset
from policyc.catalog import Access
from policyc.kvmi import (
    Command,
    CpuMode,
    Event,
    EventKind,
    ReadPhysical,
    ReadPhysicalReply,
    TranslateGva,
    TranslateGvaReply,
)
from policyc.plan.places import Base
from policyc.plan.verdicts import (
    NEAR_ZONE,
    Fact,
    MemoryAccess,
    NoticedEvent,
    Origin,
    Verdict,
    decide,
)
from policyc.runtime.bound import BoundPlan
from policyc.runtime.decode import MAX_INSTRUCTION, Instruction, decode
from policyc.runtime.event_fields import EventFields
from policyc.runtime.event_keys import key_of
from policyc.runtime.procedure import Procedure, ask, ask_all

__all__ = ["Examination"]

UNMAPPED = (1 << 64) - 1
"""What TRANSLATE_GVA answers for an address that leads nowhere."""

NO_CALLER = 0
"""A return address that no trusted code contains."""

POINTER = {CpuMode.REAL: 2, CpuMode.PROTECTED: 4, CpuMode.LONG: 8}


class Examination:
    """One event under examination: what has been found out so far.

    Attributes:
        event: the event.
        instruction: what stands at RIP; None until `decoded` has run, or where nothing can be decoded.
        size: the access's size as far as it is known.
    """

    def __init__(self, event: Event, bound: BoundPlan) -> None:
        self.event = event
        self.instruction: Instruction | None = None
        self.size: int | None = None
        self._bound = bound
        self._origin = Origin(rip=event.rip)
        self._fields = EventFields(event)
        self._size_certain = True
        self._code: tuple[Gpa, bytes] | None = None
        self._read = False

    def verdict(self) -> Procedure[Verdict]:
        """The verdict on the event."""
        while True:
            answer = decide(self._bound.table, self._access())
            if isinstance(answer, Verdict):
                return answer
            yield from self._establish(answer)

    def decoded(self) -> Procedure[Instruction | None]:
        """The instruction at RIP, read from the guest now."""
        if not self._read:
            self._read = True
            code = yield from self._code_at(self.event.rip)
            if code is not None:
                self.instruction = decode(self.event.mode, code[1])
                self._code = code
        return self.instruction

    def _access(self) -> MemoryAccess | NoticedEvent:
        if self.event.kind is not EventKind.PF:
            return NoticedEvent(key_of(self.event), self._origin, self._fields)
        access = Access(int(self.event.access))
        return MemoryAccess(
            access, Base.PHYSICAL, self.event.gpa, self.size, self._origin, self._size_certain, self._fields
        )

    def _establish(self, fact: Fact) -> Procedure[None]:
        match fact:
            case Fact.SIZE:
                size = yield from self._operand_size()
                self._size_certain = size is not None
                self.size = NEAR_ZONE if size is None else size
            case Fact.RETURN_ADDRESS:
                caller = yield from self._return_address()
                self._origin = replace(self._origin, return_address=caller)
            case Fact.RIP_FRAME:
                genuine = yield from self._is_genuine(self._origin.rip)
                self._origin = replace(self._origin, rip_genuine=genuine)
            case Fact.RETURN_FRAME:
                genuine = yield from self._is_genuine(self._origin.return_address or NO_CALLER)
                self._origin = replace(self._origin, return_genuine=genuine)

    def _operand_size(self) -> Procedure[int | None]:
        """The decoded size, where nobody untrusted can have written the code since."""
        instruction = yield from self.decoded()
        if instruction is None or self._code is None:
            return None
        gpa, _ = self._code
        if self._bound.code.gpa_of(self.event.rip) != gpa:
            # RIP leads to guarded code, but not to what was bound there: the tables were changed, perhaps just now.
            return None
        if not self._bound.keeps_unwritable(gpa, min(instruction.length, PAGE_SIZE - page_offset(gpa))):
            return None
        if page_offset(gpa) + instruction.length > PAGE_SIZE:
            # The rest of the instruction lies on another frame, which would have to be trusted as well.
            return None
        return instruction.size_of(Access(int(self.event.access))) or None

    def _return_address(self) -> Procedure[int]:
        size = POINTER[self.event.mode]
        gpa = yield from self._translated(self.event.rsp)
        if gpa is None or page_offset(gpa) + size > PAGE_SIZE:
            return NO_CALLER
        result = yield from ask(ReadPhysical(gpa, size))
        return int.from_bytes(result.data, "little") if isinstance(result, ReadPhysicalReply) else NO_CALLER

    def _is_genuine(self, address: int) -> Procedure[bool]:
        """Whether code at `address` lies now where it lay when the plan was bound."""
        expected = self._bound.code.gpa_of(address)
        if expected is None:
            return False
        return (yield from self._translated(address)) == expected

    def _translated(self, address: int) -> Procedure[Gpa | None]:
        result = yield from ask(TranslateGva(self.event.vcpu, Gva(address)))
        if isinstance(result, TranslateGvaReply) and result.gpa != UNMAPPED:
            return result.gpa
        return None

    def _code_at(self, rip: int) -> Procedure[tuple[Gpa, bytes] | None]:
        """Where RIP leads, and up to fifteen bytes from there; fewer where the next page is out of reach."""
        first = min(MAX_INSTRUCTION, PAGE_SIZE - page_offset(rip))
        start = yield from self._translated(rip)
        if start is None:
            return None
        wanted: list[Command] = [ReadPhysical(start, first)]
        if first < MAX_INSTRUCTION:
            rest = yield from self._translated((rip + first) & UNMAPPED)
            if rest is not None:
                wanted.append(ReadPhysical(rest, MAX_INSTRUCTION - first))
        parts = yield from ask_all(wanted)
        if not isinstance(parts[0], ReadPhysicalReply):
            return None
        return start, b"".join(part.data for part in parts if isinstance(part, ReadPhysicalReply))
