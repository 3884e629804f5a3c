"""Where a processor may push the frame of an exception: onto the stack in use, or one that its task state names.

A frame is written by no instruction, and downwards, so neither RIP nor the event's address says how far it reaches. The
guest chooses these stacks, as it chooses everything.
"""

from __future__ import annotations

import struct

from policyc.addresses import GVA_UNKNOWN, PAGE_SIZE, Gpa, Gva, page_offset
from policyc.kvmi import Event, ReadPhysical, ReadPhysicalReply, TranslateGva, TranslateGvaReply
from policyc.runtime.procedure import Procedure, ask, ask_all

__all__ = ["FRAME_SIZE", "UNMAPPED", "begins_frame", "frames"]

FRAME_SIZE = 48
"""Bytes of SS, RSP, RFLAGS, CS, RIP and an error code, below a multiple of sixteen (Intel SDM vol. 3A 6.14.2)."""

UNMAPPED = (1 << 64) - 1
"""What TRANSLATE_GVA answers for an address that leads nowhere."""

WORD = 8

LONG_MODE = 1 << 10
"""EFER.LMA."""

USER = 3
"""The privilege level of user mode."""

_STACKS_START = 4
_STACKS = struct.Struct("<3Q8x7Q")
"""RSP0 to RSP2 and IST1 to IST7 of a 64-bit task state segment (Intel SDM vol. 3A 8.7)."""


def begins_frame(event: Event) -> Procedure[bool]:
    """Whether the store of an event may be the first word of a frame; where that can't be told, it may."""
    gva = event.gva
    if gva == GVA_UNKNOWN or _enters_at(gva, event.rsp) or not event.sregs.efer & LONG_MODE:
        return True
    if gva & 15 != 8:
        return False
    if gva >> 63 and event.sregs.ss.dpl == USER:
        # Only the processor itself writes there now.
        return True
    found = yield from _named_by_task_state(event)
    return found is None or any(_enters_at(gva, stack) for stack in found)


def _enters_at(gva: Gva, stack: int) -> bool:
    """Whether a frame on this stack has its first word there, or the first of those on the next lower page."""
    above = (_top(stack) - gva) & UNMAPPED
    return above == WORD or (page_offset(gva) == PAGE_SIZE - WORD and 0 < above <= FRAME_SIZE)


def frames(event: Event) -> Procedure[tuple[tuple[Gpa, int], ...] | None]:
    """All bytes that the frame of an exception may take, each as (start, size) on one page; None if that can't be told.

    It's for a moment at which nobody else can change stacks and page tables.
    """
    found = yield from _named_by_task_state(event)
    if found is None or not event.sregs.efer & LONG_MODE:
        return None
    starts = {(_top(stack) - FRAME_SIZE) & UNMAPPED for stack in (*found, event.rsp)}
    spans = sorted(span for start in starts for span in _by_page(start))
    asked = [TranslateGva(event.vcpu, Gva(start)) for start, _ in spans]
    replies = yield from ask_all(asked)
    return tuple(
        (reply.gpa, size)
        for (_, size), reply in zip(spans, replies, strict=True)
        if isinstance(reply, TranslateGvaReply) and reply.gpa != UNMAPPED
    )


def _top(stack: int) -> int:
    return stack & ~15


def _by_page(start: int) -> list[tuple[int, int]]:
    """The bytes of a frame as (start, size), parted where a page ends."""
    first = min(FRAME_SIZE, PAGE_SIZE - page_offset(start))
    parts = [(start, first), ((start + first) & UNMAPPED, FRAME_SIZE - first)]
    return [(at, size) for at, size in parts if size]


def _named_by_task_state(event: Event) -> Procedure[tuple[int, ...] | None]:
    """The stacks that the task state segment names; None where it can't be read."""
    start = (event.sregs.tr.base + _STACKS_START) & UNMAPPED
    first = min(_STACKS.size, PAGE_SIZE - page_offset(start))
    asked = [TranslateGva(event.vcpu, Gva(start))]
    if first < _STACKS.size:
        asked.append(TranslateGva(event.vcpu, Gva((start + first) & UNMAPPED)))
    places = [
        reply.gpa if isinstance(reply, TranslateGvaReply) and reply.gpa != UNMAPPED else None
        for reply in (yield from ask_all(asked))
    ]
    content = b""
    for place, size in zip(places, (first, _STACKS.size - first), strict=False):
        reply = None if place is None else (yield from ask(ReadPhysical(place, size)))
        if not isinstance(reply, ReadPhysicalReply):
            return None
        content += reply.data
    return _STACKS.unpack(content)
