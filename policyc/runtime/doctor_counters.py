"""Finds frames of a guest that it writes by itself, often, and harmlessly: those in which counters run.

A write to a protected frame is carried out by KVM's emulator, which doesn't know every instruction, and never sees the
stores that the processor makes itself: to stacks when an interrupt comes, to page tables when they are used. So only
frames count whose every change is a number that grew: no stack, no page table, no list.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from policyc.addresses import PAGE_SIZE

__all__ = ["looks_like_page_table", "runs_counters_only"]

WORDS = struct.Struct(f"<{PAGE_SIZE // 8}Q")

MAX_STEP = 1 << 40
"""How much a counter may grow between two looks: cycles and nanoseconds of a few minutes."""

MAX_COUNTERS = 16
"""Words of one frame that may change; where more do, it isn't a few counters."""

LARGEST = 1 << 63
"""Kernel addresses begin here: a word that holds one is no counter."""

PRESENT = 1
ADDRESS = 0x000F_FFFF_FFFF_F000


def runs_counters_only(samples: Sequence[bytes]) -> bool:
    """Whether this frame, seen a few times, holds counters that grew every time, and nothing else that changed."""
    words = [WORDS.unpack(sample) for sample in samples]
    return all(_is_counting(before, after) for before, after in pairwise(words))


def looks_like_page_table(samples: Sequence[bytes], memory_end: int) -> bool:
    """Whether every word that isn't 0 could be a present entry that leads into guest memory."""
    return all(_is_table(WORDS.unpack(sample), memory_end) for sample in samples)


def _is_counting(before: Sequence[int], after: Sequence[int]) -> bool:
    changes = list(_changes(before, after))
    return 0 < len(changes) <= MAX_COUNTERS and all(
        0 < old < LARGEST and 0 < new - old < MAX_STEP for old, new in changes
    )


def _changes(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[int, int]]:
    return ((old, new) for old, new in zip(before, after, strict=True) if old != new)


def _is_table(words: Iterable[int], memory_end: int) -> bool:
    return all(word & PRESENT and word & ADDRESS < memory_end for word in words if word)
