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
    Refused,
    ReplyData,
    TranslateGva,
    TranslateGvaReply,
)
from policyc.plan.accesses import ALL_KNOWN, NEAR_ZONE, UNKNOWN_CALLER, MemoryAccess, NoticedEvent, Origin
from policyc.plan.places import Base
from policyc.plan.verdicts import Fact, Verdict, decide
from policyc.runtime.bound import BoundPlan
from policyc.runtime.decode import MAX_INSTRUCTION, Instruction, decode
from policyc.runtime.event_fields import EventFields
from policyc.runtime.event_keys import key_of
from policyc.runtime.exception_stacks import UNMAPPED, begins_frame
from policyc.runtime.procedure import Procedure, ask, ask_all

__all__ = ["Examination"]

SIZE_UNKNOWN = frozenset(["size"])
OF_THE_WHOLE = frozenset(["size", "gpa", "gva"])

POINTER = {CpuMode.REAL: 2, CpuMode.PROTECTED: 4, CpuMode.LONG: 8}


class Examination:
    """One event under examination: what has been found out so far.

    Attributes:
        event: the event.
        bound: what it is judged by.
        instruction: what stands at RIP; None until `decoded` has run, or where nothing can be decoded.
        size: the access's size as far as it is known.
    """

    def __init__(self, event: Event, bound: BoundPlan) -> None:
        self.event = event
        self.instruction: Instruction | None = None
        self.size: int | None = None
        self.bound = bound
        self._origin = Origin(rip=event.rip)
        self._fields = EventFields(event)
        self._unknown = ALL_KNOWN
        self._frame: bool | None = None
        self._code: Gpa | None = None
        self._read = False

    def verdict(self) -> Procedure[Verdict]:
        """The verdict on the event."""
        while True:
            answer = decide(self.bound.table, self._access())
            if isinstance(answer, Verdict):
                return answer
            yield from self._establish(answer)

    def verdict_on(self, access: Access, gpa: Gpa, size: int) -> Procedure[Verdict]:
        """The verdict on bytes that are accessed together with others, whether or not the event is about them.

        What conditions ask about the whole, its size and its address, isn't known of a part.
        """
        while True:
            made = MemoryAccess(access, Base.PHYSICAL, gpa, size, self._origin, OF_THE_WHOLE, self._fields)
            answer = decide(self.bound.table, made)
            if isinstance(answer, Verdict):
                return answer
            yield from self._establish(answer)

    def decoded(self) -> Procedure[Instruction | None]:
        """The instruction at RIP, read from the guest now or known to stand there still."""
        if not self._read:
            self._read = True
            yield from self._decode(Gva(self.event.rip))
        return self.instruction

    @property
    def known_size(self) -> int | None:
        """The access's size, where the code says it; not the most that it may be."""
        return None if "size" in self._unknown else self.size

    def _access(self) -> MemoryAccess | NoticedEvent:
        if self.event.kind is not EventKind.PF:
            return NoticedEvent(key_of(self.event), self._origin, self._fields)
        access = Access(int(self.event.access))
        frame = self._frame if access & Access.W else False
        return MemoryAccess(
            access, Base.PHYSICAL, self.event.gpa, self.size, self._origin, self._unknown, self._fields, frame
        )

    def _establish(self, fact: Fact) -> Procedure[None]:
        match fact:
            case Fact.FRAME:
                self._frame = yield from begins_frame(self.event)
            case Fact.SIZE:
                size = yield from self._operand_size()
                self._unknown = ALL_KNOWN if size is not None else SIZE_UNKNOWN
                self.size = NEAR_ZONE if size is None else size
            case Fact.RETURN_ADDRESS:
                caller = yield from self._return_address()
                self._origin = replace(self._origin, return_address=caller)
            case Fact.RIP_FRAME:
                genuine = yield from self._is_genuine(self._origin.rip)
                self._origin = replace(self._origin, rip_genuine=genuine)
            case Fact.RETURN_FRAME:
                genuine = yield from self._is_genuine(self._origin.return_address or 0)
                self._origin = replace(self._origin, return_genuine=genuine)

    def _operand_size(self) -> Procedure[int | None]:
        """The decoded size, where nobody untrusted can have written the code since."""
        instruction = yield from self.decoded()
        gpa = self._code
        if instruction is None or gpa is None:
            return None
        if self.bound.code.gpa_of(self.event.rip) != gpa:
            # RIP leads to guarded code, but not to what was bound there: the tables were changed, perhaps just now.
            return None
        if page_offset(gpa) + instruction.length > PAGE_SIZE:
            # The rest of the instruction lies on another frame, which would have to be trusted as well.
            return None
        if not self.bound.keeps_unwritable(gpa, instruction.length):
            return None
        return instruction.size_of(Access(int(self.event.access))) or None

    def _return_address(self) -> Procedure[int]:
        size = POINTER[self.event.mode]
        gpa = yield from self.translated(self.event.rsp)
        if gpa is None or page_offset(gpa) + size > PAGE_SIZE:
            return UNKNOWN_CALLER
        result = yield from ask(ReadPhysical(gpa, size))
        return int.from_bytes(result.data, "little") if isinstance(result, ReadPhysicalReply) else UNKNOWN_CALLER

    def _is_genuine(self, address: int) -> Procedure[bool]:
        """Whether code at `address` lies now where it lay when the plan was bound."""
        expected = self.bound.code.gpa_of(address)
        if expected is None:
            return False
        return (yield from self.translated(address)) == expected

    def translated(self, address: int) -> Procedure[Gpa | None]:
        """Where an address leads now; None where it leads nowhere."""
        return _translation((yield from ask(TranslateGva(self.event.vcpu, Gva(address)))))

    def _decode(self, rip: Gva) -> Procedure[None]:
        """Find out where RIP leads and what stands there.

        Both are asked for at once where the same address was translated before; what was read at another place than
        RIP leads to now isn't used.
        """
        mode, cache = self.event.mode, self.bound.code_cache
        guess = cache.guess(rip)
        commands: list[Command] = [TranslateGva(self.event.vcpu, rip)]
        if guess is not None and cache.get(mode, guess) is None:
            commands.append(ReadPhysical(guess, MAX_INSTRUCTION))
        found = yield from ask_all(commands)
        gpa = _translation(found[0])
        if gpa is None:
            return
        cache.note_translation(rip, gpa)
        self._code = gpa
        self.instruction = cache.get(mode, gpa)
        if self.instruction is not None:
            return
        read = found[1] if len(found) > 1 and gpa == guess else None
        code = read.data if isinstance(read, ReadPhysicalReply) else (yield from self._code_at(rip, gpa))
        self.instruction = decode(mode, code)
        if self.instruction is not None:
            cache.put(mode, gpa, self.instruction)

    def _code_at(self, rip: Gva, gpa: Gpa) -> Procedure[bytes]:
        """Up to fifteen bytes from RIP on, which leads to `gpa`; fewer where the next page is out of reach."""
        first = min(MAX_INSTRUCTION, PAGE_SIZE - page_offset(rip))
        wanted: list[Command] = [ReadPhysical(gpa, first)]
        if first < MAX_INSTRUCTION:
            rest = yield from self.translated((rip + first) & UNMAPPED)
            if rest is not None:
                wanted.append(ReadPhysical(rest, MAX_INSTRUCTION - first))
        parts = yield from ask_all(wanted)
        if not isinstance(parts[0], ReadPhysicalReply):
            return b""
        return b"".join(part.data for part in parts if isinstance(part, ReadPhysicalReply))


def _translation(result: ReplyData | Refused) -> Gpa | None:
    """What TRANSLATE_GVA answered; None for an address that leads nowhere."""
    return result.gpa if isinstance(result, TranslateGvaReply) and result.gpa != UNMAPPED else None
