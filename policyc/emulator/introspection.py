"""The kernel's side of a KVMI conversation about one machine: what the tool asks is done, what happens is reported.

There is no socket here: `receive` takes what came and `outgoing` gives what is to be sent. The connection has judged
every message already (`policyc.kvmi.kernel`); what depends on the machine is decided by the rows of `commands`.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from policyc.emulator.command_rows import CommandError
from policyc.emulator.commands import execute
from policyc.emulator.defects import Quirk
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
    from collections.abc import Callable, Collection

    from policyc.emulator.machine import Machine
    from policyc.emulator.vcpu import Vcpu
    from policyc.kvmi import Command, Dialect, EventData, Hello, KernelEvent

__all__ = ["Introspection"]


class Introspection:
    """A hooked machine, from the hello to the end of the connection.

    Args:
        hello: how the VMM introduces the machine.
        secret: what the tool must prove to know; None lets any tool in.
        commands, events: what the VMM allows; None for all.
        views: the host can switch EPT views, which takes an Intel processor and kvmi-v7.
        clock: seconds that pass; map tokens expire by it.

    Attributes:
        machine, dialect: as given.
        quirks: defects that the host has.
        vm_events: events of the whole machine that are switched on.
        cleanup: kvmi-v12's CONTROL_CLEANUP; interceptions that it could leave behind act on nobody here.
        hooked: whether the tool has been let in.
        ended: why the conversation is over, or None.
        restricted: how many SET_PAGE_ACCESS commands were carried out.
        resumed: how many PAUSE events were answered.
        map_tokens: when each token was given that still counts.
        patience: how many more messages of the tool are listened to before the connection breaks; None for all.
    """

    def __init__(
        self,
        machine: Machine,
        dialect: Dialect,
        hello: Hello,
        *,
        secret: bytes | None = None,
        quirks: Collection[Quirk] = (),
        commands: Collection[type[Command]] | None = None,
        events: Collection[EventKind] | None = None,
        views: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.machine = machine
        self.dialect = dialect
        self.quirks = frozenset(quirks)
        self.vm_events: set[EventKind] = set()
        self.cleanup = True
        self.hooked = False
        self.ended: str | None = None
        self.restricted = 0
        self.resumed = 0
        self.map_tokens: deque[float] = deque()
        self.clock = clock
        self.patience: int | None = None
        self._views = views
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
        return Quirk.FETCHES_TWICE in self.quirks

    @property
    def views(self) -> bool:
        """Whether the host can switch EPT views."""
        return self._views and self.machine.cpu == "intel"

    @property
    def armed(self) -> bool:
        """Whether the tool seems to have set up all it wants: it restricts or intercepts, and nothing stands still."""
        vcpus = self.machine.vcpus
        asked = self.restricted or any(vcpu.hooks.events for vcpu in vcpus)
        still = self.unanswered or any(vcpu.hooks.pauses for vcpu in vcpus if vcpu.started)
        return self.ended is None and bool(asked) and self.resumed > 0 and not still

    @property
    def unanswered(self) -> int:
        """Events that wait for a reply."""
        return len(self._connection.waiting)

    def receive(self, data: bytes) -> None:
        """Take what the socket delivered; no bytes at all means that the tool has closed."""
        if self.ended is not None:
            return
        self._connection.vcpu_count = len(self.machine.vcpus)
        self._connection.stopped = {vcpu.index for vcpu in self.machine.vcpus if not vcpu.started}
        if data:
            self._connection.receive_data(data)
        else:
            self._connection.receive_eof()
        try:
            status = self._take_messages()
        except RemoteProtocolError as error:
            self.end(f"the tool broke the protocol: {error}")
        else:
            if status is CLOSED:
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

    def created(self, vcpu: Vcpu) -> None:
        """See `Tool`: CREATE_VCPU, if it is on at the moment at which the vCPU first runs."""
        if EventKind.CREATE_VCPU in self.vm_events:
            vcpu.report(EventKind.CREATE_VCPU, None, vcpu.go_on)

    def crash(self, vcpu: Vcpu) -> None:
        """See `Tool`."""
        if Quirk.CRASH_IGNORED not in self.quirks:
            self.machine.crash(f"the tool answered CRASH to an event of vCPU {vcpu.index}")

    def _take_messages(self) -> Status | None:
        """Carry out what has come; None if that ended the conversation."""
        while not isinstance(event := self._connection.next_event(), Status):
            self._dispatch(event)
            self._lose_patience()
            if self.ended is not None:
                return None
        return event

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
        if Quirk.HOOK_BUSY in self.quirks and self.machine.was_hooked and not self.machine.all_started:
            self.end("the kernel still cleans up after the last tool (EEXIST)")
            return
        self.hooked = True
        self.machine.attach(self)

    def _lose_patience(self) -> None:
        if self.patience is not None:
            self.patience -= 1
            if self.patience <= 0:
                self.end("the VMM hung up")

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
