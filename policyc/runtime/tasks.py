"""Runs procedures side by side: which of them waits for which result, event or moment.

Commands go out in windows, so that thousands of reads neither fill a socket nor delay a reply by more than a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from policyc.kvmi import Command, Event, Refused, ReplyData
from policyc.kvmi.tool import MAX_OUTSTANDING
from policyc.runtime.forgotten import Forgotten, executor_of
from policyc.runtime.procedure import (
    Answer,
    Commands,
    Emit,
    Held,
    Limit,
    NextEvent,
    Now,
    Pause,
    Procedure,
    Resume,
    Sent,
    Sleep,
    Stop,
    TimedOutError,
    Wait,
)
from policyc.runtime.standing import Standing
from policyc.runtime.steps import Output, Reply, Send, Write

__all__ = ["COMMAND_TIMEOUT", "Scheduler"]

COMMAND_TIMEOUT = 5.0
"""Seconds that a command or a PAUSE event may take: a vCPU outside KVM_RUN never answers."""

WINDOW = 64
"""Commands of one procedure that are under way at once."""

T = TypeVar("T")


@dataclass
class _Task(Generic[T]):
    """A procedure under way."""

    procedure: Procedure[T]
    done: Callable[[T, float, list[Output]], None]
    deadline: float | None = None
    paused: frozenset[int] | None = None
    asleep: bool = False
    limit: float | None = None
    awaited: NextEvent | None = None
    queue: deque[tuple[int, Command]] = field(default_factory=deque)
    results: list[ReplyData | Refused | None] = field(default_factory=list)
    partial: bool = False
    missing: int = 0

    def wait_until(self, moment: float) -> None:
        """Set the deadline of a wait, which the procedure may have limited."""
        self.deadline = moment if self.limit is None else min(moment, self.limit)


class Scheduler:
    """The procedures of one connection, and the vCPUs that are held still for them.

    Attributes:
        standing: which vCPUs stand still.
        forgotten: the commands that procedures have given up on.
        awaiting: the procedure that waits for the next event of each vCPU, by index.
    """

    def __init__(self) -> None:
        self.standing = Standing()
        self.forgotten = Forgotten()
        self.awaiting: dict[int, _Task[object]] = {}
        self._tasks: list[_Task[object]] = []
        self._waiting: dict[int, tuple[_Task[object], int, int | None]] = {}
        self._next_ticket = 0

    @property
    def deadline(self) -> float | None:
        """The next moment at which `time_passed` has something to do."""
        return min((task.deadline for task in self._tasks if task.deadline is not None), default=None)

    @property
    def is_idle(self) -> bool:
        """Whether no procedure is under way, but for those that sleep or wait for an event that may never come."""
        return all(task.asleep or task.awaited is not None for task in self._tasks)

    @property
    def silent(self) -> set[int]:
        """The vCPUs that owe an answer, but for those that stand at events, where they carry out what they're asked."""
        if not self.forgotten.silent:
            return set()
        return self.forgotten.silent - self.standing.pending.keys() - self.standing.held.keys()

    def start(
        self, procedure: Procedure[T], done: Callable[[T, float, list[Output]], None], now: float, out: list[Output]
    ) -> None:
        """Run a procedure up to its first wait; `done` is called with its result when it ends."""
        task = _Task(procedure, done)
        self._tasks.append(task)  # type: ignore[arg-type]  # a list of tasks of different results
        self._advance(task, None, now, out)  # type: ignore[arg-type]

    def answered(self, ticket: int, result: ReplyData | Refused, now: float, out: list[Output]) -> None:
        """Hand a command's result to the procedure that sent it. Results of procedures that ended are dropped."""
        entry = self._waiting.pop(ticket, None)
        if entry is None:
            self.forgotten.answered(ticket)
            return
        task, position, _ = entry
        task.results[position] = result
        task.missing -= 1
        if task.missing:
            task.wait_until(now + COMMAND_TIMEOUT)
            self._send_next(task, out)
            return
        self._advance(task, tuple(task.results), now, out)

    def hold(self, event: Event, now: float, out: list[Output]) -> None:
        """Note that a vCPU stands at the PAUSE event that it was asked for, and resume whoever waited for it."""
        self.standing.hold(event, now)
        self._resume_paused(now, out)

    def stand(self, event: Event, now: float, out: list[Output]) -> None:
        """Note that a vCPU stands at an event that a procedure will answer, and resume whoever waited for it."""
        self.standing.pending[event.vcpu] = event
        self._resume_paused(now, out)

    def offer(self, event: Event, now: float, out: list[Output], *, judged: bool) -> bool:
        """Hand an event to the procedure that waits for its vCPU's next one; False where it wants another.

        Args:
            judged: whether the policy has a say in it. Such an event ends the wait even if it isn't wanted; what the
                kernel sends because we asked for it comes in between.
        """
        task = self.awaiting.get(event.vcpu)
        if task is None or task.awaited is None:
            return False
        wanted = task.awaited.wanted(event)
        if wanted or judged:
            self._stop_awaiting(task)
            if wanted and event.needs_reply:
                self.stand(event, now, out)
            self._advance(task, event if wanted else None, now, out)
        return wanted

    def give_up(self, now: float, out: list[Output]) -> None:
        """Tell everyone who waits for an event that none will come."""
        for task in list(self.awaiting.values()):
            self._stop_awaiting(task)
            self._advance(task, None, now, out)

    def time_passed(self, now: float, out: list[Output]) -> None:
        """Wake sleepers, and tell procedures whose wait took too long."""
        for task in list(self._tasks):
            if task.deadline is None or now < task.deadline or task not in self._tasks:
                continue
            if task.asleep:
                task.asleep = False
                self._advance(task, None, now, out)
                continue
            if task.awaited is not None:
                self._stop_awaiting(task)
                self._advance(task, None, now, out)
                continue
            self._time_out(task, now, out)

    def cancel(self) -> None:
        """End every procedure where it stands."""
        for task in self._tasks:
            task.procedure.close()
        self._tasks.clear()
        self._waiting.clear()
        self.forgotten.clear()
        self.awaiting.clear()

    def _advance(
        self, task: _Task[object], sent: Sent, now: float, out: list[Output], error: TimedOutError | None = None
    ) -> None:
        task.deadline = None
        while True:
            try:
                wait = task.procedure.throw(error) if error is not None else task.procedure.send(sent)
            except StopIteration as end:
                self._tasks.remove(task)
                task.done(end.value, now, out)
                return
            error = None
            if isinstance(wait, Limit):
                task.limit = wait.moment
                sent = None
                continue
            if isinstance(wait, Commands) and not wait.partial and (silent := self._silent_among(wait.commands)):
                error = TimedOutError(f"vCPU {min(silent)} hasn't answered an earlier command")
                continue
            if self._begin(task, wait, now, out):
                return
            sent = self._at_once(wait, now, out)

    def _begin(self, task: _Task[object], wait: Wait, now: float, out: list[Output]) -> bool:
        """Start a wait that takes time; False where the procedure can go on at once."""
        match wait:
            case Commands(commands, partial):
                silent = self._silent_among(commands)
                asked = [entry for entry in enumerate(commands) if executor_of(entry[1]) not in silent]
                task.results = [None] * len(commands)
                task.partial = partial
                task.missing = len(asked)
                task.queue = deque(asked)
                task.wait_until(now + COMMAND_TIMEOUT)
                for _ in range(WINDOW):
                    self._send_next(task, out)
                return bool(asked)
            case Pause(vcpus) if not self.standing.holds(vcpus):
                task.paused = vcpus
                task.wait_until(now + COMMAND_TIMEOUT)
                return True
            case Sleep(seconds):
                task.asleep = True
                task.deadline = now + seconds
                return True
            case NextEvent(vcpu, _, seconds):
                self._displace(vcpu, now, out)
                self.awaiting[vcpu] = task
                task.awaited = wait
                task.wait_until(now + seconds)
                return True
        return False

    def _at_once(self, wait: Wait, now: float, out: list[Output]) -> Sent:
        """Do what takes no time, and say what the procedure is resumed with."""
        match wait:
            case Commands(commands):
                return (None,) * len(commands)
            case Held():
                return frozenset(self.standing.held)
            case Now():
                return now
            case Stop(vcpus):
                return self.standing.stop(vcpus)
            case Resume():
                self.standing.release(now, out)
            case Answer(event, action, data):
                self.standing.answer(Reply(event, action, data), out)
            case Emit(record):
                out.append(Write(record))
        return None

    def _send_next(self, task: _Task[object], out: list[Output]) -> None:
        # What finds no room isn't sent, and counts as unanswered: one more would end the connection.
        if task.queue and len(self._waiting) + len(self.forgotten) < MAX_OUTSTANDING:
            position, command = task.queue.popleft()
            self._next_ticket += 1
            self._waiting[self._next_ticket] = (task, position, executor_of(command))
            out.append(Send(self._next_ticket, command))

    def _silent_among(self, commands: tuple[Command, ...]) -> set[int]:
        """The vCPUs that these commands are for and that owe an answer to an earlier one."""
        if not (silent := self.silent):
            return set()
        return {vcpu for command in commands if (vcpu := executor_of(command)) in silent}

    def _resume_paused(self, now: float, out: list[Output]) -> None:
        for task in list(self._tasks):
            if task.paused is not None and self.standing.holds(task.paused):
                task.paused = None
                self._advance(task, None, now, out)

    def _displace(self, vcpu: int, now: float, out: list[Output]) -> None:
        """One procedure waits for a vCPU's next event; only a peer that sends two at once makes it two."""
        earlier = self.awaiting.get(vcpu)
        if earlier is not None:
            self._stop_awaiting(earlier)
            self._advance(earlier, None, now, out)

    def _stop_awaiting(self, task: _Task[object]) -> None:
        if task.awaited is not None:
            del self.awaiting[task.awaited.vcpu]
            task.awaited = None

    def _time_out(self, task: _Task[object], now: float, out: list[Output]) -> None:
        """Have a procedure go on without what hasn't come."""
        partial = task.partial and task.paused is None
        what = "PAUSE events" if task.paused is not None else f"{task.missing} commands"
        length = "in time" if task.limit is not None else f"for {COMMAND_TIMEOUT:g} seconds"
        self._forget(task)
        if partial:
            self._advance(task, tuple(task.results), now, out)
        else:
            self._advance(task, None, now, out, TimedOutError(f"{what} unanswered {length}"))

    def _forget(self, task: _Task[object]) -> None:
        """Drop what the task still waits for."""
        for ticket, (owner, _, vcpu) in list(self._waiting.items()):
            if owner is task:
                del self._waiting[ticket]
                self.forgotten.add(ticket, vcpu)
        task.queue.clear()
        task.paused = None
        task.missing = 0
