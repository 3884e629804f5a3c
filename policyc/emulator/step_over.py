"""Page-fault events, and how CONTINUE performs an access that the rights forbid.

KVM emulates the instruction with the access allowed. Here it is executed with the missing right lifted for this one
step and this one vCPU, unless KVM's emulator doesn't know it and the kernel has no other way. An instruction that
needs several rights (read and write, two pages) sends an event for each, and what has been answered CONTINUE stays
lifted until it is through or given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyc.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa
from policyc.emulator.decode import INSTRUCTION_MAX, decode
from policyc.emulator.kvm_emulator import emulated
from policyc.emulator.stops import BudgetSpent, PageViolation
from policyc.emulator.walk import FETCH, READ, translate
from policyc.kvmi import Action, EventKind, EventReplyData, PageAccess, PfData, PfReply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.vcpu import Vcpu

__all__ = ["violation"]

REPEATS_MAX = 65536
"""Rounds of a REP instruction that are done at once after a reply with `rep_complete`."""


def violation(
    vcpu: Vcpu,
    stop: PageViolation,
    lifted: Mapping[int, int] | None = None,
    *,
    code: bytes | None = None,
    fetched: bool = False,
) -> None:
    """Report an access that was caught.

    Args:
        lifted: rights that earlier answers gave back for the same instruction.
        code: the instruction as it was when its first access was caught.
        fetched: the processor's own fetch has been reported, and KVM's emulator now makes the same one.
    """
    seen = vcpu.engine.read_virtual(vcpu.engine.get("rip"), INSTRUCTION_MAX) if code is None else code

    def resume(action: Action | None, data: EventReplyData | None) -> None:
        again = stop.kind == FETCH and not fetched and vcpu.tool is not None and vcpu.tool.fetches_twice
        if action is Action.CONTINUE and again:
            violation(vcpu, stop, lifted, code=seen, fetched=True)
        elif action is Action.CONTINUE:
            _perform(vcpu, stop, dict(lifted or {}), data if isinstance(data, PfReply) else None, seen)

    vcpu.report(EventKind.PF, PfData(stop.gva, stop.gpa, PageAccess(stop.kind)), resume)


def _perform(vcpu: Vcpu, stop: PageViolation, lifted: dict[int, int], reply: PfReply | None, fetched: bytes) -> None:
    if not vcpu.engine.enforcing:
        return  # restrictions don't count any more: running on performs the access
    insn = decode(fetched, vcpu.engine.code_bits)
    known = insn is None or emulated(insn)
    if not known and not (vcpu.tool is not None and vcpu.tool.steps_by_itself):
        return  # entered again as it is, the guest makes the same access once more
    gfn = stop.gpa >> PAGE_SHIFT
    lifted[gfn] = lifted.get(gfn, 0) | stop.kind
    rip = vcpu.engine.get("rip")
    rounds = REPEATS_MAX if reply is not None and reply.rep_complete else 1
    for _ in range(rounds):
        with _Substitute(vcpu, stop, reply), _Fetched(vcpu, insn.size if insn is not None and known else 0, fetched):
            result = vcpu.engine.step(lifted)
        if isinstance(result, PageViolation):
            if rounds > 1 and result.kind in (stop.kind, READ):
                lifted[result.gpa >> PAGE_SHIFT] = lifted.get(result.gpa >> PAGE_SHIFT, 0) | result.kind
                continue
            violation(vcpu, result, lifted, code=fetched)
            return
        if not isinstance(result, BudgetSpent):
            vcpu.exit(result)
            return
        if vcpu.engine.get("rip") != rip:
            return


class _Fetched:
    """The code as the kernel's emulator fetched it, should another vCPU have changed it while the event was open.

    The emulator performs what it decoded before it sent the event. What it doesn't know runs from memory as it is.
    """

    def __init__(self, vcpu: Vcpu, size: int, code: bytes) -> None:
        self._memory = vcpu.engine.memory
        self._now: list[tuple[Gpa, bytes]] = []
        self._then: list[tuple[Gpa, bytes]] = []
        rip, cr3 = vcpu.engine.get("rip"), vcpu.engine.get("cr3")
        if vcpu.engine.read_virtual(rip, size) == code[:size]:
            return
        for at in range(size):
            gpa = translate(self._memory, cr3, rip + at)
            if gpa is not None and gpa < self._memory.size:
                self._now.append((gpa, self._memory.read(gpa, 1)))
                self._then.append((gpa, code[at : at + 1]))

    def __enter__(self) -> None:
        self._put(self._then)

    def __exit__(self, *_: object) -> None:
        self._put(self._now)

    def _put(self, content: list[tuple[Gpa, bytes]]) -> None:
        for gpa, byte in content:
            self._memory.write(gpa, byte)


class _Substitute:
    """Other bytes in memory while an instruction reads: what v7 does for those that it can't emulate.

    Only a read that lies completely in the bytes offered gets them, and only in the page that was caught.
    """

    def __init__(self, vcpu: Vcpu, stop: PageViolation, reply: PfReply | None) -> None:
        self._memory = vcpu.engine.memory
        self._at: Gpa | None = None
        self._data = b""
        self._original = b""
        if reply is None or not reply.ctx_data or stop.kind != READ:
            return
        page = stop.gva & ~(PAGE_SIZE - 1)
        start = max(reply.ctx_addr, page)
        end = min(reply.ctx_addr + len(reply.ctx_data), page + PAGE_SIZE)
        if not start <= stop.gva < end:
            return
        insn = vcpu.engine.instruction()
        size = max((operand.size for operand in insn.operands if operand.read), default=1) if insn else 1
        gpa = translate(self._memory, vcpu.engine.get("cr3"), start)
        if gpa is not None and stop.gva + size <= reply.ctx_addr + len(reply.ctx_data):
            self._at = vcpu.engine.backing(gpa)
            self._data = reply.ctx_data[start - reply.ctx_addr : end - reply.ctx_addr]

    def __enter__(self) -> None:
        if self._at is not None:
            self._original = self._memory.read(self._at, len(self._data))
            self._memory.write(self._at, self._data)

    def __exit__(self, *_: object) -> None:
        if self._at is not None:
            now = self._memory.read(self._at, len(self._data))
            columns = zip(self._original, now, self._data, strict=True)
            self._memory.write(self._at, bytes(old if new == shown else new for old, new, shown in columns))
