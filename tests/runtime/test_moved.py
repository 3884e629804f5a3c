"""Guarded addresses that the guest comes to map elsewhere: the rule follows them, and their old frame is released."""

from __future__ import annotations

import pytest

from policyc.addresses import Gpa, Gva, gfn_of
from policyc.kvmi import V7, V12, Action, Command, Dialect, ErrorCode, EventKind, PageAccess, PfData, SetPageAccess
from policyc.runtime.moved import LOOK_PAUSE
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.state import Phase
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, Result, ScriptedKernel, compile_plan, gpa_of

MODULE = 0xFFFFFFFFC0401000
OUTSIDER = IMAGE_BASE + SLIDE + 0x6000
TEXT = f"module: deny write to virtual {MODULE:#x} size 4K"
SKIPPED = Action.RETRY
LET_PASS = Action.CONTINUE
STORE = bytes.fromhex("488903")  # mov [rbx], rax


class Module:
    """A conversation with a guest whose module lies in a frame of its own."""

    def __init__(self, dialect: Dialect, *texts: str, override: object = None) -> None:
        kernel = ScriptedKernel(dialect)
        if callable(override):
            kernel.override = override
        self.talk = Conversation(compile_plan("\n".join(texts)), kernel)
        self.memory = kernel.memory
        self.root = kernel.root
        self.first, self.second = self.memory.new_page(), self.memory.new_page()
        self.memory.map(self.root, MODULE, self.first)
        self.memory.write(gpa_of(IMAGE_BASE + 0x6000), STORE)
        self.talk.connect()
        assert self.talk.state.phase is Phase.ARMED, self.talk.disconnected

    def write(self, frame: Gpa, offset: int = 0) -> Action | None:
        """Store to a frame, and wait until the next look is due; what the tool answered."""
        data = PfData(Gva(MODULE + offset), Gpa(frame + offset), PageAccess.W)
        answer = self.talk.event(EventKind.PF, data, rip=OUTSIDER)
        return answer.action

    @property
    def guarded(self) -> set[int]:
        return set(self.talk.peer.rights)

    def moves(self) -> list[StateRecord]:
        return [r for r in self.talk.records if isinstance(r, StateRecord) and "mapped guarded" in r.fact]


@pytest.fixture(params=[V7, V12], ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


def test_denial__stands_while_the_address_leads_there(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    assert module.write(module.first) is SKIPPED
    assert (module.guarded, module.moves()) == ({gfn_of(module.first)}, [])


def test_denial__is_let_through_where_the_frame_has_another_owner(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert module.guarded == {gfn_of(module.second)}
    assert module.write(module.second) is SKIPPED
    (record,) = module.moves()
    assert record.severity == "critical"
    assert record.details == {
        "released": [hex(gfn_of(module.first))],
        "guarded": [hex(gfn_of(module.second))],
        "unmapped": [],
        "refused": [],
    }
    done = [r.done for r in module.talk.records if isinstance(r, VerdictRecord)]
    assert done == ["skipped the instruction"]


def test_denial__is_let_through_where_the_address_leads_nowhere(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    module.memory.map(module.root, MODULE, 0, flags=0)
    assert module.write(module.first) is LET_PASS
    assert module.guarded == set()
    (record,) = module.moves()
    assert record.details["unmapped"] == [f"virtual {MODULE:#x}..{MODULE + 0x1000:#x}"]


def test_look__is_taken_once_a_second(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    assert module.write(module.first) is SKIPPED
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is SKIPPED
    module.talk.pass_time(LOOK_PAUSE)
    assert module.write(module.first) is LET_PASS


def test_moving_on_and_on__is_followed_once_a_second(dialect: Dialect) -> None:
    module = Module(dialect, TEXT)
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    module.memory.map(module.root, MODULE, module.first)
    assert module.write(module.second) is SKIPPED
    assert len(module.moves()) == 1
    module.talk.pass_time(LOOK_PAUSE)
    assert module.write(module.second) is LET_PASS
    assert module.guarded == {gfn_of(module.first)}


def test_hole__doesnt_follow_to_new_frames(dialect: Dialect) -> None:
    module = Module(dialect, TEXT, f"allow write to virtual {MODULE + 0x800:#x} size 0x800")
    assert module.write(module.first, 0x800) is LET_PASS
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first, 0x100) is LET_PASS
    assert module.write(module.second, 0x800) is SKIPPED


def test_image__stays_where_it_was_bound(dialect: Dialect) -> None:
    module = Module(dialect, TEXT, "text: deny write to kernel .rodata")
    module.memory.map(module.root, IMAGE_BASE + SLIDE + 0x4000, module.second)
    frame = Gpa(gpa_of(IMAGE_BASE + 0x4000))
    assert module.write(frame) is SKIPPED
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert gfn_of(frame) in module.guarded


def test_kernel_that_refuses__degrades_and_guards_what_it_can(dialect: Dialect) -> None:
    refusing = False

    def override(command: Command) -> Result:
        return ErrorCode.ENOMEM if refusing and isinstance(command, SetPageAccess) else None

    module = Module(dialect, TEXT, override=override)
    refusing = True
    module.memory.map(module.root, MODULE, module.second)
    assert module.write(module.first) is LET_PASS
    assert module.talk.state.phase is Phase.DEGRADED
    (record,) = module.moves()
    assert isinstance(record.details["refused"], list)
    assert len(record.details["refused"]) == 2
