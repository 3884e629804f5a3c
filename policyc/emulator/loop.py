"""The guest's process: one thread that gives the guest its slices and listens to the tool and the console in between.

While the guest has something to do, sockets are looked at between two slices, which take well under a millisecond.
When it has nothing to do, the process sleeps until the tool, the console, a signal, or the next timer tick.
"""

from __future__ import annotations

import selectors
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from policyc.emulator.console import Console, ConsoleError
from policyc.emulator.console_input import ConsoleInput
from policyc.emulator.script import Script
from policyc.emulator.vmm import Vmm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from policyc.emulator.console import ConsoleCommand
    from policyc.emulator.options import GuestOptions
    from policyc.emulator.recorder import Recorder

__all__ = ["Loop"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Loop:
    """A guest, its connection and its console.

    Args:
        secret: contents of the cookie file, or None.
        record: opens what writes down what is said on the socket, once there is a machine; None for nothing.
    """

    def __init__(
        self,
        options: GuestOptions,
        secret: bytes | None,
        console: TextIO,
        out: TextIO,
        record: Callable[[], Recorder | None],
    ) -> None:
        self._options = options
        self._out = Console(out, as_json=options.json)
        self._input = ConsoleInput(console)
        self._vmm = vmm = Vmm(options, secret, self._out, record)
        self._script = Script(vmm.machine.routines, options.attacks, self._out)
        self._selector = selectors.DefaultSelector()
        self._watched: socket.socket | None = None
        self._stop = False
        self._commands: Mapping[str, Callable[[ConsoleCommand], None]] = {
            # Where the guest does it, the script starts it as a routine.
            "online": lambda _: self._no_processors(),
            "offline": lambda _: self._no_processors(),
            "status": lambda _: vmm.status(),
            "list": lambda _: self._out.routines(vmm.machine.routines),
            "help": lambda _: self._out.help(),
            "unhook": lambda _: vmm.unhook(),
            "hangup": lambda command: vmm.hang_up(command.number),
            "reset": lambda _: self._reset(),
            "boot": lambda _: vmm.boot(),
            "stop": lambda _: vmm.stop(),
            "cont": lambda _: vmm.cont(),
            "hotplug": lambda _: vmm.hotplug(),
            "dma": lambda command: vmm.dma(command.symbol, command.offset, command.data),
            "shutdown": lambda _: self._shut_down(),
            "quit": lambda _: self._quit(),
        }

    def run(self) -> int:
        """Run until told to end: 0, or 1 if the machine ended by itself or its kernel has panicked."""
        with self._signals() as wakeup, self._selector:
            self._selector.register(wakeup, selectors.EVENT_READ, self._quit)
            if self._input.descriptor is not None:
                self._selector.register(self._input.descriptor, selectors.EVENT_READ, self._read_console)
            self._obey()
            while not self._stop:
                self._turn()
            failure = self._vmm.machine.failure
            if failure is not None:
                self._script.forget(failure)
                self._out.say("failure", f"the machine stopped: {failure}", reason=failure)
            self._vmm.drop("the guest's process ends")
        return int(failure is not None or self._vmm.panicked is not None)

    def _turn(self) -> None:
        vmm = self._vmm
        for key, _ in self._selector.select(self._patience(time.monotonic())):
            key.data()
        now = time.monotonic()
        vmm.advance(now)
        vmm.machine.run()
        vmm.notice_panic()
        self._release(now)
        queued = self._script.advance(vmm.machine, now)
        if queued is not None:
            self._carry_out(queued)
        vmm.speak()
        self._watch()
        if vmm.machine.failure is not None or (self._options.once and self._script.exhausted and self._unattended):
            self._stop = True

    @property
    def _unattended(self) -> bool:
        """Whether `--once` needn't wait for more lines: none will come, or nothing more comes of them."""
        return self._input.ended or self._input.terminal or self._vmm.panicked is not None

    def _patience(self, now: float) -> float:
        """How long there is nothing to do but to listen, in seconds."""
        vmm = self._vmm
        if not vmm.machine.idle or self._script.due(vmm.machine):
            return 0
        return max(min(vmm.next_deadline(), self._script.deadline) - now, 0)

    def _watch(self) -> None:
        """Listen to the socket that there is now, and for room in it as long as something waits to be sent."""
        link = self._vmm.link
        current = link.socket if link is not None else None
        if self._watched is not None and self._watched is not current:
            self._selector.unregister(self._watched)
            self._watched = None
        if link is None or current is None:
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.sending else 0)
        if self._watched is None:
            self._selector.register(current, wanted, self._vmm.hear)
            self._watched = current
        elif self._selector.get_key(current).events != wanted:
            self._selector.modify(current, wanted, self._vmm.hear)

    def _release(self, now: float) -> None:
        """Let the attacks begin: at once without a socket, when the tool has armed, or when it is taking too long.

        Of a kernel that has panicked they are only told to be lost, for which `--once` needs no tool.
        """
        vmm = self._vmm
        session = vmm.session
        unanswered = session.unanswered if session is not None else 0
        quiet = vmm.quiet_for(now) >= self._options.settle
        armed = session is not None and session.armed
        lost = self._options.once and vmm.panicked is not None
        if vmm.link is None or armed or lost or (quiet and not unanswered):
            self._script.release()

    # --- the console ---

    def _read_console(self) -> None:
        self._input.read()
        if self._input.ended and self._input.descriptor is not None:
            self._selector.unregister(self._input.descriptor)
        self._obey()

    def _obey(self) -> None:
        for line in self._input.lines():
            self._script.take(line)

    def _carry_out(self, command: ConsoleCommand) -> None:
        try:
            self._commands[command.word](command)
        except ConsoleError as error:
            self._out.say("error", str(error))

    def _no_processors(self) -> None:
        raise ConsoleError("this guest has one vCPU, which it neither starts nor takes down")

    def _reset(self) -> None:
        self._script.forget("the machine was reset")
        self._vmm.reset()

    def _shut_down(self) -> None:
        self._vmm.drop("the machine was shut down")
        self._out.say("shutdown", "the machine is off")
        self._quit()

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
