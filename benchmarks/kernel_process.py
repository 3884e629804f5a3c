"""A process that plays the kernel to the real session, over a socket pair, and takes the time.

The kernel is the scripted one of the tests, which answers whatever the tool asks, whenever it asks. That the guest is
guarded is what the tool says itself: its session tells the process so through a pipe. The tool is armed without its
self-test and without the look at guarded bytes that comes every 30 seconds: neither is part of answering an event, and
both would take their time at a moment of their own.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
import traceback
from collections.abc import Callable

from policyc.kvmi import V7
from policyc.kvmi.framing import HEADER
from policyc.plan.model import Plan
from policyc.runtime.enforcer import step
from policyc.runtime.locate import ArmingOptions
from policyc.runtime.records import Record
from policyc.runtime.session import Session
from policyc.runtime.state import State
from policyc.runtime.transport import set_timeout
from tests.support.scripted_kernel import ScriptedKernel

__all__ = ["QUIET", "Peer", "bare_rate", "guarded_seconds", "in_child"]

QUIET = ArmingOptions(self_test=False, verify=0)
"""The tool asks nothing but what an event wants."""

READ_SIZE = 1 << 16
SILENCE = 20.0
"""Seconds without a word of the tool, after which the process gives up: no benchmark hangs."""

EVENT_BYTES = 576
REPLY_BYTES = 24
_SECONDS = struct.Struct("<d")
_BARE_REPLY = HEADER.pack(0, REPLY_BYTES - HEADER.size, 1) + bytes(REPLY_BYTES - HEADER.size)


class Peer:
    """The kernel's end of the socket pair.

    Attributes:
        link: the socket.
        kernel: answers what the tool asks.
    """

    def __init__(self, link: socket.socket, kernel: ScriptedKernel) -> None:
        self.link = link
        self.kernel = kernel
        self._unread = b""

    def be_armed(self, told: int) -> None:
        """Greet the tool and answer it until there is something to read at `told`, and every vCPU runs on.

        Args:
            told: a file descriptor.
        """
        self.kernel.greet()
        self._send()
        while told not in select.select([self.link.fileno(), told], [], [], SILENCE)[0]:
            self.serve()
        # What the tool sent before it said so may not have been read yet.
        while self.kernel.kernel.waiting:
            self.serve()

    def raise_event(self, say: Callable[[ScriptedKernel], object]) -> None:
        """Let the scripted kernel send an event, and answer the tool until it and what follows it are answered."""
        answered = len(self.kernel.answers)
        say(self.kernel)
        self._send()
        while len(self.kernel.answers) == answered or self.kernel.kernel.waiting:
            self.serve()

    def serve(self) -> None:
        """Take in what the tool says next, and answer."""
        data, self._unread = self._unread or self._receive(), b""
        self.kernel.kernel_reads(data)
        self._send()

    def message(self) -> bytes:
        """The tool's next message, unanswered."""
        unread = self._unread
        while len(unread) < HEADER.size or len(unread) < (end := HEADER.size + HEADER.unpack_from(unread)[1]):
            unread += self._receive()
        self._unread = unread[end:]
        return unread[:end]

    def answer_aside(self, message: bytes) -> None:
        """Answer a command that isn't part of what is being played.

        Raises:
            SystemExit: it is the reply to an event.
        """
        if HEADER.unpack_from(message)[0] == V7.framing.event_reply:
            raise SystemExit(f"the tool answered an event in a way that it didn't before: {message.hex()}")
        self.kernel.kernel_reads(message)
        self._send()

    def _receive(self) -> bytes:
        data = self.link.recv(READ_SIZE)
        if not data:
            raise SystemExit("the tool hung up")
        return data

    def _send(self) -> None:
        self.link.sendall(b"".join(self.kernel.kernel.data_to_send()))


def in_child(play: Callable[[socket.socket], float], serve: Callable[[socket.socket], str]) -> float:
    """Run `play` in a process at one end of a socket pair and `serve` here at the other.

    Returns:
        The seconds that `play` returned.

    Raises:
        SystemExit: the process came to no end; what `serve` returned is in the message.
    """
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        ours.close()
        _play_and_exit(play, theirs, writing)
    theirs.close()
    # As long as this process holds it open too, reading would wait for a process that has failed.
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        said = serve(ours)
        seconds = report.read()
    os.waitpid(child, 0)
    if len(seconds) != _SECONDS.size:
        raise SystemExit(f"the process that plays the kernel failed; at the other end: {said}")
    return float(_SECONDS.unpack(seconds)[0])


def _play_and_exit(play: Callable[[socket.socket], float], link: socket.socket, report: int) -> None:
    """What the process does: it never returns into the benchmark, whose copy it is."""
    code = 1
    try:
        set_timeout(link, SILENCE)
        os.write(report, _SECONDS.pack(play(link)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def guarded_seconds(
    plan: Plan, kernel: ScriptedKernel, play: Callable[[Peer], float], arming: ArmingOptions = QUIET
) -> float:
    """Have the session guard the kernel by this plan, and then `play`; the seconds that `play` returns."""
    told, tell = os.pipe()
    state = State(plan, arming=arming)
    armed: list[Record] = []

    def on_record(record: Record) -> None:
        # The session hands records over when what goes with them is sent.
        if state.is_guarding and not armed:
            armed.append(record)
            os.write(tell, b"\0")

    def serve(link: socket.socket) -> str:
        return Session(state, step, link, on_record).run().reason

    def begin(link: socket.socket) -> float:
        peer = Peer(link, kernel)
        peer.be_armed(told)
        return play(peer)

    try:
        return in_child(begin, serve)
    finally:
        os.close(told)
        os.close(tell)


def bare_rate(events: int) -> float:
    """Events per second of a loop that answers ready-made bytes without looking."""

    def serve(link: socket.socket) -> str:
        with link:
            while link.recv(READ_SIZE):
                link.sendall(_BARE_REPLY)
        return "a loop that looks at nothing"

    return events / in_child(lambda link: _echo_seconds(link, events), serve)


def _echo_seconds(link: socket.socket, events: int) -> float:
    """Send a ready-made message and wait for 24 bytes, so often."""
    message = bytes(EVENT_BYTES)
    begin = time.perf_counter()
    for _ in range(events):
        link.sendall(message)
        link.recv(READ_SIZE)
    return time.perf_counter() - begin
