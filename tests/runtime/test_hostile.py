"""What a rootkit, a broken kernel or a hostile plan tries against the enforcer, and what becomes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from policyc.addresses import Gva, gfn_of
from policyc.kvmi import (
    V7,
    V12,
    Action,
    Command,
    ControlEvents,
    CpuMode,
    CrData,
    Dialect,
    ErrorCode,
    EventKind,
    GetInfo,
    GetInfoReply,
    GetRegisters,
    GetRegistersReply,
    InjectException,
    NewValue,
    PageAccess,
    PauseVcpu,
    PfData,
    SinglestepData,
    TranslateGva,
)
from policyc.kvmi.registers import DescriptorTable
from policyc.plan.store import PlanRefusedError, _canonical, _digest, dump, load
from policyc.plan.sweep import MAX_MEMBERSHIPS, OverlapLimitError, sweep
from policyc.runtime.bound import CodeFrames
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.service import Service, ServiceOptions
from policyc.runtime.session import Session
from policyc.runtime.state import Phase, State
from policyc.runtime.steps import Leave
from tests.runtime.test_enforcer import (
    CALLS,
    GUARDED,
    LET_PASS,
    MODULE_GVA,
    OBJECT,
    SCHEDULE,
    SKIPPED,
    TEXT,
    armed,
    done,
    write_to,
)
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SILENCE,
    SLIDE,
    Conversation,
    EventAnswer,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

STORE = bytes.fromhex("488903")
FXSAVE = bytes.fromhex("480fae07")


# --- a rootkit ---


def test_fxsave__counts_as_512_bytes() -> None:
    talk = armed(V12, TEXT, "deny write to kernel:sys_call_table")
    table = IMAGE_BASE + 0x4240
    talk.peer.memory.write(gpa_of(SCHEDULE), FXSAVE)
    assert write_to(talk, table - 511, rip=SCHEDULE + SLIDE) == SKIPPED
    assert write_to(talk, table - 512, rip=SCHEDULE + SLIDE) == LET_PASS


def test_size__is_not_trusted_where_rip_leads_to_other_guarded_code_than_was_bound() -> None:
    """The module's page is exchanged for a page of kernel text after its store was fetched."""
    talk = armed(V12, TEXT, OBJECT)
    talk.peer.memory.write(gpa_of(SCHEDULE), STORE)
    talk.peer.memory.map(talk.peer.root, MODULE_GVA, gpa_of(SCHEDULE))
    assert write_to(talk, GUARDED - 100, rip=MODULE_GVA) == SKIPPED


@pytest.mark.parametrize("mode", [CpuMode.REAL, CpuMode.PROTECTED], ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("code", "answer"), [(STORE, "injected exception 13"), (b"\x88\x07", "skipped the instruction")]
)
def test_code_is_decoded_in_the_mode_that_the_event_tells(mode: CpuMode, code: bytes, answer: str) -> None:
    """Outside long mode `48` is no prefix but an instruction, which isn't a store."""
    talk = armed(V12, TEXT, OBJECT)
    talk.peer.memory.write(gpa_of(SCHEDULE), code)
    state = replace(talk.peer.vcpu_state(SCHEDULE + SLIDE, 0), mode=mode)
    data = PfData(Gva(GUARDED + SLIDE), gpa_of(GUARDED), PageAccess.W)
    talk.peer.kernel.send_event(EventKind.PF, 0, state, data)
    talk.talk()
    assert talk.peer.answers == [SKIPPED]
    assert done(talk) == [answer]


def test_read_denied__gets_a_general_protection_fault() -> None:
    talk = armed(V7, "deny read, write, execute to kernel:guarded_object")
    data = PfData(Gva(GUARDED + SLIDE), gpa_of(GUARDED), PageAccess.R)
    assert talk.event(EventKind.PF, data, rip=MODULE_GVA) == SKIPPED
    assert [c for c in talk.peer.commands if isinstance(c, InjectException)] == [InjectException(0, 13)]
    assert done(talk) == ["injected exception 13"]


def test_allow__is_not_worth_a_record() -> None:
    talk = armed(V7, 'deny write to kernel .text\nallow write to kernel:schedule size 0x1000 because "x"\n' + OBJECT)
    assert write_to(talk, SCHEDULE) == LET_PASS
    assert [record for record in talk.records if isinstance(record, VerdictRecord)] == []


def moved_gdt(talk: Conversation) -> None:
    """The guest loads another GDT while the tool believes to know where it lies."""
    stopped = False

    def answer(command: Command) -> GetRegistersReply | None:
        nonlocal stopped
        stopped = stopped or isinstance(command, PauseVcpu)
        if not stopped or not isinstance(command, GetRegisters):
            return None
        reply = talk.peer.carry_out(command)
        assert isinstance(reply, GetRegistersReply)

        table = DescriptorTable(IMAGE_BASE + SLIDE + 0x7000, 0x7F)
        return replace(reply, sregs=replace(reply.sregs, gdt=table))

    talk.peer.override = answer


def test_descriptor_table__is_guarded_where_it_lies_when_the_vcpus_stand_still() -> None:
    talk = Conversation(compile_plan("deny write to gdt"), ScriptedKernel(V7))
    moved_gdt(talk)
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    assert list(talk.peer.rights) == [gfn_of(gpa_of(IMAGE_BASE + 0x7000))]


# --- a broken kernel ---


def test_vcpu_that_starts_while_arming__is_guarded() -> None:
    def second_not_started(command: Command) -> ErrorCode | None:
        late = isinstance(command, GetRegisters) and command.vcpu == 1
        return ErrorCode.EAGAIN if late else None

    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7, vcpus=2, override=second_not_started))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    assert sorted(c.vcpu for c in talk.peer.commands if isinstance(c, ControlEvents)) == [0, 1]
    assert talk.peer.kernel.waiting == {}


def test_vcpu_created_while_arming__is_guarded() -> None:
    peer = ScriptedKernel(V7, vcpus=2)
    created = False

    def create_second(command: Command) -> GetInfoReply | ErrorCode | None:
        nonlocal created
        if isinstance(command, GetInfo):
            return GetInfoReply(1)
        if isinstance(command, PauseVcpu) and not created:
            created = True
            peer.kernel.send_event(EventKind.CREATE_VCPU, 1, peer.vcpu_state(0xFFF0, 0), None)
        return None

    peer.override = create_second
    talk = Conversation(compile_plan(TEXT), peer)
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    assert sorted(c.vcpu for c in peer.commands if isinstance(c, ControlEvents)) == [0, 1]
    assert peer.kernel.waiting == {}


def test_vcpu_plugged_later__is_found_where_the_kernel_does_not_tell() -> None:
    peer = ScriptedKernel(V12, vcpus=2)
    count = 1
    peer.override = lambda command: GetInfoReply(count) if isinstance(command, GetInfo) else None
    talk = Conversation(compile_plan(TEXT), peer)
    talk.connect()
    assert [c.vcpu for c in peer.commands if isinstance(c, ControlEvents)] == [0]
    count = 2
    talk.pass_time(2.5)
    assert [c.vcpu for c in peer.commands if isinstance(c, ControlEvents)] == [0, 1]
    assert any("ran unguarded" in str(record.to_json(talk.plan).get("fact")) for record in talk.records)
    talk.feed(Leave("asked to leave"))
    assert talk.disconnected == "the guest has been let go"


@pytest.mark.parametrize("count", [0, 4097, 0xFFFFFFFF])
def test_absurd_number_of_vcpus__is_refused(count: int) -> None:
    peer = ScriptedKernel(V7, override=lambda command: GetInfoReply(count) if isinstance(command, GetInfo) else None)
    talk = Conversation(compile_plan(TEXT), peer)
    talk.connect()
    assert talk.state.outcome is not None
    assert "how many vCPUs" in talk.state.outcome.fact


def test_slow_kernel__is_not_let_to_stop_the_guest_for_long_unsaid() -> None:
    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7))

    def slow_while_stopped(command: Command) -> None:
        if talk.state.scheduler.standing.held:
            talk.now += 0.2

    talk.peer.override = slow_while_stopped
    talk.connect()
    talk.pass_time(60)
    assert talk.state.phase is Phase.DEGRADED
    assert sum(isinstance(command, PauseVcpu) for command in talk.peer.commands) == 3


def test_slow_firmware__is_given_up_after_the_time_it_has() -> None:
    def slow(command: Command) -> GetRegistersReply | None:
        if not isinstance(command, GetRegisters):
            return None
        talk.now += 4.0
        reply = talk.peer.carry_out(command)
        assert isinstance(reply, GetRegistersReply)

        return replace(reply, msrs=tuple(replace(entry, data=0) for entry in reply.msrs))

    talk = Conversation(compile_plan(TEXT), ScriptedKernel(V7))
    talk.peer.override = slow
    begin = talk.now
    talk.connect()
    talk.pass_time(300)
    assert talk.state.outcome is not None
    assert talk.state.outcome.transient
    asked = sum(isinstance(command, GetRegisters) for command in talk.peer.commands)
    assert asked * 4.0 <= 130
    assert talk.now - begin >= 120


def test_event_that_nobody_asked_for__is_answered_and_said() -> None:
    talk = armed(V7, TEXT)
    assert talk.event(EventKind.SINGLESTEP, SinglestepData(failed=False), rip=MODULE_GVA) == LET_PASS
    assert "nobody asked for" in str(talk.records[0].to_json(talk.plan)["fact"])


def test_plan_for_another_dialect__is_refused_before_anything_is_asked() -> None:

    talk = Conversation(replace(compile_plan(CALLS), target="kvmi-v12"), ScriptedKernel(V7))
    talk.connect()
    assert talk.state.outcome is not None
    assert talk.state.outcome.fact == "the plan was compiled for kvmi-v12, and this kernel speaks kvmi-v7"


def test_created_vcpu__is_judged_where_a_rule_is_about_it() -> None:
    from policyc.compiler.options import CheckOptions

    talk = armed_for_v7("on vcpu created crash", CheckOptions(target="kvmi-v7"))
    assert talk.event(EventKind.CREATE_VCPU, rip=0xFFF0).action is Action.CRASH


def armed_for_v7(text: str, options: object) -> Conversation:
    from policyc.compiler.options import CheckOptions
    from policyc.compiler.pipeline import compile_policies
    from policyc.diagnostics import Source
    from policyc.guest.readers import build_profile
    from tests.support.scripted_kernel import SYSTEM_MAP

    assert isinstance(options, CheckOptions)
    plan = compile_policies([Source("p", text)], build_profile(SYSTEM_MAP), options).plan
    assert plan is not None
    talk = Conversation(plan, ScriptedKernel(V7))
    talk.connect()
    return talk


# --- a hostile plan ---


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rules", 0, "places"), [0.0]),
        (("rules", 0, "policy"), 0.0),
        (("rules", 0, "effect", "retries"), 0.0),
    ],
)
def test_plan__a_float_is_no_index(path: tuple[str | int, ...], value: object) -> None:
    document = json.loads(dump(compile_plan(TEXT)))
    target = document["core"]
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    document["core_digest"] = _digest(_canonical(document["core"]))
    with pytest.raises(PlanRefusedError, match="no whole number"):
        load(json.dumps(document).encode())


@pytest.mark.parametrize("vector", [3, 14, 255])
def test_plan__an_exception_that_would_stop_the_guest_is_refused(vector: int) -> None:
    document = json.loads(dump(compile_plan("inject gp write to kernel .text")))
    document["core"]["rules"][0]["effect"]["argument"] = hex(vector)
    document["core_digest"] = _digest(_canonical(document["core"]))
    with pytest.raises(PlanRefusedError, match=f"injects exception {vector}"):
        load(json.dumps(document).encode())


def test_sweep__gives_up_before_the_memory_does() -> None:
    count = int((2 * MAX_MEMBERSHIPS) ** 0.5) + 2
    with pytest.raises(OverlapLimitError):
        sweep((number, 10 * count - number, number) for number in range(count))


def test_code_frames__overlapping_runs_answer_as_one() -> None:
    frames = CodeFrames([(0x1000, 0x5000, 0x91000), (0x2000, 0x2040, 0x92000), (0x4F00, 0x5100, 0x94F00)])
    assert [frames.gpa_of(a) for a in (0xFFF, 0x1000, 0x2010, 0x3000, 0x50FF, 0x5100)] == [
        None,
        0x91000,
        0x92010,
        0x93000,
        0x950FF,
        None,
    ]


# --- our own defects ---


def test_defect__costs_a_connection_and_not_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import threading

    def broken(session: Session[State], data: bytes, now: float) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Session, "_take", broken)
    records: list[dict[str, object]] = []
    service = Service(compile_plan(TEXT), ServiceOptions(tmp_path / "s"), records.append)
    thread = threading.Thread(target=service.run)
    thread.start()
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "s"))
            peer.sendall(b"x")
            assert peer.recv(1) == b""
    service.leave()
    thread.join(30)
    facts = [str(record.get("fact")) for record in records if record.get("severity") == "critical"]
    assert facts == ["a defect of policyc ended the session: ZeroDivisionError: a defect"] * 2


@pytest.mark.parametrize("dialect", [V7, V12], ids=lambda dialect: dialect.name)
def test_slow_kernel__denies_nothing_under_the_ceiling(dialect: Dialect) -> None:
    text = 'c: on cr4 deny except from kernel:__text_poke because "it may"'
    talk = Conversation(compile_plan(text), ScriptedKernel(dialect))
    talk.state.monitor = True
    talk.connect()
    talk.peer.override = lambda command: SILENCE if isinstance(command, TranslateGva) else None
    rip = IMAGE_BASE + SLIDE + 0x1240
    talk.peer.kernel.send_event(EventKind.CR, 0, talk.peer.vcpu_state(rip, 0), CrData(4, 0x3006F0, 0x2006F0))
    talk.talk()
    talk.pass_time(6)
    assert talk.peer.answers == [EventAnswer(Action.CONTINUE, NewValue(0x2006F0))]
    record = talk.records[-1]
    assert isinstance(record, StateRecord)
    assert record.fact == "an event was let through unjudged: 1 commands unanswered for 5 seconds"
