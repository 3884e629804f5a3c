"""A guest of the scripted kernel whose vCPU 0 is about to execute an instruction that KVM can't emulate."""

from __future__ import annotations

from dataclasses import dataclass

from policyc.addresses import Gpa, Gva, gfn_of
from policyc.catalog import Access
from policyc.kvmi import (
    Action,
    Command,
    Dialect,
    EventKind,
    Features,
    GetVersion,
    GetVersionReply,
    PageAccess,
    PfData,
    SetPageAccess,
    SinglestepData,
    page_entries,
)
from policyc.runtime.records import StateRecord, VerdictRecord
from policyc.runtime.state import Phase
from tests.support.audit_schema import check_records
from tests.support.scripted_kernel import (
    IMAGE_BASE,
    SLIDE,
    Conversation,
    EventAnswer,
    Result,
    ScriptedKernel,
    compile_plan,
    gpa_of,
)

__all__ = ["MODULE_GVA", "Stuck", "facts", "guarded", "moves"]

MODULE_GVA = 0xFFFFFFFFC0401000
"""Where the instruction stands: code that anybody may write."""


@dataclass
class Stuck:
    """A conversation with a guest that is armed, whose vCPU 0 is about to repeat itself."""

    talk: Conversation

    def fault(self, link_address: int, *, access: PageAccess = PageAccess.W, rip: int = MODULE_GVA) -> None:
        """vCPU 0's access to a byte of the image comes as an event; what the tool does with it isn't waited for."""
        self.send(EventKind.PF, PfData(Gva(link_address + SLIDE), gpa_of(link_address), access), rip=rip)

    def faults(self, link_address: int, times: int = 3) -> list[Action | None]:
        """The same again and again, each when the last has been answered; the answers."""
        before = len(self.talk.peer.answers)
        for _ in range(times):
            self.fault(link_address)
        return [answer.action for answer in self.talk.peer.answers[before:]]

    def stepped(self, *, failed: bool = False, length: int = 9) -> EventAnswer:
        """The SINGLESTEP event of vCPU 0 behind its instruction, or on it where it failed; the answer."""
        rip = MODULE_GVA + (0 if failed else length)
        self.send(EventKind.SINGLESTEP, SinglestepData(failed), rip=rip)
        return self.talk.peer.answers[-1]

    def send(self, kind: EventKind, data: object = None, *, rip: int = MODULE_GVA, vcpu: int = 0) -> None:
        """Any event of a vCPU."""
        assert data is None or isinstance(data, (PfData, SinglestepData))
        self.talk.peer.kernel.send_event(kind, vcpu, self.talk.peer.vcpu_state(rip, 0), data)
        self.talk.talk()

    def rights(self, link_address: int) -> Access:
        """What the frame of an address allows now."""
        return Access(self.talk.peer.rights.get(gfn_of(gpa_of(link_address)), 7))

    def phase(self) -> Phase:
        """How far the tool has come."""
        return self.talk.state.phase

    @property
    def standing(self) -> set[int]:
        """The vCPUs whose events aren't answered."""
        return set(self.talk.peer.kernel.waiting)


def guarded(dialect: Dialect, code: str, *texts: str, vcpus: int = 2, singlestep: bool = True) -> Stuck:
    """An armed guest with this machine code at `MODULE_GVA`.

    Args:
        singlestep: whether the host says that it can step.
    """

    def version(command: Command) -> Result:
        if not isinstance(command, GetVersion):
            return None
        size = 8184 if dialect.name == "kvmi-v12" else 0
        return GetVersionReply(max_message_size=size, features=Features(singlestep=singlestep))

    plan = compile_plan("\n".join(texts))
    talk = Conversation(plan, ScriptedKernel(dialect, vcpus=vcpus, override=version))
    page = talk.peer.memory.new_page()
    talk.peer.memory.map(talk.peer.root, MODULE_GVA, page)
    talk.peer.memory.write(page, bytes.fromhex(code))
    talk.connect()
    assert talk.state.phase is Phase.ARMED
    talk.peer.commands.clear()
    talk.peer.answers.clear()
    talk.records.clear()
    return Stuck(talk)


def moves(stuck: Stuck) -> list[str]:
    """What the tool asked for since, in order: names, and of pages what they're to allow."""
    found = []
    for command in stuck.talk.peer.commands:
        if isinstance(command, SetPageAccess):
            pages = page_entries(command)
            found.append("pages " + " ".join(f"{_offset(gpa):x}:{Access(rights).rwx}" for gpa, rights in pages))
        else:
            on = getattr(command, "enable", None)
            found.append(type(command).__name__ + ("" if on is None else " on" if on else " off"))
    return found


def facts(stuck: Stuck) -> list[str]:
    """What was recorded: the facts, and of verdicts what was done. All of it keeps to the schema."""
    check_records(record.to_json(stuck.talk.plan) for record in stuck.talk.records)
    found = []
    for record in stuck.talk.records:
        if isinstance(record, StateRecord):
            found.append(f"{record.state} {record.severity}: {record.fact}")
        elif isinstance(record, VerdictRecord):
            found.append(record.done)
    return found


def _offset(gpa: Gpa) -> int:
    return gpa - gpa_of(IMAGE_BASE)
