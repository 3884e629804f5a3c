"""How code that needs guest memory asks for it: a generator yields the frames it wants and is sent their bytes.

Nothing in this package performs I/O. A caller that owns a connection to a guest drives these generators: it batches
each request into as few messages as its protocol allows, and may do other work in between.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from policyc.addresses import PAGE_SIZE, Gfn

__all__ = ["PageReply", "PageRequest", "page_of", "request", "serve"]

Answer = TypeVar("Answer")

PageReply = Mapping[Gfn, bytes | None]
"""For each frame asked for, its 4096 bytes, or None where the guest has no memory there.

A frame that is left out, or whose bytes are of another length, counts as None.
"""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Frames that are needed before the generator can go on: ascending, each once."""

    gfns: tuple[Gfn, ...]


def request(gfns: Iterable[Gfn]) -> PageRequest:
    """The request for `gfns`, sorted and without repetition."""
    return PageRequest(tuple(sorted(set(gfns))))


def page_of(reply: PageReply, gfn: Gfn) -> bytes | None:
    """The bytes of `gfn` in a reply, or None if they are missing or aren't exactly one page."""
    page = reply.get(gfn)
    return page if page is not None and len(page) == PAGE_SIZE else None


def serve(asking: Generator[PageRequest, PageReply, Answer], read: Callable[[Gfn], bytes | None]) -> Answer:
    """Run `asking` to its end, reading each frame with `read`: for callers that hold the memory themselves.

    Args:
        asking: a generator of this package that hasn't been started.
        read: the 4096 bytes of a frame, or None where there is none.
    """
    try:
        wanted = next(asking)
        while True:
            wanted = asking.send({gfn: read(gfn) for gfn in wanted.gfns})
    except StopIteration as end:
        answer: Answer = end.value
        return answer
