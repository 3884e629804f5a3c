"""The kernel's side of a KVMI conversation about one machine: what the tool asks is done, what happens is reported.

There is no socket here: `receive` takes what came and `outgoing` gives what is to be sent. The connection has judged
every message already (`policyc.kvmi.kernel`); what depends on the machine is decided by the rows of `commands`.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from policyc.emulator.command_rows import CommandError
from policyc.emulator.commands import execute
from policyc.emulator.differences import DIFFERENCES
from policyc.emulator.registers import read_state
from policyc.kvmi import (
    CLOSED,
    BadCommandReceived,
    CommandReceived,
    EventKind,
    EventReplyReceived,
    HelloAnswer,
    KernelConnection,
    RemoteProtocolError,
    Status,
    cookie_hash,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from policyc.emulator.machine import Machine
    from policyc.emulator.vcpu import Vcpu
    from policyc.kvmi import Command, Dialect, EventData, Hello, KernelEvent

__all__ = ["Behaviour", "Introspection"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Ways in which deployed hosts differ from what they should do.

    Attributes:
        deaf_frames: writes to write-protected frames whose number has bit 1 set pass without an event, while every
            reply says success; seen on kernels of branch kvmi-v7.
        crash_ignored: the VMM goes on running a vCPU whose event was answered CRASH, as kvmi-v12 leaves it free to.
        views: the host can switch EPT views, which takes an Intel processor and kvmi-v7.
        fetches_twice: an execute violation that is answered CONTINUE comes twice, as on the kernels that were recorded.
    """

    deaf_frames: bool = False
    crash_ignored: bool = False
    views: bool = False
    fetches_twice: bool = False


class Introspection:
    """A hooked machine, from the hello to the end of the connection.

    Args:
        hello: how the VMM introduces the machine.
        secret: what the tool must prove to know; None lets any tool in.
        commands, events: what the VMM allows; None for all.
        clock: seconds that pass; map tokens expire by it.

    Attributes:
        machine, dialect, behaviour: as given.
        vm_events: events of the whole machine that are switched on.
        cleanup: kvmi-v12's CONTROL_CLEANUP; interceptions that it could leave behind act on nobody here.
        hooked: whether the tool has been let in.
        ended: why the conversation is over, or None.
        restricted: how many SET_PAGE_ACCESS commands were carried out.
        resumed: how many PAUSE events were answered.
        map_tokens: when each token was given that still counts.
    """

    def __init__(
        self,
        machine: Machine,
        dialect: Dialect,
        hello: Hello,
        *,
        secret: bytes | None = None,
        behaviour: Behaviour = Behaviour(),
        commands: Iterable[type[Command]] | None = None,
        events: Iterable[EventKind] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.machine = machine
        self.dialect = dialect
        self.behaviour = behaviour
        self.vm_events: set[EventKind] = set()
        self.cleanup = True
        self.hooked = False
        self.ended: str | None = None
        self.restricted = 0
        self.resumed = 0
        self.map_tokens: deque[float] = deque()
        self.clock = clock
        self._secret = secret
        self._connection = KernelConnection(dialect, len(machine.vcpus), commands=commands, events=events)
        self._connection.send_hello(hello)

    @property
    def steps_by_itself(self) -> bool:
        """See `Tool`."""
        return DIFFERENCES[self.dialect].steps_by_itself

    @property
    def fetches_twice(self) -> bool:
        """See `Tool`."""
        return self.behaviour.fetches_twice

    @property
    def views(self) -> bool:
        """Whether the host can switch EPT views."""
        return self.behaviour.views and self.machine.cpu == "intel"

    @property
    def armed(self) -> bool:
        """Whether the tool seems to have set up all it wants: it restricts or intercepts, and nothing stands still."""
        vcpus = self.machine.vcpus
        asked = self.restricted or any(vcpu.hooks.events for vcpu in vcpus)
        still = self.unanswered or any(vcpu.hooks.pauses for vcpu in vcpus)
        return self.ended is None and bool(asked) and self.resumed > 0 and not still

    @property
    def unanswered(self) -> int:
        """Events that wait for a reply."""
        return len(self._connection.waiting)

    def receive(self, data: bytes) -> None:
        """Take what the socket delivered; no bytes at all means that the tool has closed."""
        if self.ended is not None:
            return
        if data:
            self._connection.receive_data(data)
        else:
            self._connection.receive_eof()
        try:
            while not isinstance(event := self._connection.next_event(), Status):
                self._dispatch(event)
        except RemoteProtocolError as error:
            self.end(f"the tool broke the protocol: {error}")
        else:
            if event is CLOSED:
                self.end("the tool closed the connection")

    def outgoing(self) -> bytes:
        """Take what is to be sent."""
        return b"".join(self._connection.data_to_send())

    def unhook(self) -> None:
        """The VMM wants introspection to end: ask the tool to leave, or end it if the tool doesn't listen."""
        if self.ended is None and EventKind.UNHOOK in self.vm_events:
            self._connection.send_vm_event(EventKind.UNHOOK)
        else:
            self.end("unhooked by the VMM")

    def end(self, reason: str) -> None:
        """The conversation is over: every hook is removed and the guest runs on."""
        if self.ended is None:
            self.ended = reason
            self._connection.close()
            if self.hooked:
                self.machine.detach()

    def report(self, vcpu: Vcpu, kind: EventKind, data: EventData | None) -> None:
        """See `Tool`."""
        carries = self.dialect.events[kind].data_type is not None
        self._connection.send_event(kind, vcpu.index, read_state(vcpu.engine), data if carries else None)
        self.machine.events_sent += 1

    def crash(self, vcpu: Vcpu) -> None:
        """See `Tool`."""
        if not self.behaviour.crash_ignored:
            self.machine.crash(f"the tool answered CRASH to an event of vCPU {vcpu.index}")

    def _dispatch(self, event: KernelEvent) -> None:
        match event:
            case HelloAnswer():
                self._hook(event)
            case EventReplyReceived():
                self.resumed += event.kind is EventKind.PAUSE
                vcpu = self.machine.vcpus[event.vcpu]
                self._on_vcpu(event.vcpu, partial(vcpu.answer, event.action, event.data))
            case BadCommandReceived():
                self._on_vcpu(event.vcpu, partial(self._connection.refuse, event, event.errno))
            case CommandReceived():
                self._on_vcpu(event.vcpu, partial(self._execute, event))

    def _hook(self, answer: HelloAnswer) -> None:
        if self._secret is not None and answer.cookie_hash != cookie_hash(self._secret):
            self.end("the tool doesn't know the secret")
            return
        self.hooked = True
        self.machine.attach(self)

    def _on_vcpu(self, index: int | None, job: Callable[[], None]) -> None:
        """Do something at once, or in the queue of the vCPU that it is meant for."""
        if index is None:
            job()
            return
        vcpu = self.machine.vcpus[index]
        vcpu.hooks.jobs.append(job)
        if not self.machine.stopped:
            vcpu.serve()

    def _execute(self, received: CommandReceived) -> None:
        try:
            reply = execute(self, received.command)
        except CommandError as error:
            self._connection.refuse(received, error.errno)
        else:
            self._connection.answer(received, reply)
