"""Events answered per second by what is done to them, beside a loop that does nothing but send the same bytes back.

What is measured is the tool: its session and enforcer, with the peer's side as bare as it can be. A process lets the
session arm itself, then plays back what a kernel says about one event, over a socket pair: ready-made bytes with their
numbers and RAX exchanged, each part when the tool's part before it has come. What a kernel says, and in how many round
trips, is recorded anew at each start from a conversation with the scripted kernel of the tests, so it's what the
enforcer asks today; what the tool asks besides is answered by that kernel. A fault includes the TRAP event that
confirms it. The session runs without its self-test and its periodic look at guarded bytes, which answer no event. Each
kind runs in turn with the bare loop, several rounds; what counts is the ratio within a round, since absolute figures
move with the machine.

    python benchmarks/mechanisms.py [--quick | --least]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from benchmarks.exchange import TEXT_POKE, Kind, Part, played_seconds, recorded
from benchmarks.kernel_process import bare_rate, guarded_seconds
from benchmarks.spread import spread
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, compile_plan

POLICY = """
text: deny write to kernel .text except from kernel:__text_poke because "the kernel patches itself"
object: deny write to kernel:guarded_object
table: log write to kernel:sys_call_table
"""
EXCHANGE = bytes.fromhex("488703")  # xchg [rbx], rax
MEMCPY, SCHEDULE = IMAGE_BASE + 0x1300, IMAGE_BASE + 0x1000
TABLE, OBJECT, BESIDE = IMAGE_BASE + 0x4280, IMAGE_BASE + 0x6104, IMAGE_BASE + 0x6800
AMOUNTS = {"full": (10000, 7), "quick": (2000, 3), "least": (20, 1)}
"""Events of a round, and rounds."""

KINDS = {
    "collateral": Kind(BESIDE),
    "logged": Kind(TABLE),
    "excepted": Kind(SCHEDULE + 0x10, TEXT_POKE + SLIDE),
    "excepted through memcpy": Kind(SCHEDULE + 0x10, MEMCPY + SLIDE),
    "skipped": Kind(OBJECT),
    "faulted": Kind(OBJECT, code=EXCHANGE),
}


def session_rate(kind: Kind, parts: list[Part], events: int) -> float:
    """Events per second of the product's own loop."""
    plan = compile_plan(POLICY)
    return events / guarded_seconds(plan, kind.kernel(), lambda peer: played_seconds(peer, kind, parts, events))


def main() -> None:
    events, rounds = AMOUNTS[parser_for(__doc__).parse_args().amount]
    plan = compile_plan(POLICY)
    conversations = {name: recorded(plan, kind) for name, kind in KINDS.items()}
    ratios: dict[str, list[float]] = {name: [] for name in KINDS}
    for number in range(rounds):
        bare = bare_rate(2 * events)
        print(f"round {number + 1}: bare {bare:.0f}/s", end="")
        for name, kind in KINDS.items():
            rate = session_rate(kind, conversations[name], events)
            ratios[name].append(rate / bare)
            print(f"  {name} {rate:.0f}/s", end="")
        print(flush=True)
    summary: dict[str, object] = {
        f"{name.replace(' ', '_')}_vs_bare": {
            **spread(values),
            "round_trips": sum(not part.by_kernel for part in conversations[name]),
        }
        for name, values in ratios.items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
