"""Events answered per second by the reply loop, beside a loop that does nothing but send the same bytes back.

A process plays the kernel: it lets itself be armed, then sends one page fault after the other, each when the last is
answered, over a socket pair. Against it run, in turn and several rounds each: the session with its enforcer for a
collateral write (the common case), a bare Python loop that answers the same ready-made events with ready-made bytes,
and the session for a denied write, whose round trips the playing kernel answers in Python as well. The session runs
without its self-test and its periodic look at guarded bytes, which answer no event. What counts is the ratio within a
round; absolute figures move with the machine.

    python benchmarks/reply_loop.py [--quick | --least]
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from benchmarks.exchange import WARM, Kind, played_seconds, recorded
from benchmarks.kernel_process import Peer, bare_rate, guarded_seconds
from benchmarks.spread import spread
from tests.support.scripted_kernel import IMAGE_BASE, compile_plan

POLICY = "deny write to kernel .text\ndeny write to kernel:guarded_object"
COLLATERAL = Kind(IMAGE_BASE + 0x6800)
DENIED = Kind(IMAGE_BASE + 0x1005)
AMOUNTS = {"full": (20000, 7), "quick": (3000, 3), "least": (20, 1)}
"""Events of a round, and rounds."""


def collateral_rate(events: int) -> float:
    """Events per second of the product's own loop, against ready-made bytes."""
    plan = compile_plan(POLICY)
    parts = recorded(plan, COLLATERAL)
    return events / guarded_seconds(
        plan, COLLATERAL.kernel(), lambda peer: played_seconds(peer, COLLATERAL, parts, events)
    )


def denied_rate(events: int) -> float:
    """Events per second of the product's own loop, against the scripted kernel."""

    def play(peer: Peer) -> float:
        for rax in range(WARM):
            peer.raise_event(functools.partial(DENIED.say, rax=rax))
        begin = time.perf_counter()
        for rax in range(WARM, WARM + events):
            peer.raise_event(functools.partial(DENIED.say, rax=rax))
        return time.perf_counter() - begin

    return events / guarded_seconds(compile_plan(POLICY), DENIED.kernel(), play)


def main() -> None:
    events, rounds = AMOUNTS[parser_for(__doc__).parse_args().amount]
    ratios: dict[str, list[float]] = {"collateral": [], "denied": []}
    for number in range(rounds):
        bare = bare_rate(events)
        collateral = collateral_rate(events)
        denied = denied_rate(events // 4)
        ratios["collateral"].append(collateral / bare)
        ratios["denied"].append(denied / bare)
        print(f"round {number + 1}: bare {bare:8.0f}/s  collateral {collateral:8.0f}/s  denied {denied:8.0f}/s")
    print(json.dumps({f"{name}_vs_bare": spread(values) for name, values in ratios.items()}))


if __name__ == "__main__":
    main()
