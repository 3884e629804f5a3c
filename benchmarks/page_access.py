"""How fast the rights of guest frames go out: SET_PAGE_ACCESS encoded and sent, against the same bytes sent bare.

A process at the other end of a socket pair reads everything and acknowledges the last byte. The variants take turns,
round after round, so that all see the same machine; a ratio is the median of the rounds' own. Below 2, encoding costs
less than moving the bytes.

The last line of the output is a JSON object with the ratios.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from policyc.addresses import Gfn
from policyc.kvmi import (
    NEED_DATA,
    V7,
    CommandReceived,
    GetVersionReply,
    Hello,
    KernelConnection,
    PageAccess,
    PageRun,
    ToolConnection,
    set_pages,
)

AMOUNTS = {"full": (1_000_000, 7), "quick": (100_000, 3), "least": (1_000, 1)}
"""Pages of a round, and rounds."""

READ_SIZE = 1 << 20
WRITE_SIZE = 1 << 17
"""Bytes in one write: sixteen full messages, about as much as a socket buffer takes."""


@dataclass(frozen=True, slots=True)
class Job:
    """Runs of frames, and the bytes that they become."""

    runs: Sequence[PageRun]
    data: bytes

    @classmethod
    def of(cls, runs: Sequence[PageRun]) -> Job:
        """Encode once, to have something to send bare."""
        return cls(runs, b"".join(encode(runs)))


def main() -> None:
    """Measure and print."""
    pages, rounds = AMOUNTS[parser_for(__doc__).parse_args().amount]
    long_runs = Job.of([PageRun(Gfn(first), 1000, PageAccess.RX) for first in range(0, pages, 1000)])
    single = Job.of([PageRun(Gfn(2 * number), 1, PageAccess.R) for number in range(pages // 10)])
    ratios: dict[str, list[float]] = {"runs_to_bare": [], "single_pages_to_bare": [], "encoding_to_bare": []}
    best = float("inf")
    with sink() as peer:
        for _ in range(rounds):
            bare = timed(lambda: send_bare(peer, long_runs))
            whole = timed(lambda: send_encoded(peer, long_runs))
            bare_single = timed(lambda: send_bare(peer, single))
            whole_single = timed(lambda: send_encoded(peer, single))
            alone = timed(lambda: encode(long_runs.runs))
            best = min(best, whole)
            ratios["runs_to_bare"].append(whole / bare)
            ratios["single_pages_to_bare"].append(whole_single / bare_single)
            ratios["encoding_to_bare"].append(alone / bare)
    print(f"{pages:,} pages in runs of 1000: {pages / best:,.0f} pages/s, best of {rounds} rounds")
    for name, values in ratios.items():
        print(f"{name}: {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    print(json.dumps({name: round(statistics.median(values), 3) for name, values in ratios.items()}))


def encode(runs: Sequence[PageRun]) -> list[bytes]:
    """The messages, as a tool would send them."""
    tool = opened()
    for command in set_pages(runs):
        tool.send(command)
    return tool.data_to_send()


def send_bare(peer: socket.socket, job: Job) -> None:
    """Only move the bytes."""
    peer.sendall(len(job.data).to_bytes(8, "little"))
    view = memoryview(job.data)
    for start in range(0, len(view), WRITE_SIZE):
        peer.sendall(view[start : start + WRITE_SIZE])
    peer.recv(1)


def send_encoded(peer: socket.socket, job: Job) -> None:
    """Encode, check and send, some messages at a time, as `policyc run` does when it arms."""
    peer.sendall(len(job.data).to_bytes(8, "little"))
    tool = opened()
    for number, command in enumerate(set_pages(job.runs), 1):
        tool.send(command)
        if number % 16 == 0:
            peer.sendall(b"".join(tool.data_to_send()))
    peer.sendall(b"".join(tool.data_to_send()))
    peer.recv(1)


def timed(job: Callable[[], object]) -> float:
    """Seconds that a job takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def opened() -> ToolConnection:
    """An open connection; its kernel has said all that it will say."""
    tool, kernel = ToolConnection(), KernelConnection(V7, 1)
    kernel.send_hello(Hello(bytes(16)))
    tool.receive_data(b"".join(kernel.data_to_send()))
    tool.next_event()
    tool.answer_hello()
    kernel.receive_data(b"".join(tool.data_to_send()))
    for event in iter(kernel.next_event, NEED_DATA):
        if isinstance(event, CommandReceived):
            kernel.answer(event, GetVersionReply())
    tool.receive_data(b"".join(kernel.data_to_send()))
    tool.next_event()
    return tool


@contextmanager
def sink() -> Iterator[socket.socket]:
    """A process that reads as many bytes as it is told, forgets them, and acknowledges with one."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        drain(theirs)
        os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.waitpid(child, 0)


def drain(peer: socket.socket) -> None:
    """The other process: read one announced job after the other until the stream ends."""
    buffer = bytearray(READ_SIZE)
    while len(head := peer.recv(8, socket.MSG_WAITALL)) == 8:
        left = int.from_bytes(head, "little")
        while left:
            left -= peer.recv_into(buffer, min(left, READ_SIZE))
        peer.send(b"\0")


if __name__ == "__main__":
    main()
