"""What a step had lifted is put back, though the kernel refuses, is late, or somebody else puts it back as well."""

from __future__ import annotations

from policyc.addresses import Gpa, Gva, gfn_of
from policyc.catalog import Access
from policyc.guest.paging import AddressSpace
from policyc.kvmi import (
    Action,
    Command,
    ControlSinglestep,
    Dialect,
    ErrorCode,
    EventKind,
    SetPageAccess,
    SinglestepData,
    page_entries,
)
from policyc.runtime.enforcer import step
from policyc.runtime.opened import OPEN_SECONDS, RETRY_SECONDS
from policyc.runtime.state import Phase
from policyc.runtime.steps import TimePassed
from tests.support.scripted_kernel import IMAGE_BASE, SILENCE, SLIDE, Conversation, Result, gpa_of
from tests.support.stepping_talk import MODULE_GVA, Stuck, facts, guarded

DENY_OBJECT = "object: deny write to kernel:guarded_object"
LOG_TEXT = f"log: log write to virtual {IMAGE_BASE + SLIDE + 0x2000:#x} size 4K"
GUARDED = IMAGE_BASE + 0x6104
COLLATERAL = IMAGE_BASE + 0x6800
LOGGED = IMAGE_BASE + 0x2008
SEAM = IMAGE_BASE + 0x6000
ON_BOTH = (
    f"below: deny write to virtual {IMAGE_BASE + SLIDE + 0x5000:#x} size 16",
    f"above: deny write to virtual {IMAGE_BASE + SLIDE + 0x6800:#x} size 16",
)


def exchange(link_address: int) -> str:
    """CMPXCHG16B on an address."""
    return "f0480fc70c25" + ((link_address + SLIDE) & 0xFFFF_FFFF).to_bytes(4, "little").hex()


def vector(link_address: int) -> str:
    """VMOVDQU of 32 bytes to an address."""
    return "c5fe7f0425" + ((link_address + SLIDE) & 0xFFFF_FFFF).to_bytes(4, "little").hex()


def frame_of(talk: Conversation, gva: int) -> Gpa:
    """Where an address leads."""
    found = talk.peer.memory.translate(AddressSpace(talk.peer.root), Gva(gva))
    assert found is not None
    return found[0]


def refuse_once(stuck: Stuck, kind: type[Command], *, off: bool = False) -> None:
    """Refuse the next command of a kind; of single-step, the next that switches it off."""
    left = [True]

    def override(command: Command) -> Result:
        wanted = isinstance(command, kind) and not (off and getattr(command, "enable", False))
        return ErrorCode.EAGAIN if wanted and left and left.pop() else None

    stuck.talk.peer.override = override


def test_page__that_is_being_closed_is_not_opened_again_by_a_step(dialect: Dialect) -> None:
    stuck = guarded(dialect, vector(SEAM - 16), *ON_BOTH)
    talk = stuck.talk
    stuck.faults(SEAM - 16)
    refuse_once(stuck, SetPageAccess)
    stuck.stepped()
    assert list(talk.state.stepping.opened.pages) == [gfn_of(gpa_of(SEAM - 1))]
    talk.peer.override = lambda command: None
    talk.now += 0.999
    stuck.faults(SEAM)
    assert talk.state.stepping.busy
    talk.now += 0.002
    closing: list[Command] = []

    def hold(command: Command) -> Result:
        if not isinstance(command, SetPageAccess) or closing:
            return None
        closing.append(command)
        talk.peer.carry_out(command)
        return SILENCE

    # The command that closes the page is on the wire when the step is over.
    talk.peer.override = hold
    talk._carry_out(step(talk.state, talk.now, TimePassed()))
    talk.peer.kernel_reads(b"".join(talk.tool.data_to_send()))
    assert [page_entries(command)[0][0] for command in closing if isinstance(command, SetPageAccess)] == [
        gpa_of(SEAM - 0x1000)
    ]
    talk.peer.kernel.send_event(
        EventKind.SINGLESTEP, 0, talk.peer.vcpu_state(MODULE_GVA + 9, 0), SinglestepData(failed=False)
    )
    talk.talk()
    talk.peer.answer_late()
    talk.talk()
    talk.pass_time(2 * OPEN_SECONDS)
    assert (stuck.rights(SEAM - 1), stuck.rights(SEAM)) == (Access.R | Access.X, Access.R | Access.X)
    assert (stuck.phase(), talk.state.stepping.opened.pages) == (Phase.ARMED, {})


def test_page__that_could_not_be_put_back_is_closed_soon_though_another_stays_open(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(LOGGED), DENY_OBJECT, LOG_TEXT)
    talk = stuck.talk
    while not talk.state.stepping.opened.pages:
        stuck.fault(LOGGED)
        if talk.state.stepping.busy:
            stuck.stepped(failed=True)
    talk.peer.memory.write(frame_of(talk, MODULE_GVA), bytes.fromhex(exchange(COLLATERAL)))
    talk.state.stepping.repeats.forget(0)
    stuck.faults(COLLATERAL)
    refuse_once(stuck, SetPageAccess)
    stuck.stepped()
    assert Access.W in stuck.rights(GUARDED)
    talk.pass_time(2 * RETRY_SECONDS)
    assert stuck.rights(GUARDED) == Access.R | Access.X
    assert stuck.rights(LOGGED) == Access.R | Access.W | Access.X


def test_page__whose_content_before_is_not_known_is_told_as_that(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    refuse_once(stuck, SetPageAccess)
    stuck.stepped()
    stuck.talk.peer.memory.write(gpa_of(GUARDED), b"rooted")
    stuck.talk.pass_time(3)
    name = f"page {gpa_of(SEAM):#x}"
    assert facts(stuck)[-1] == f"ARMED high: {name} is guarded again, and whether bytes were changed on it isn't known"


def test_single_step__that_could_not_be_switched_off_is_with_its_next_event(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    refuse_once(stuck, ControlSinglestep, off=True)
    stuck.stepped()
    assert any("couldn't be switched off" in fact for fact in facts(stuck))
    stuck.talk.peer.commands.clear()
    assert stuck.stepped(length=12).action is Action.CONTINUE
    assert stuck.stepped(length=15).action is Action.CONTINUE
    assert stuck.talk.peer.commands == [ControlSinglestep(0, enable=False)]
    assert (stuck.standing, stuck.talk.state.stepping.left_on) == (set(), set())


def test_event__that_waits_for_a_step_is_counted_once(dialect: Dialect) -> None:
    stuck = guarded(dialect, exchange(COLLATERAL), DENY_OBJECT)
    stuck.faults(COLLATERAL)
    before = stuck.talk.state.counters.events
    stuck.fault(COLLATERAL + 0x400, rip=MODULE_GVA + 0x40)
    assert stuck.talk.state.counters.events == before + 1
