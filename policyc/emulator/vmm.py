"""The VMM of the guest's process: the machine from power-on to reset, and its connection to the tool, as QEMU keeps it.

Nothing here waits: the loop says what time it is. Source for the life of a connection: accel/kvm/vmi.c of KVM-VMI/qemu.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from policyc.emulator.allowance import allowed_commands, allowed_events
from policyc.emulator.console import ConsoleError, panic_of
from policyc.emulator.greeting import hello_of
from policyc.emulator.introspection import Introspection
from policyc.emulator.link import Link
from policyc.emulator.machine import MachineError
from policyc.emulator.machines import new_machine
from policyc.emulator.startup import Startup
from policyc.kvmi import DIALECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyc.emulator.console import Console
    from policyc.emulator.machine import Machine
    from policyc.emulator.options import GuestOptions
    from policyc.emulator.recorder import Recorder

__all__ = ["Vmm"]

_LATE_MAX: Final = 1.0
"""Seconds of missed timer ticks that are caught up with; what is older is let go."""


class Vmm:
    """A machine and its connection.

    Args:
        secret: contents of the cookie file, or None.
        record: opens what writes down what is said on the socket, or gives None; called once there is a machine, so
            that one that can't be made leaves no file.

    Attributes:
        machine: exchanged by a reset.
        link: the connection's socket; None where there is no tool to connect to.
        session: the conversation, while there is a connection.
        panicked: the exception that the kernel was told to have panicked on; None again for the machine after a reset.
    """

    def __init__(
        self, options: GuestOptions, secret: bytes | None, out: Console, record: Callable[[], Recorder | None]
    ) -> None:
        self._options = options
        self._secret = secret
        self._out = out
        self._dialect = DIALECTS[options.dialect]
        self._commands = allowed_commands(self._dialect, options.allow_commands)
        self._events = allowed_events(self._dialect, options.allow_events)
        self.machine: Machine = new_machine(options)
        self._recorder = record()
        self.link = Link(options.socket, options.reconnect, self._recorder) if options.socket is not None else None
        self.session: Introspection | None = None
        self.panicked: int | None = None
        self._started = int(time.time())
        self._heard = time.monotonic()
        self._next_tick = self._heard + options.tick
        self._boot_at: float | None = self._heard + options.boot if options.boot else None
        self._unhook_by: float | None = None
        self._greeted_by: float | None = None
        self._patience: int | None = None
        self._problem: str | None = None

    # --- time ---

    def next_deadline(self) -> float:
        """When there is something to do although nothing came."""
        times = [self._next_tick, self._boot_at, self._unhook_by, self._greeted_by]
        if self.link is not None:
            times.append(self.link.next_try())
        return min(moment for moment in times if moment is not None)

    def advance(self, now: float) -> None:
        """Do what is due: connect, tick, boot, lose patience with the tool."""
        self._connect(now)
        if self._boot_at is not None and now >= self._boot_at:
            self.boot()
        self._tick(now)
        if self.session is not None and self.session.hooked:
            self._greeted_by = None
        if self._greeted_by is not None and now >= self._greeted_by:
            self.drop(f"the tool didn't answer the hello within {self._options.handshake_timeout:g} seconds")
        if self._unhook_by is not None and now >= self._unhook_by:
            self.drop(f"the tool didn't leave within {self._options.unhook_timeout:g} seconds")

    def _tick(self, now: float) -> None:
        if now < self._next_tick:
            return
        self.machine.tick()
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

    def quiet_for(self, now: float) -> float:
        """Seconds since the tool said something."""
        return now - self._heard

    def notice_panic(self) -> None:
        """Say that the kernel has panicked, once: the machine runs on, and can be looked at, until it is reset."""
        if self.panicked is None and (exception := self.machine.panicked) is not None:
            self.panicked = exception
            self._out.say("panic", panic_of(exception), exception=exception)

    # --- the tool ---

    def _connect(self, now: float) -> None:
        link = self.link
        if link is None:
            return
        if link.connect(now):
            options = self._options
            self.session = Introspection(
                self.machine,
                self._dialect,
                hello_of(
                    options.dialect,
                    options.hello,
                    uuid=options.uuid.bytes,
                    name=options.name,
                    start_time=self._started,
                    ram=self.machine.memory.size,
                ),
                secret=self._secret,
                quirks=options.quirks,
                commands=self._commands,
                events=self._events,
                views=options.views,
            )
            self.session.patience, self._patience = self._patience, None
            self._heard = now
            self._greeted_by = now + options.handshake_timeout
            self._problem = None
            self._out.say("connected", f"connected to {options.socket}", socket=str(options.socket))
        elif link.problem != self._problem:
            self._problem = link.problem
            self._out.say("waiting", f"no tool yet: {link.problem}", reason=link.problem)

    def hear(self) -> None:
        """Take what the tool said."""
        link, session = self.link, self.session
        if link is None or session is None or (data := link.receive()) is None:
            return
        self._heard = time.monotonic()
        session.receive(data)
        self.speak()

    def speak(self) -> None:
        """Send what is to be said; end the connection if the conversation is over."""
        link, session = self.link, self.session
        if link is None or session is None:
            return
        if not link.send(session.outgoing()):
            session.end("the tool no longer reads")
        if session.ended is not None:
            self.drop(session.ended)

    def drop(self, reason: str) -> None:
        """End the conversation and the connection; the next attempt comes after the reconnect time."""
        link, session = self.link, self.session
        if link is None or session is None:
            return
        session.end(reason)
        self.session = None
        self._unhook_by = self._greeted_by = None
        link.close(time.monotonic())
        self._out.say("disconnected", f"connection ended: {session.ended}", reason=session.ended)

    # --- what the console asks for ---

    def boot(self) -> None:
        """End the time of the firmware."""
        if self._boot_at is None:
            raise ConsoleError("the kernel was loaded before")
        self._boot_at = None
        self.machine.power_on()
        self._out.say("boot", "the kernel is loaded", slide=self.machine.slide)

    def unhook(self) -> None:
        """Ask the tool to leave, and give it so long."""
        if self.session is None:
            raise ConsoleError("there is no connection to unhook")
        timeout = self._options.unhook_timeout
        self._unhook_by = time.monotonic() + timeout
        self._out.say("unhook", f"the tool has {timeout:g} seconds to leave", timeout=timeout)
        self.session.unhook()
        self.speak()

    def hang_up(self, messages: int | None) -> None:
        """Break the connection, at once or after so many messages of the tool, of the next one if there is none."""
        if self.link is None or (messages is None and self.session is None):
            raise ConsoleError("there is no connection to break")
        if messages is None:
            self._out.say("hangup", "the connection is broken")
            self.drop("the VMM hung up")
            return
        number = "1 message" if messages == 1 else f"{messages} messages"
        self._out.say("hangup", f"the connection breaks after {number}", messages=messages)
        if self.session is not None:
            self.session.patience = messages
        else:
            self._patience = messages

    def reset(self) -> None:
        """A machine as new: nothing of the old one is left."""
        self.drop("the machine was reset")
        self.machine = new_machine(self._options)
        self.panicked = None
        self._started = int(time.time())
        if self._options.boot:
            self._boot_at = time.monotonic() + self._options.boot
        self._out.say("reset", f"the machine was reset, slide {self.machine.slide:#x}", slide=self.machine.slide)

    def stop(self) -> None:
        """Stop running the vCPUs."""
        self.machine.stopped = True
        self._out.say("stop", "the vCPUs are stopped")

    def cont(self) -> None:
        """Run them again."""
        self.machine.stopped = False
        self._out.say("cont", "the vCPUs run again")

    def hotplug(self) -> None:
        """One more vCPU, which the guest hasn't started."""
        try:
            vcpu = self.machine.add_vcpu(Startup.UNINITIALIZED)
        except ValueError as error:
            raise ConsoleError(str(error)) from None
        self._out.say("hotplug", f"vCPU {vcpu.index} is there, and not started", vcpu=vcpu.index)

    def dma(self, symbol: str, offset: int, data: bytes) -> None:
        """Store into RAM as a device does: no event, whatever the rights."""
        try:
            gpa = self.machine.gpa(self.machine.symbol(symbol) + offset)
            self.machine.memory.write(gpa, data)
        except (KeyError, MachineError):
            raise ConsoleError(f"the guest has nothing at `{symbol}`") from None
        self._out.say("dma", f"{len(data)} bytes written to {gpa:#x} by a device", gpa=gpa, size=len(data))

    def status(self) -> None:
        """Say what the guest and the connection are at."""
        machine, session = self.machine, self.session
        connection = "no socket" if self.link is None else "waiting for the tool"
        if session is not None:
            connection = "armed" if session.armed else "connected" if session.hooked else "greeting"
        waiting = [vcpu.waiting.kind.value for vcpu in machine.vcpus if vcpu.waiting is not None]
        guest = "stopped by the VMM" if machine.stopped else "running" if machine.booted else "booting"
        if machine.panicked is not None:
            guest = f"panicked on exception {machine.panicked}"
        elif waiting:
            guest = f"standing still until {', '.join(waiting)} is answered"
        states = [machine.vcpu_state(vcpu) for vcpu in machine.vcpus]
        jiffies = machine.read_int("jiffies") if machine.booted else 0
        self._out.say(
            "status",
            f"guest {guest}, jiffies {jiffies}, slide {machine.slide:#x}, {len(machine.memory.rights)} frames"
            f" restricted, {machine.events_sent} events, {connection}, vCPUs"
            f" {', '.join(states)}",
            guest=guest,
            jiffies=jiffies,
            slide=machine.slide,
            restricted=len(machine.memory.rights),
            events=machine.events_sent,
            instructions=machine.instructions,
            connection=connection,
            vcpus=states,
        )
