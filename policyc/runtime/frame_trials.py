"""Evidence that a write to a write-protected frame comes as an event: frames protected for a moment and watched.

No KVMI kernel since v7 lets rights be read back, and some deployed v7 kernels answer success and let writes to half of
all frames pass, those whose number has bit 1 set. So frames are taken that the guest writes by itself, and their
content is watched beside the events. Events are answered CONTINUE, so every write is carried out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from policyc.addresses import PAGE_SHIFT, PAGE_SIZE, Gfn, Gpa, frame_start
from policyc.catalog import Access
from policyc.kvmi import ControlEvents, PageAccess, ReadPhysical, ReadPhysicalReply, Refused, SetPageAccess, set_page
from policyc.runtime.bound import ALL_RIGHTS
from policyc.runtime.procedure import Emit, Procedure, Sleep, TimedOutError, ask, ask_each
from policyc.runtime.records import StateRecord

__all__ = ["DEAF_BIT", "FrameOutcome", "FrameTrial", "FrameTrials", "ProbeResult", "ProbeVerdict", "Watch"]

DEAF_BIT = 1 << 1
"""The bit of a frame's number on which a deployed kvmi-v7 kernel lets writes pass without an event."""

TRIED_OF_A_KIND = 3
"""Frames with, and without, bit 1 that are tried at most; the first that is reported settles it."""

LOOKS = 20
LOOK_PAUSE = 0.05
"""A frame stays protected for a second at most: so many looks, so far apart."""

WRITES_TRAPPED = PageAccess.RX


@dataclass(slots=True)
class Watch:
    """The writes that were reported, by frame; kept up by whoever receives events."""

    writes: Counter[Gfn] = field(default_factory=Counter)


class FrameOutcome(Enum):
    """What became of one frame while it was write-protected."""

    REPORTED = "a write came as an event"
    SILENT = "its content changed and no event came"
    UNWRITTEN = "nobody wrote to it"
    REFUSED = "the kernel didn't protect it"


@dataclass(frozen=True, slots=True)
class FrameTrial:
    """One frame that was write-protected for a moment; `events` are the writes that were reported."""

    gfn: Gfn
    outcome: FrameOutcome
    events: int = 0

    @property
    def gpa(self) -> Gpa:
        return Gpa(self.gfn << PAGE_SHIFT)

    @property
    def has_deaf_bit(self) -> bool:
        """Whether its number has bit 1 set."""
        return bool(self.gfn & DEAF_BIT)


class ProbeVerdict(Enum):
    """What the write test showed: events came, came on frames without bit 1, didn't on those with it, or not at all.

    UNPROVEN: nobody wrote.
    """

    REPORTED = "reported"
    PARTLY = "partly"
    DEAF = "deaf"
    SILENT = "silent"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What was tried, and why no more was, where it wasn't.

    Attributes:
        reason: why there is no evidence; None where there is some.
        unrestored: what the kernel refused when things were put back; the end of the connection puts them back anyway.
    """

    trials: tuple[FrameTrial, ...] = ()
    reason: str | None = None
    unrestored: tuple[str, ...] = ()

    @property
    def verdict(self) -> ProbeVerdict:
        """The conclusion: silence counts only where no other frame of the same kind was reported.

        A device or the hypervisor itself may write to a frame, and that raises no event on any kernel.
        """
        heard = {trial.has_deaf_bit for trial in self.trials if trial.outcome is FrameOutcome.REPORTED}
        silent = {trial.has_deaf_bit for trial in self.trials if trial.outcome is FrameOutcome.SILENT} - heard
        if False in silent:
            return ProbeVerdict.SILENT
        if True in silent:
            return ProbeVerdict.DEAF
        if True in heard:
            return ProbeVerdict.REPORTED
        return ProbeVerdict.PARTLY if heard else ProbeVerdict.UNPROVEN


class FrameTrials:
    """Frames are tried one after another, and each is put back.

    Where even that isn't answered, the connection is about to end, and the kernel undoes it then.

    Args:
        allowed: what the plan in force lets a frame be accessed for.
        stage: what records about the progress call the state; None for no such records.
    """

    def __init__(
        self, watch: Watch, stage: str | None = None, *, allowed: Callable[[Gfn], Access] = lambda gfn: ALL_RIGHTS
    ) -> None:
        self._watch = watch
        self._allowed = allowed
        self._stage = stage
        self._trials: list[FrameTrial] = []
        self._unrestored: list[str] = []

    def run(self, candidates: Sequence[Gfn]) -> Procedure[str | None]:
        """Try the first candidates of each kind, on vCPUs that report page faults; why no more were, if so."""
        try:
            for kind in (DEAF_BIT, 0):
                yield from self._try_some([gfn for gfn in candidates if gfn & DEAF_BIT == kind])
        except TimedOutError as error:
            return str(error)
        return None

    def result(self, reason: str | None) -> ProbeResult:
        """What was found so far."""
        return ProbeResult(tuple(self._trials), reason, tuple(self._unrestored))

    def restore(self, *commands: ControlEvents | SetPageAccess) -> Procedure[None]:
        """Put something back; what the kernel refuses or doesn't answer is kept for the result."""
        for command, result in zip(commands, (yield from ask_each(commands)), strict=True):
            if result is None:
                self._unrestored.append(f"{type(command).__name__}: unanswered")
            elif isinstance(result, Refused):
                self._unrestored.append(str(result))

    def _try_some(self, frames: Sequence[Gfn]) -> Procedure[None]:
        for gfn in frames[:TRIED_OF_A_KIND]:
            if self._stage is not None:
                yield Emit(StateRecord(self._stage, f"write-protecting frame {gfn:#x} for a moment"))
            if self._allowed(gfn) != ALL_RIGHTS:
                continue
            try:
                outcome = yield from self._try(gfn)
            except TimedOutError:
                yield from self._put_back(gfn)
                raise
            if outcome is not FrameOutcome.REFUSED:
                yield from self._put_back(gfn)
            self._trials.append(FrameTrial(gfn, outcome, self._watch.writes[gfn]))
            if outcome is FrameOutcome.REPORTED:
                return

    def _put_back(self, gfn: Gfn) -> Procedure[None]:
        """Meanwhile the frame may have come to be guarded."""
        yield from self.restore(set_page(frame_start(gfn), PageAccess(int(self._allowed(gfn)))))

    def _try(self, gfn: Gfn) -> Procedure[FrameOutcome]:
        """Compare the frame with what it was; the kernel sends a write's event before it carries the write out."""
        protected = yield from ask(set_page(frame_start(gfn), WRITES_TRAPPED))
        if isinstance(protected, Refused):
            return FrameOutcome.REFUSED
        before = yield from _content(gfn)
        for _ in range(LOOKS):
            yield Sleep(LOOK_PAUSE)
            now = yield from _content(gfn)
            if self._watch.writes[gfn]:
                return FrameOutcome.REPORTED
            if None not in (before, now) and now != before:
                return FrameOutcome.SILENT
        return FrameOutcome.UNWRITTEN


def _content(gfn: Gfn) -> Procedure[bytes | None]:
    result = yield from ask(ReadPhysical(frame_start(gfn), PAGE_SIZE))
    return result.data if isinstance(result, ReadPhysicalReply) else None
