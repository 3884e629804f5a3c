"""What an instruction does on a machine that nobody guards: what is expected of one that somebody does.

Unicorn's memory hooks tell what it reads and writes, and the processor's registers what else it does. Nothing here
decodes instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unicorn import UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MEM_WRITE, Uc

from policyc.addresses import PAGE_SIZE
from policyc.emulator.stops import BudgetSpent
from tests.support.laboratory import LAB, LAB_GPA, Laboratory, Outcome, Span

__all__ = ["Access", "Turn", "Unguarded", "UnknownInstructionError", "spans_by_page"]

GAP = 256
"""Bytes between what an instruction touches of one operand, at most: XSAVE leaves some out."""


class UnknownInstructionError(Exception):
    """A machine without a guard doesn't run it either."""


@dataclass(frozen=True)
class Access:
    """Bytes [start, end) that were read or written at once, by their addresses in the laboratory."""

    start: int
    end: int
    written: bool


@dataclass(frozen=True)
class Turn:
    """What one instruction did, or one repetition of it, on a machine without a guard; `before` is the state then."""

    before: Outcome
    accesses: tuple[Access, ...]


class Unguarded:
    """The machine that nobody guards."""

    def __init__(self, cpu: str) -> None:
        self.lab = Laboratory(cpu)
        self._seen: list[Access] = []
        self.lab.engine._uc.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, self._note)

    def run(
        self, at: int, code: bytes, registers: Mapping[str, int], fill: int | None = None
    ) -> tuple[Sequence[Turn], Outcome]:
        """What the instruction does, turn by turn, and the state when it is through.

        Raises:
            UnknownInstructionError: it faults.
        """
        lab = self.lab
        lab.prepare(at, code, registers, fill)
        turns: list[Turn] = []
        while lab.engine.get("rip") == at:
            assert len(turns) < 64, "the instruction has no end"
            before = lab.outcome()
            self._seen.clear()
            stop = lab.engine.step()
            if not isinstance(stop, BudgetSpent):
                raise UnknownInstructionError(f"{code.hex()} can't be run: {stop}")
            turns.append(Turn(before, tuple(self._seen)))
        return turns, lab.outcome()

    def _note(self, _uc: Uc, kind: int, address: int, size: int, _value: int, _: object) -> None:
        start = address - LAB_GPA + LAB
        self._seen.append(Access(start, start + size, kind == UC_MEM_WRITE))


def spans_by_page(accesses: Sequence[Access], *, written: bool) -> Iterator[Sequence[Span]]:
    """The operands that were read or written: for each its bytes from the first to the last, a page at a time."""
    chosen = sorted((access.start, access.end) for access in accesses if access.written is written)
    while chosen:
        start, end = chosen.pop(0)
        while chosen and chosen[0][0] <= end + GAP:
            end = max(end, chosen.pop(0)[1])
        yield [
            Span(max(start, page), min(end, page + PAGE_SIZE))
            for page in range(start // PAGE_SIZE * PAGE_SIZE, end, PAGE_SIZE)
        ]
