"""Events answered per second by what is done to them, beside a loop that does nothing but send the same bytes back.

What is measured is the tool: its session and enforcer, with the peer's side as bare as it can be. A process lets the
session arm itself, then plays back what a kernel says about one event, over a socket pair: ready-made bytes with their
numbers exchanged, each part when the tool's part before it has come. What a kernel says, and in how many round trips,
is recorded anew at each start from a conversation with the scripted kernel of the tests, so it's what the enforcer asks
today. A fault includes the TRAP event that confirms it. Each kind runs in turn with the bare loop, several rounds; what
counts is the ratio within a round, since absolute figures move with the machine.

    python benchmarks/mechanisms.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.reply_loop import bare_rate, in_child
from policyc.addresses import Gva
from policyc.kvmi import V7, EventKind, PageAccess, PfData, TrapData
from policyc.runtime.enforcer import step
from policyc.runtime.session import Session
from policyc.runtime.state import State
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, ScriptedKernel, compile_plan, gpa_of

POLICY = """
text: deny write to kernel .text except from kernel:__text_poke because "the kernel patches itself"
object: deny write to kernel:guarded_object
table: log write to kernel:sys_call_table
"""
STORE = bytes.fromhex("488903")  # mov [rbx], rax
EXCHANGE = bytes.fromhex("488703")  # xchg [rbx], rax
MODULE = 0xFFFFFFFFC0401000
STACK = 0xFFFFFFFFC0402800
MEMCPY, TEXT_POKE, SCHEDULE = IMAGE_BASE + 0x1300, IMAGE_BASE + 0x1240, IMAGE_BASE + 0x1000
TABLE, OBJECT, BESIDE = IMAGE_BASE + 0x4280, IMAGE_BASE + 0x6104, IMAGE_BASE + 0x6800
CALLER = (TEXT_POKE + SLIDE + 8).to_bytes(8, "little")
HEADER = struct.Struct("<HHI")
SEQ = struct.Struct("<I")
SEQ_AT = 4
EVENTS = (V7.framing.vcpu_event, V7.framing.event_reply)
WARM = 3
"""Events before the one that is recorded: what is remembered of code is remembered then."""


@dataclass(frozen=True)
class Kind:
    """An event, and what the module's code is when it comes.

    Attributes:
        target: link address that is written.
        trapped: the kernel confirms an injected exception afterwards.
    """

    target: int
    rip: int = MODULE
    code: bytes = STORE
    trapped: bool = False


KINDS = {
    "collateral": Kind(BESIDE),
    "logged": Kind(TABLE),
    "excepted": Kind(SCHEDULE + 0x10, TEXT_POKE + SLIDE),
    "excepted through memcpy": Kind(SCHEDULE + 0x10, MEMCPY + SLIDE),
    "skipped": Kind(OBJECT),
    "faulted": Kind(OBJECT, code=EXCHANGE, trapped=True),
}


@dataclass(frozen=True)
class Part:
    """Bytes that one side said at once.

    Attributes:
        numbers: of each message, where its number is, which, and whether it is an event's.
    """

    by_kernel: bool
    data: bytes
    numbers: tuple[tuple[int, int, bool], ...]


def part_of(data: bytes, *, by_kernel: bool) -> Part:
    """Find the messages in bytes that came at once."""
    numbers: list[tuple[int, int, bool]] = []
    at = 0
    while at < len(data):
        message_id, size, number = HEADER.unpack_from(data, at)
        numbers.append((at + SEQ_AT, number, message_id in EVENTS))
        at += HEADER.size + size
    return Part(by_kernel, data, tuple(numbers))


def kernel_for(kind: Kind) -> ScriptedKernel:
    """A guest with a module's code, and a stack whose top is a return address in __text_poke."""
    kernel = ScriptedKernel(V7)
    for address, offset, content in ((MODULE, 0, kind.code), (STACK, STACK & 0xFFF, CALLER)):
        page = kernel.memory.new_page()
        kernel.memory.map(kernel.root, address & ~0xFFF, page)
        kernel.memory.write(page + offset, content)
    return kernel


def say(kernel: ScriptedKernel, kind: Kind) -> None:
    """Let the kernel send the event."""
    fault = PfData(Gva(kind.target + SLIDE), gpa_of(kind.target), PageAccess.W)
    kernel.kernel.send_event(EventKind.PF, 0, kernel.vcpu_state(kind.rip, STACK), fault)


def confirm(kernel: ScriptedKernel) -> None:
    """Let the kernel say that #GP was delivered."""
    kernel.kernel.send_event(EventKind.TRAP, 0, kernel.vcpu_state(MODULE, STACK), TrapData(13, 0, 0))


def recorded(kind: Kind) -> list[Part]:
    """What both sides say about one such event, in order."""
    talk = Conversation(compile_plan(POLICY), kernel_for(kind))
    talk.connect()
    parts: list[Part] = []
    kernel_reads, tool_reads = talk.peer.kernel_reads, talk._tool_reads

    def to_kernel(data: bytes) -> None:
        parts.append(part_of(data, by_kernel=False))
        kernel_reads(data)

    def to_tool(data: bytes) -> None:
        parts.append(part_of(data, by_kernel=True))
        tool_reads(data)

    talk.peer.kernel_reads, talk._tool_reads = to_kernel, to_tool  # type: ignore[method-assign]  # eavesdropping
    for _ in range(WARM + 1):
        parts.clear()
        say(talk.peer, kind)
        talk.talk()
        if kind.trapped:
            confirm(talk.peer)
            talk.talk()
    return parts


def play_kernel(link: socket.socket, kind: Kind, parts: list[Part], events: int, report: int) -> None:
    """Be armed by the session, then play the kernel's parts; writes the seconds they took to `report`."""
    kernel = kernel_for(kind)
    kernel.greet()
    while not (kernel.rights and not kernel.kernel.waiting and kernel.log[-1] == "SetPageAccess"):
        link.sendall(b"".join(kernel.kernel.data_to_send()))
        kernel.kernel_reads(link.recv(65536))
    say(kernel, kind)
    _, _, number = HEADER.unpack_from(b"".join(kernel.kernel.data_to_send()))
    begin = time.perf_counter()
    for _ in range(events):
        number = play(link, parts, number)
    os.write(report, struct.pack("<d", time.perf_counter() - begin))


def play(link: socket.socket, parts: list[Part], number: int) -> int:
    """One event; the number that the next one gets."""
    known: dict[tuple[int, bool], int] = {}
    for part in parts:
        if part.by_kernel:
            message = bytearray(part.data)
            for at, old, of_event in part.numbers:
                if of_event:
                    known[old, True] = number
                    number += 1
                SEQ.pack_into(message, at, known[old, of_event])
            link.sendall(message)
            continue
        received = link.recv(len(part.data))
        while len(received) < len(part.data):
            received += link.recv(len(part.data) - len(received))
        for at, old, of_event in part.numbers:
            (new,) = SEQ.unpack_from(received, at)
            if known.setdefault((old, of_event), new) != new:
                raise SystemExit(f"event {known[old, of_event]} was answered as {new}")
    return number


def session_rate(kind: Kind, parts: list[Part], events: int) -> float:
    """Events per second of the product's own loop."""
    plan = compile_plan(POLICY)

    def serve(link: socket.socket) -> None:
        Session(State(plan), step, link, lambda record: None).run()

    return events / in_child(lambda link, report: play_kernel(link, kind, parts, events, report), serve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds")
    events, rounds = (2000, 3) if parser.parse_args().quick else (10000, 7)
    conversations = {name: recorded(kind) for name, kind in KINDS.items()}
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
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "round_trips": sum(not part.by_kernel for part in conversations[name]),
        }
        for name, values in ratios.items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
