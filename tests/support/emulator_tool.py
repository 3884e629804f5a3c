"""A tool that does what a test tells it, joined to a machine in memory: nothing runs but when the test says so."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from policyc.addresses import Gpa, page_offset
from policyc.emulator.defects import Quirk
from policyc.emulator.introspection import Introspection
from policyc.emulator.routines import ROUTINES, RoutineResult, Run
from policyc.emulator.small_machine import SmallMachine
from policyc.kvmi import (
    V12,
    Action,
    ControlEvents,
    Dialect,
    Event,
    EventKind,
    EventReplyData,
    Hello,
    HelloForm,
    PageAccess,
    PauseVcpu,
    Refused,
    Reply,
    ReplyData,
    Status,
    ToolConnection,
    ToolEvent,
    set_page,
)
from policyc.kvmi.messages import Command

__all__ = ["UUID", "ScriptedTool"]

UUID = bytes(range(16))

T = TypeVar("T", bound=ReplyData)


class ScriptedTool:
    """A connected tool; every method leaves the guest where it can't go on by itself."""

    def __init__(
        self,
        dialect: Dialect,
        machine: SmallMachine | None = None,
        *,
        cpu: str = "intel",
        quirks: Collection[Quirk] = (),
        commands: Collection[type[Command]] | None = None,
        events: Collection[EventKind] | None = None,
        secret: bytes | None = None,
        answer: bytes | None = None,
        views: bool = False,
    ) -> None:
        self.dialect = dialect
        self.machine = machine or SmallMachine.boot(cpu=cpu, slide=0x1240_0000)
        newer = dialect is V12
        hello = Hello(
            UUID,
            "small",
            1_700_000_000,
            Gpa(self.machine.memory.size) if newer else None,
            form=HelloForm.V12 if newer else HelloForm.V7,
        )
        self.session = Introspection(
            self.machine,
            dialect,
            hello,
            secret=secret,
            quirks=quirks,
            commands=commands,
            events=events,
            views=views,
        )
        self.connection = ToolConnection()
        self.greeting: list[ToolEvent] = []
        self._exchange(self.greeting)
        self.connection.answer_hello(answer)
        self.greeting += self.pump()

    def pump(self) -> list[ToolEvent]:
        """Carry bytes both ways and run the guest until neither has anything to say or do."""
        heard: list[ToolEvent] = []
        while True:
            talked = self._exchange(heard)
            self.machine.run_until_idle()
            if not talked and not self._exchange(heard):
                return heard

    def ask(self, command: Command) -> ReplyData | Refused:
        """Send a command and give its result; events that come meanwhile are an error of the test."""
        self.connection.send(command)
        (reply,) = self.pump()
        assert isinstance(reply, Reply), reply
        return reply.result

    def must(self, command: Command, kind: type[T]) -> T:
        """Send a command that succeeds, and give its data."""
        result = self.ask(command)
        assert isinstance(result, kind), result
        return result

    def refused(self, command: Command) -> int:
        """Send a command that fails, and give its error number."""
        result = self.ask(command)
        assert isinstance(result, Refused), result
        return result.errno

    def enable(self, *kinds: EventKind) -> None:
        """Switch events of vCPU 0 on."""
        for kind in kinds:
            assert not isinstance(self.ask(ControlEvents(0, kind, True)), Refused)

    def restrict(self, symbol: str, access: PageAccess, offset: int = 0) -> Gpa:
        """Leave these rights to the frame of a symbol, and switch PF on; the symbol's address."""
        self.enable(EventKind.PF)
        gpa = self.machine.gpa(self.machine.symbol(symbol) + offset)
        assert not isinstance(self.ask(set_page(Gpa(gpa - page_offset(gpa)), access)), Refused)
        return gpa

    def start(self, name: str) -> Run:
        """Let the guest begin a routine; it goes on with the next `pump`."""
        return Run(self.machine, ROUTINES[name])

    def caught(self, name: str) -> tuple[Run, Event]:
        """Let the guest begin a routine that sends one event."""
        run = self.start(name)
        return run, self.event()

    def event(self) -> Event:
        """The one event that comes next."""
        (event,) = self.pump()
        assert isinstance(event, Event), event
        return event

    def reply(
        self, event: Event, action: Action = Action.CONTINUE, data: EventReplyData | None = None
    ) -> list[ToolEvent]:
        """Answer an event, and give what comes after."""
        self.connection.reply(event, action, data)
        return self.pump()

    def finish(self, run: Run) -> RoutineResult:
        """A routine that is through."""
        assert run.finished
        return run.result()

    def pause(self) -> Event:
        """Bring the vCPU to a stand."""
        self.connection.send(PauseVcpu(0, True))
        reply, event = self.pump()
        assert isinstance(reply, Reply)
        assert isinstance(event, Event)
        assert event.kind is EventKind.PAUSE
        return event

    def leave(self) -> None:
        """Close the connection."""
        self.connection.close()
        self.session.receive(b"")

    def _exchange(self, heard: list[ToolEvent]) -> bool:
        """Carry over what either side has to send; whether there was anything."""
        said = self.connection.data_to_send()
        for data in said:
            self.session.receive(data)
        answer = self.session.outgoing()
        if answer:
            self.connection.receive_data(answer)
            while not isinstance(event := self.connection.next_event(), Status):
                heard.append(event)
        return bool(said or answer)
