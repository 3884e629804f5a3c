"""Events answered per second by the reply loop, beside a loop that does nothing but send the same bytes back.

A process plays the kernel: it lets itself be armed, then sends one page fault after the other, each when the last is
answered, over a socket pair. Against it run, in turn and several rounds each: the session with its enforcer for a
collateral write (the common case), a bare Python loop that answers the same ready-made events with ready-made bytes,
and the session for a denied write, whose four round trips the playing kernel answers in Python as well. What counts is
the ratio within a round; absolute figures move with the machine.

    python benchmarks/reply_loop.py [--quick]
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from policyc.addresses import Gva
from policyc.kvmi import V7, EventKind, PageAccess, PfData
from policyc.runtime.enforcer import step
from policyc.runtime.session import Session
from policyc.runtime.state import State
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, ScriptedKernel, compile_plan, gpa_of

POLICY = "deny write to kernel .text\ndeny write to kernel:guarded_object"
COLLATERAL = IMAGE_BASE + 0x6800
DENIED = IMAGE_BASE + 0x1005
STORE = bytes.fromhex("488903")
REPLY = struct.Struct("<HHI")
REPLY_BYTES = 24
RAX_MARK = 0x5241_585F_4D41_524B


def play_kernel(link: socket.socket, link_address: int, events: int, report: int, *, raw: bool) -> None:
    """Be armed, then send events and wait for each answer; writes the seconds they took to `report`."""
    kernel = ScriptedKernel(V7)
    module = kernel.memory.new_page()
    kernel.memory.map(kernel.root, 0xFFFFFFFFC0401000, module)
    kernel.memory.write(module, STORE)
    kernel.greet()
    while not (kernel.rights and not kernel.kernel.waiting and kernel.log[-1] == "SetPageAccess"):
        link.sendall(b"".join(kernel.kernel.data_to_send()))
        kernel.kernel_reads(link.recv(65536))
    if raw:
        play_raw(link, kernel, link_address, events, report)
        return
    fault = PfData(Gva(link_address + SLIDE), gpa_of(link_address), PageAccess.W)
    state = kernel.vcpu_state(0xFFFFFFFFC0401000, 0)
    answered = len(kernel.answers)
    begin = time.perf_counter()
    for number in range(events):
        kernel.kernel.send_event(EventKind.PF, 0, state, fault)
        while len(kernel.answers) == answered + number:
            link.sendall(b"".join(kernel.kernel.data_to_send()))
            kernel.kernel_reads(link.recv(65536))
    os.write(report, struct.pack("<d", time.perf_counter() - begin))


def play_raw(link: socket.socket, kernel: ScriptedKernel, link_address: int, events: int, report: int) -> None:
    """From an armed tool's point of view such events, made once and numbered; replies are counted, not decoded.

    RAX counts along: a guest that goes on never sends the same registers again and again.
    """
    fault = PfData(Gva(link_address + SLIDE), gpa_of(link_address), PageAccess.W)
    state = kernel.vcpu_state(0xFFFFFFFFC0401000, 0)
    marked = replace(state, regs=state.regs._replace(rax=RAX_MARK))
    first = kernel.kernel.send_event(EventKind.PF, 0, marked, fault)
    message = bytearray(b"".join(kernel.kernel.data_to_send()))
    rax = message.index(RAX_MARK.to_bytes(8, "little"))
    begin = time.perf_counter()
    for number in range(first, first + events):
        struct.pack_into("<I", message, 4, number)
        struct.pack_into("<Q", message, rax, number)
        link.sendall(message)
        reply = link.recv(65536)
        if len(reply) != REPLY_BYTES or struct.unpack_from("<I", reply, 4) != (number,):
            raise SystemExit(f"event {number} was answered with {reply.hex()}")
    os.write(report, struct.pack("<d", time.perf_counter() - begin))


def play_echo_kernel(link: socket.socket, message: bytes, events: int, report: int) -> None:
    """Send a ready-made message and wait for 24 bytes, so often."""
    begin = time.perf_counter()
    for _ in range(events):
        link.sendall(message)
        link.recv(65536)
    os.write(report, struct.pack("<d", time.perf_counter() - begin))


def in_child(play: Callable[[socket.socket, int], None], serve: Callable[[socket.socket], None]) -> float:
    """Run `play` in a process at one end of a socket pair and `serve` here at the other; the seconds `play` reports."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        ours.close()
        play(theirs, writing)
        theirs.close()
        os._exit(0)
    theirs.close()
    serve(ours)
    os.waitpid(child, 0)
    seconds: float = struct.unpack("<d", os.read(reading, 8))[0]
    os.close(reading)
    os.close(writing)
    return seconds


def session_rate(link_address: int, events: int, *, raw: bool) -> float:
    """Events per second of the product's own loop."""
    plan = compile_plan(POLICY)

    def serve(link: socket.socket) -> None:
        Session(State(plan), step, link, lambda record: None).run()

    return events / in_child(lambda link, report: play_kernel(link, link_address, events, report, raw=raw), serve)


def bare_rate(events: int) -> float:
    """Events per second of a loop that answers ready-made bytes without looking."""
    reply = REPLY.pack(0, 16, 1) + bytes(16)

    def serve(link: socket.socket) -> None:
        with link:
            while link.recv(65536):
                link.sendall(reply)

    return events / in_child(lambda link, report: play_echo_kernel(link, bytes(576), events, report), serve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds")
    events, rounds = (3000, 3) if parser.parse_args().quick else (20000, 7)
    ratios: dict[str, list[float]] = {"collateral": [], "denied": []}
    for number in range(rounds):
        bare = bare_rate(events)
        collateral = session_rate(COLLATERAL, events, raw=True)
        denied = session_rate(DENIED, events // 4, raw=False)
        ratios["collateral"].append(collateral / bare)
        ratios["denied"].append(denied / bare)
        print(f"round {number + 1}: bare {bare:8.0f}/s  collateral {collateral:8.0f}/s  denied {denied:8.0f}/s")
    summary = {
        f"{name}_vs_bare": {
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
        }
        for name, values in ratios.items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
