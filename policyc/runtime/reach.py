"""The bytes that an instruction accesses, all of them: what has to be allowed before any page is opened for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from policyc.addresses import PAGE_SIZE, Gfn, Gpa, frame_start, gfn_of, page_offset
from policyc.catalog import Access
from policyc.runtime.decode import Instruction
from policyc.runtime.facts import Examination
from policyc.runtime.procedure import Procedure

__all__ = ["Piece", "needed_rights", "reach"]


@dataclass(frozen=True, slots=True)
class Piece:
    """`size` bytes from `gpa` on, all on one frame, accessed in one way."""

    access: Access
    gpa: Gpa
    size: int


def reach(case: Examination) -> Procedure[tuple[Piece, ...]]:
    """What the instruction at an event accesses; where that isn't certain, everything on the event's page.

    An instruction of which we know neither address nor size, a scatter say, sends an event of its own for each page.
    """
    event, kind = case.event, Access(int(case.event.access))
    instruction = yield from case.decoded()
    if kind & Access.X:
        room = PAGE_SIZE - page_offset(event.gpa)
        return (Piece(Access.X, event.gpa, room if instruction is None else min(instruction.length, room)),)
    if instruction is not None:
        pieces = yield from _operand(case, instruction)
        if any(piece.access & kind and piece.gpa <= event.gpa < piece.gpa + piece.size for piece in pieces):
            return pieces
    start = frame_start(gfn_of(event.gpa))
    return tuple(Piece(access, start, PAGE_SIZE) for access in (Access.R, Access.W) if access & _with_read(kind))


def needed_rights(pieces: tuple[Piece, ...], rights: Callable[[Gfn], Access | None]) -> dict[Gfn, Access]:
    """What each frame has to allow for the pieces, where it doesn't; `rights` has None for a frame without limits."""
    needed: dict[Gfn, Access] = {}
    for piece in pieces:
        gfn = gfn_of(piece.gpa)
        allowed = rights(gfn)
        if allowed is not None and _with_read(piece.access) & ~allowed:
            needed[gfn] = needed.get(gfn, allowed) | _with_read(piece.access)
    return needed


def _with_read(access: Access) -> Access:
    """No hardware allows writes where it doesn't allow reads."""
    return access | Access.R if access & Access.W else access


def _operand(case: Examination, instruction: Instruction) -> Procedure[tuple[Piece, ...]]:
    """The pieces of the one operand in memory; none where there isn't just one, or its address isn't certain."""
    if instruction.operand is None:
        return ()
    start = instruction.operand.address(case.event.regs, case.event.sregs, instruction.length)
    frames: dict[int, Gpa | None] = {}
    pieces: list[Piece] = []
    for access, size in ((Access.R, instruction.reads), (Access.W, instruction.writes)):
        position, end = int(start), start + (size or 0)
        while position < end:
            room = min(PAGE_SIZE - page_offset(position), end - position)
            page = position - page_offset(position)
            if page not in frames:
                frames[page] = yield from case.translated(page % (1 << 64))
            frame = frames[page]
            if frame is not None:
                pieces.append(Piece(access, Gpa(frame + page_offset(position)), room))
            position += room
    return tuple(pieces)
