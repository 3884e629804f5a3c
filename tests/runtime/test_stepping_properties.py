"""Whatever a guest and its kernel do while an instruction is stepped, in the end nothing is open and nobody stands."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gva
from policyc.catalog import Access
from policyc.kvmi import (
    V7,
    V12,
    Command,
    ControlSinglestep,
    Dialect,
    ErrorCode,
    Event,
    EventKind,
    GetInfo,
    PageAccess,
    PauseVcpu,
    PfData,
    SetPageAccess,
    SinglestepData,
    TranslateGva,
)
from policyc.runtime.opened import OPEN_SECONDS
from policyc.runtime.repeats import REPEATS, Repeats
from policyc.runtime.state import Phase
from policyc.runtime.stepping_state import MAX_STOPPED
from tests.support.scripted_kernel import IMAGE_BASE, SILENCE, SLIDE, Result, gpa_of
from tests.support.stepping_talk import MODULE_GVA, Stuck, facts, guarded

GUARDED = IMAGE_BASE + 0x6104
COLLATERAL = IMAGE_BASE + 0x6800
CODE = "f0480fc70c25" + ((COLLATERAL + SLIDE) & 0xFFFF_FFFF).to_bytes(4, "little").hex()

STUBBORN: Mapping[str, tuple[type[Command] | None, Result]] = {
    "pages refused": (SetPageAccess, ErrorCode.ENOMEM),
    "pages unanswered": (SetPageAccess, SILENCE),
    "no pause": (PauseVcpu, ErrorCode.EBUSY),
    "pause unanswered": (PauseVcpu, SILENCE),
    "no single-step": (ControlSinglestep, ErrorCode.EOPNOTSUPP),
    "single-step unanswered": (ControlSinglestep, SILENCE),
    "no count": (GetInfo, ErrorCode.EPERM),
    "no translation": (TranslateGva, SILENCE),
    "obliging": (None, None),
}
"""How the kernel answers from then on: one kind of command in one way."""

MOVES = st.one_of(
    st.sampled_from(["repeat", "repeat", "repeat", "denied", "stepped", "failed", "pause", "call", "create"]),
    st.sampled_from(sorted(STUBBORN)),
    st.sampled_from([0.001, 0.03, 0.5, 6.0]),
)


class Guest:
    """Two vCPUs that send no event while they stand at one, as any kernel has it."""

    def __init__(self, dialect: Dialect) -> None:
        self.stuck: Stuck = guarded(dialect, CODE, "deny write to kernel:guarded_object", "on hypercall 34/24 log")
        self.dialect = dialect
        self.stuck.talk.peer.silent_pauses = {1}
        self._answered = 0
        self._resist: tuple[type[Command] | None, Result] = (None, None)
        self.stuck.talk.peer.override = self._override

    def _override(self, command: Command) -> Result:
        kind, result = self._resist
        if kind is not None and isinstance(command, kind):
            return result
        self._answered += isinstance(command, PauseVcpu)
        return None

    def move(self, what: str | float) -> None:
        """Let something happen, where it can."""
        if isinstance(what, float):
            self.stuck.talk.pass_time(what)
        elif what in STUBBORN:
            self._resist = STUBBORN[what]
        elif what == "pause" or 1 in self.stuck.standing:
            self._pause()
        elif what == "call":
            self.stuck.send(EventKind.HYPERCALL, rip=0x1000, vcpu=1)
        elif what == "create":
            if self.dialect is V7:
                self.stuck.send(EventKind.CREATE_VCPU, rip=0x1000, vcpu=1)
        elif 0 not in self.stuck.standing:
            self._first_vcpu(what)

    def settle(self) -> None:
        """Let the kernel do as it should, and everything come to an end."""
        self._resist = (None, None)
        for _ in range(4):
            self.stuck.talk.pass_time(2 * OPEN_SECONDS)
            while self._answered and 1 not in self.stuck.standing:
                self._pause()

    def _pause(self) -> None:
        if self._answered and 1 not in self.stuck.standing:
            self._answered -= 1
            self.stuck.send(EventKind.PAUSE, rip=0x1000, vcpu=1)

    def _first_vcpu(self, what: str) -> None:
        if what == "repeat":
            self.stuck.fault(COLLATERAL)
        elif what == "denied":
            data = PfData(Gva(GUARDED + SLIDE), gpa_of(GUARDED), PageAccess.W)
            self.stuck.send(EventKind.PF, data, rip=MODULE_GVA + 0x40)
        elif self.stuck.talk.state.stepping.stepped:
            self.stuck.send(EventKind.SINGLESTEP, SinglestepData(what == "failed"), rip=MODULE_GVA + 10)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([V7, V12]), st.lists(MOVES, max_size=40))
def test_nothing_is_left_open_and_nobody_left_standing(dialect: Dialect, story: list[str | float]) -> None:
    guest = Guest(dialect)
    for what in ["repeat", "repeat", *story]:
        guest.move(what)
    guest.settle()
    stuck = guest.stuck
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.standing == set()
    assert not stuck.talk.state.stepping.busy
    assert stuck.talk.state.stepping.opened.pages == {}
    assert stuck.talk.state.bound.code_cache.exposed == set()
    assert stuck.phase() in (Phase.ARMED, Phase.DEGRADED)
    assert (stuck.phase() is Phase.DEGRADED) == stuck.talk.state.unmended
    facts(stuck)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1)), max_size=12))
def test_repetition_is_the_same_byte_three_times_with_the_same_registers(
    events: list[tuple[int, int, int]],
) -> None:
    repeats = Repeats()
    talk = guarded(V12, CODE, "deny write to kernel:guarded_object").talk
    last: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for vcpu, place, register in events:
        gpa = gpa_of(COLLATERAL + 8 * place)
        data = PfData(Gva(COLLATERAL + SLIDE + 8 * place), gpa, PageAccess.W)
        talk.peer.kernel.send_event(EventKind.PF, vcpu, talk.peer.vcpu_state(MODULE_GVA + register, 0), data)
        talk.tool.receive_data(b"".join(talk.peer.kernel.data_to_send()))
        event = talk.tool.next_event()
        assert isinstance(event, Event)
        due = repeats.note(event, gpa)
        talk.tool.reply(event, event.actions[0])
        talk.peer.kernel_reads(b"".join(talk.tool.data_to_send()))
        last[vcpu].append((place, register))
        if len({*last[vcpu][-3:]}) == 1 and len(last[vcpu]) >= REPEATS + 2:
            assert due
        if len({*last[vcpu][-2:]}) == 2 or len(last[vcpu]) < 2:
            assert not due


def test_the_guest_stands_still_for_a_tenth_of_the_time_at_most() -> None:
    guest = Guest(V12)
    guest.stuck.talk.peer.silent_pauses = set()
    begun, stopped = guest.stuck.talk.now, 0.0
    while guest.stuck.talk.now < begun + 5:
        guest.stuck.fault(COLLATERAL)
        if 1 in guest.stuck.standing:
            since = guest.stuck.talk.now
            guest.stuck.talk.pass_time(1)
            stopped += min(guest.stuck.talk.now - since, 0.02)
        else:
            guest.stuck.talk.pass_time(0.001)
    assert stopped <= 5 * MAX_STOPPED + 0.02
