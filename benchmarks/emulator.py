"""How fast the emulated guest and its kernel are, each beside what shows what it costs.

One process, one thread, a socket pair: the guest repeats one instruction that raises an event, and the tool's side
answers with ready-made bytes, so what is measured is the emulator. In the same round run: a bare echo of the same
bytes over the same kind of socket pair; the guest's plain loop alone, and the same with frames restricted that it
doesn't touch. Start-up is from nothing to a guest that idles. What counts are the ratios within a round; absolute
figures move with the machine.

    python benchmarks/emulator.py [--quick | --least]
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from benchmarks.spread import spread
from policyc.addresses import Gpa
from policyc.emulator.introspection import Introspection
from policyc.emulator.small_machine import SmallMachine
from policyc.kvmi import (
    V7,
    Action,
    Command,
    ControlEvents,
    ControlMsr,
    EventKind,
    EventReplyData,
    Hello,
    NewValue,
    PageAccess,
    set_page,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER
from policyc.kvmi.handshake import encode_answer
from tests.support.recorded_guest import RecordedGuest

CODE = 0x40_0000
DATA = 0x41_0000
LSTAR = 0xC000_0082
RESTRICTED = range(0x42_0000, 0x43_0000, 0x1000)
SPIN = bytes.fromhex("48ffc0 ebfb")  # inc rax; jmp
STORE = bytes.fromhex("48890b ebfb")  # mov [rbx], rcx; jmp
WRMSR = bytes.fromhex("4883f008 b9820000c0 31d2 0f30 ebf1")  # xor rax, 8; mov ecx, lstar; xor edx, edx; wrmsr; jmp
HYPERCALL = bytes.fromhex("b822000000 bf18000000 31f6 0f01c1 ebef")  # rax 34, rdi 24, rsi 0; vmcall; jmp

AMOUNTS = {"full": (5000, 400, 7), "quick": (500, 50, 3), "least": (10, 2, 1)}
"""Events, slices of instructions, and rounds."""

Way = tuple[bytes, EventKind, tuple[Command, ...], EventReplyData | None]

WAYS: dict[str, Way] = {
    "page_faults": (STORE, EventKind.PF, (set_page(Gpa(DATA), PageAccess.R),), None),
    # Every answer keeps the value 0, so each write is a change again.
    "wrmsr": (WRMSR, EventKind.MSR, (ControlMsr(0, LSTAR, True),), NewValue(0)),
    "hypercalls": (HYPERCALL, EventKind.HYPERCALL, (), None),
}


def guest_with(code: bytes) -> tuple[RecordedGuest, Introspection]:
    """A guest that runs this loop and nothing else, and a connection that has been greeted."""
    guest = RecordedGuest(cpu="intel")
    guest.memory.write(Gpa(CODE), code)
    engine = guest.vcpus[0].engine
    for name, value in (("rip", CODE), ("rbx", DATA), ("rax", 0)):
        engine.set(name, value)
    session = Introspection(guest, V7, Hello(bytes(16), "bench"))
    session.outgoing()
    session.receive(encode_answer(None))
    return guest, session


def tell(session: Introspection, commands: tuple[Command, ...]) -> None:
    for command in commands:
        session.receive(codec_of(V7).command(command).encode(command, 1))
    session.outgoing()


def event_rate(way: Way, events: int) -> tuple[float, int]:
    """Events a second, each over the socket pair and back; bytes of one event."""
    code, kind, commands, data = way
    guest, session = guest_with(code)
    tell(session, (ControlEvents(0, kind, True), *commands))
    shape = codec_of(V7).events.shapes[V7.events[kind].id]
    kernel, tool = socket.socketpair()
    size = 0
    with kernel, tool:
        start = time.perf_counter()
        for _ in range(events):
            while not (said := session.outgoing()):
                guest.run()
            kernel.sendall(said)
            heard = tool.recv(65536)
            size = len(heard)
            tool.sendall(shape.reply(HEADER.unpack_from(heard)[2], 0, Action.CONTINUE, data))
            session.receive(kernel.recv(65536))
        return events / (time.perf_counter() - start), size


def echo_rate(size: int, events: int) -> float:
    """Messages of that size a second there and a short one back, by one thread, with nothing between."""
    message, reply = bytes(size), bytes(24)
    kernel, tool = socket.socketpair()
    with kernel, tool:
        start = time.perf_counter()
        for _ in range(events):
            kernel.sendall(message)
            tool.recv(65536)
            tool.sendall(reply)
            kernel.recv(65536)
        return events / (time.perf_counter() - start)


def instruction_rate(slices: int, *, guarded: bool) -> float:
    """Instructions a second of a loop in registers."""
    guest, session = guest_with(SPIN)
    if guarded:
        pages = tuple(set_page(Gpa(gpa), PageAccess.R) for gpa in RESTRICTED)
        tell(session, (ControlEvents(0, EventKind.PF, True), *pages))
    guest.run()
    before, start = guest.instructions, time.perf_counter()
    for _ in range(slices):
        guest.run()
    return (guest.instructions - before) / (time.perf_counter() - start)


def start_seconds(times: int) -> float:
    """Seconds from nothing to a guest that idles."""
    start = time.perf_counter()
    for _ in range(times):
        SmallMachine.boot()
    return (time.perf_counter() - start) / times


def main() -> None:
    events, slices, rounds = AMOUNTS[parser_for(__doc__).parse_args().amount]
    SmallMachine.boot()  # what a process does once
    ratios: dict[str, list[float]] = {}
    for number in range(rounds):
        figures = []
        for name, way in WAYS.items():
            rate, size = event_rate(way, events)
            ratios.setdefault(f"{name}_vs_echo", []).append(rate / echo_rate(size, events))
            figures.append(f"{name} {rate:7.0f}/s")
        free = instruction_rate(slices, guarded=False)
        guarded = instruction_rate(slices, guarded=True)
        ratios.setdefault("guarded_vs_free_instructions", []).append(guarded / free)
        figures.append(f"instructions {free / 1e6:5.1f} M/s, guarded {guarded / 1e6:5.1f} M/s")
        figures.append(f"start {start_seconds(5) * 1000:5.1f} ms")
        print(f"round {number + 1}: " + "  ".join(figures))
    print(json.dumps({name: spread(values) for name, values in ratios.items()}))


if __name__ == "__main__":
    main()
