"""The guest's process: one thread that gives the guest its slices and listens to the tool and the console in between.

While the guest has something to do, sockets are looked at between two slices, which take well under a millisecond.
When it has nothing to do, the process sleeps until the tool, the console, a signal, or the next timer tick.
"""

from __future__ import annotations

import random
import selectors
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from policyc.addresses import Gpa
from policyc.emulator.console import Console
from policyc.emulator.console_input import ConsoleInput
from policyc.emulator.image import SLIDE_ALIGNMENT, SLIDE_LIMIT
from policyc.emulator.introspection import Behaviour, Introspection
from policyc.emulator.link import Link
from policyc.emulator.script import Script
from policyc.emulator.small_machine import SmallMachine
from policyc.kvmi import DIALECTS, V12, Hello, HelloForm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from policyc.emulator.machine import Machine
    from policyc.emulator.options import GuestOptions
    from policyc.emulator.recorder import Recorder

__all__ = ["Loop"]

_LATE_MAX: Final = 1.0
"""Seconds of missed timer ticks that are caught up with; what is older is let go."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Loop:
    """A guest, its connection and its console.

    Args:
        secret: contents of the cookie file, or None.
        recorder: writes down what is said on the socket.
    """

    def __init__(
        self,
        options: GuestOptions,
        secret: bytes | None,
        console: TextIO,
        out: TextIO,
        recorder: Recorder | None = None,
    ) -> None:
        self._options = options
        self._secret = secret
        self._out = Console(out, as_json=options.json)
        self._input = ConsoleInput(console)
        self._machine: Machine = self._new_machine()
        self._script = Script(self._machine.routines, options.attacks, self._out)
        self._started = int(time.time())
        self._link = Link(options.socket, options.reconnect, recorder) if options.socket is not None else None
        self._recorder = recorder
        self._session: Introspection | None = None
        self._selector = selectors.DefaultSelector()
        self._heard = time.monotonic()
        self._next_tick = self._heard + options.tick
        self._problem: str | None = None
        self._firmware_ends: float | None = self._heard + options.firmware if options.firmware else None
        self._stop = False
        self._commands: Mapping[str, Callable[[], None]] = {
            "status": self._status,
            "list": lambda: self._out.routines(self._machine.routines),
            "help": self._out.help,
            "unhook": self._unhook,
            "reset": self._reset,
            "boot": self._boot,
            "stop": self._pause_machine,
            "cont": self._continue_machine,
            "quit": self._quit,
        }

    def run(self) -> int:
        """Run until told to end: 0, or 1 if the machine ended by itself."""
        with self._signals() as wakeup, self._selector:
            self._selector.register(wakeup, selectors.EVENT_READ, self._quit)
            if self._input.descriptor is not None:
                self._selector.register(self._input.descriptor, selectors.EVENT_READ, self._read_console)
            self._obey()
            while not self._stop:
                self._turn()
            self._drop("the guest's process ends")
        failure = self._machine.failure
        if failure is None:
            return 0
        self._script.forget(failure)
        self._out.say("failure", f"the machine stopped: {failure}", reason=failure)
        return 1

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience(time.monotonic())):
            key.data()
        now = time.monotonic()
        self._connect(now)
        self._tick(now)
        self._machine.run()
        self._release(now)
        queued = self._script.advance(self._machine, now)
        if queued is not None:
            self._commands[queued.word]()
        self._speak()
        finished = self._options.once and self._script.exhausted and (self._input.ended or self._input.terminal)
        if finished or self._machine.failure is not None:
            self._stop = True

    def _patience(self, now: float) -> float:
        """How long there is nothing to do but to listen, in seconds."""
        if not self._machine.idle or self._script.due(self._machine):
            return 0
        times = [self._next_tick]
        if self._link is not None and (attempt := self._link.next_try()) is not None:
            times.append(attempt)
        return max(min(times) - now, 0)

    # --- the machine ---

    def _new_machine(self) -> Machine:
        options = self._options
        slide = options.slide
        if slide is None:
            slide = random.SystemRandom().randrange(0, SLIDE_LIMIT + 1, SLIDE_ALIGNMENT)
        create = SmallMachine if options.firmware else SmallMachine.boot
        return create(slide=slide, ram=options.ram_mib << 20, cpu=options.cpu)

    def _boot(self) -> None:
        if self._firmware_ends is not None:
            self._firmware_ends = None
            self._machine.power_on()

    def _tick(self, now: float) -> None:
        if self._firmware_ends is not None and now >= self._firmware_ends:
            self._boot()
        if now < self._next_tick:
            return
        self._machine.tick()
        self._write_down()
        self._next_tick += self._options.tick
        if now - self._next_tick > _LATE_MAX:
            self._next_tick = now + self._options.tick

    def _write_down(self) -> None:
        """What has been recorded goes to the file at every tick, so that little is lost if the process is killed."""
        if self._recorder is None:
            return
        self._recorder.flush()
        if self._recorder.problem is not None:
            self._out.say("error", f"nothing is recorded any more: {self._recorder.problem}")
            self._recorder = None

    # --- the tool ---

    def _connect(self, now: float) -> None:
        link = self._link
        if link is None:
            return
        if link.connect(now) and link.socket is not None:
            self._selector.register(link.socket, selectors.EVENT_READ, self._hear)
            self._session = Introspection(
                self._machine,
                DIALECTS[self._options.dialect],
                self._hello(),
                secret=self._secret,
                behaviour=Behaviour(self._options.deaf_frames, self._options.crash_ignored, self._options.views),
            )
            self._heard = now
            self._problem = None
            self._out.say("connected", f"connected to {self._options.socket}", socket=str(self._options.socket))
        elif link.problem != self._problem:
            self._problem = link.problem
            self._out.say("waiting", f"no tool yet: {link.problem}", reason=link.problem)

    def _hello(self) -> Hello:
        newer = self._options.dialect == V12.name
        return Hello(
            uuid=self._options.uuid.bytes,
            name=self._options.name,
            start_time=self._started,
            max_gpa=Gpa(self._machine.memory.size) if newer else None,
            form=HelloForm.V12 if newer else HelloForm.V7,
        )

    def _hear(self) -> None:
        link, session = self._link, self._session
        if link is None or session is None or (data := link.receive()) is None:
            return
        self._heard = time.monotonic()
        session.receive(data)
        self._speak()

    def _speak(self) -> None:
        link, session = self._link, self._session
        if link is None or session is None or link.socket is None:
            return
        if not link.send(session.outgoing()):
            session.end("the tool no longer reads")
        if session.ended is not None:
            self._drop(session.ended)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.sending else 0)
        if self._selector.get_key(link.socket).events != wanted:
            self._selector.modify(link.socket, wanted, self._hear if not link.sending else self._both)

    def _both(self) -> None:
        self._hear()
        self._speak()

    def _drop(self, reason: str) -> None:
        """End the conversation and the connection; the next attempt comes after the reconnect time."""
        link, session = self._link, self._session
        if link is None or session is None:
            return
        session.end(reason)
        self._session = None
        if link.socket is not None:
            self._selector.unregister(link.socket)
        link.close(time.monotonic())
        self._out.say("disconnected", f"connection ended: {session.ended}", reason=session.ended)

    def _release(self, now: float) -> None:
        """Let the attacks begin: at once without a socket, when the tool has armed, or when it is taking too long."""
        session = self._session
        quiet = now - self._heard >= self._options.settle
        if self._link is None or (session is not None and session.armed) or (quiet and not self._unanswered()):
            self._script.release()

    def _unanswered(self) -> int:
        return self._session.unanswered if self._session is not None else 0

    # --- the console ---

    def _read_console(self) -> None:
        self._input.read()
        if self._input.ended and self._input.descriptor is not None:
            self._selector.unregister(self._input.descriptor)
        self._obey()

    def _obey(self) -> None:
        for line in self._input.lines():
            self._script.take(line)

    def _status(self) -> None:
        machine, session = self._machine, self._session
        connection = "no socket" if self._link is None else "waiting for the tool"
        if session is not None:
            connection = "armed" if session.armed else "connected" if session.hooked else "greeting"
        waiting = [vcpu.waiting.kind.value for vcpu in machine.vcpus if vcpu.waiting is not None]
        guest = "booting" if not machine.booted else "running"
        if machine.panicked is not None:
            guest = f"panicked on exception {machine.panicked}"
        elif waiting:
            guest = f"standing still until {', '.join(waiting)} is answered"
        jiffies = machine.read_int("jiffies")
        self._out.say(
            "status",
            f"guest {guest}, jiffies {jiffies}, slide {machine.slide:#x}, {len(machine.memory.rights)} frames"
            f" restricted, {machine.events_sent} events, {connection}",
            guest=guest,
            jiffies=jiffies,
            slide=machine.slide,
            restricted=len(machine.memory.rights),
            events=machine.events_sent,
            instructions=machine.instructions,
            connection=connection,
        )

    def _unhook(self) -> None:
        if self._session is not None:
            self._session.unhook()
            self._speak()
        else:
            self._out.say("error", "there is no connection to unhook")

    def _reset(self) -> None:
        self._drop("the machine was reset")
        self._script.forget("the machine was reset")
        self._machine = self._new_machine()
        self._started = int(time.time())
        if self._options.firmware:
            self._firmware_ends = time.monotonic() + self._options.firmware

    def _pause_machine(self) -> None:
        self._machine.stopped = True

    def _continue_machine(self) -> None:
        self._machine.stopped = False

    def _quit(self) -> None:
        self._stop = True

    @contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """A socket that becomes readable when the process is told to end."""
        wakeup, sender = socket.socketpair()
        with wakeup, sender:
            sender.setblocking(False)
            if threading.current_thread() is not threading.main_thread():
                yield wakeup
                return
            previous = {number: signal.signal(number, _noticed) for number in _SIGNALS}
            descriptor = signal.set_wakeup_fd(sender.fileno())
            try:
                yield wakeup
            finally:
                signal.set_wakeup_fd(descriptor)
                for number, handler in previous.items():
                    signal.signal(number, handler)


def _noticed(_number: int, _frame: object) -> None:
    """The wake-up socket has it; without a handler the signal would end the process on the spot."""
