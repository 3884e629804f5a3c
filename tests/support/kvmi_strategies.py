"""Any message of any dialect, for property tests."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from policyc.kvmi import (
    Action,
    CheckCommand,
    Command,
    CpuMode,
    Descriptor,
    DescriptorTable,
    Dialect,
    EventData,
    EventKind,
    EventMsrs,
    EventReplyData,
    Features,
    MsrEntry,
    PageAccess,
    PfReply,
    Registers,
    ReplyData,
    Segment,
    SystemRegisters,
    TrapData,
    VcpuState,
)
from policyc.kvmi.messages import GetPageAccess, GetPageWriteBitmap, GetRegisters, ReadPhysical

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
errno = st.sampled_from([-1, -2, -7, -11, -12, -14, -16, -22, -95, -1000])

registers = st.builds(Registers, *[u64] * 18)
event_msrs = st.builds(EventMsrs, *[u64] * 9)
segments = st.builds(Segment, u64, u32, u16, *[u8] * 9)
tables = st.builds(DescriptorTable, u64, u16)
system_registers = st.builds(
    SystemRegisters, *[segments] * 8, *[tables] * 2, *[u64] * 7, st.binary(min_size=32, max_size=32)
)
rights = st.integers(0, 7)
entry = st.builds(lambda gpa, access: gpa.to_bytes(8, "little") + bytes([access]) + bytes(7), u64, rights)
areas = st.binary(max_size=64).map(lambda head: head.ljust(4096, b"\xa5"))

FIELDS: dict[str, SearchStrategy[Any]] = {
    "access": st.sampled_from(PageAccess),
    "address": u64,
    "area": areas,
    "command": u16,
    "cr": u8,
    "ctx_addr": u64,
    "ctx_data": st.binary(max_size=256),
    "data": st.binary(max_size=4096),
    "descriptor": st.sampled_from(Descriptor),
    "eax": u32,
    "ebx": u32,
    "ecx": u32,
    "edx": u32,
    "entries": st.lists(entry, max_size=20).map(b"".join),
    "err": st.integers(-(1 << 31), (1 << 31) - 1),
    "error_code": u32,
    "function": u32,
    "gfn": u64,
    "gpa": u64,
    "gva": u64,
    "index": u32,
    "insn_len": u8,
    "insn_length": u8,
    "max_message_size": u32,
    "mode": st.sampled_from(CpuMode),
    "msg_id": u16,
    "msg_seq": u32,
    "msr": u32,
    "msrs": st.lists(u32, max_size=20).map(tuple),
    "new": u64,
    "new_gfn": u64,
    "old": u64,
    "old_gfn": u64,
    "regs": registers,
    "size": st.integers(0, 4096),
    "sregs": system_registers,
    "token": st.binary(min_size=32, max_size=32),
    "tsc_speed": u64,
    "type": u8,
    "value": u64,
    "vcpu": u16,
    "vcpu_count": u32,
    "vector": u8,
    "version": u32,
    "view": u16,
    "xcr": u8,
}
"""Values for each field name; flags are booleans everywhere."""

SPECIAL: dict[tuple[str, str], SearchStrategy[Any]] = {
    ("GetPageAccess", "gpa"): st.lists(u64, max_size=20).map(tuple),
    ("GetPageWriteBitmap", "gpa"): st.lists(u64, max_size=20).map(tuple),
    ("SetPageWriteBitmap", "entries"): st.lists(st.tuples(u64, u32), max_size=20).map(tuple),
}


def commands(dialect: Dialect) -> SearchStrategy[Command]:
    """Any command of the dialect, with any values that it can express."""
    return st.sampled_from(sorted(dialect.commands, key=lambda cls: cls.__name__)).flatmap(
        lambda cls: command(cls, dialect)
    )


def command(cls: type[Command], dialect: Dialect) -> SearchStrategy[Command]:
    """Any command of that class."""
    return _message(cls, dialect)


def replies(asked: Command, dialect: Dialect) -> SearchStrategy[ReplyData]:
    """Any success that answers exactly that command."""
    sizes: dict[str, SearchStrategy[Any]] = {}
    if isinstance(asked, ReadPhysical):
        sizes["data"] = st.just(bytes(asked.size))
    if isinstance(asked, GetPageAccess):
        sizes["access"] = _exactly(len(asked.gpa), st.sampled_from(PageAccess))
    if isinstance(asked, GetPageWriteBitmap):
        sizes["bitmap"] = _exactly(len(asked.gpa), u32)
    if isinstance(asked, GetRegisters):
        sizes["msrs"] = _exactly(len(asked.msrs), st.builds(MsrEntry, u32, u64))
    return _message(asked.reply_type, dialect, **sizes)


def event_data(kind: EventKind, dialect: Dialect) -> SearchStrategy[EventData | None]:
    """Any data of that kind of event, or None if the dialect has none."""
    row = dialect.events[kind]
    return _message(row.data_type, dialect) if row.data_type else st.none()


def event_reply_data(kind: EventKind, dialect: Dialect) -> SearchStrategy[EventReplyData | None]:
    """Any data that a reply to that kind of event may carry."""
    row = dialect.events[kind]
    if row.reply_type is None:
        return st.none()
    data = _message(row.reply_type, dialect)
    return st.none() | data if row.reply_type is PfReply else data


def states(dialect: Dialect) -> SearchStrategy[VcpuState]:
    """Any state of a vCPU."""
    view = u16 if dialect.name == "kvmi-v7" else st.just(0)
    return st.builds(VcpuState, st.sampled_from(CpuMode), registers, system_registers, event_msrs, view)


def actions(kind: EventKind, dialect: Dialect) -> SearchStrategy[Action]:
    """Any action that the event supports."""
    return st.sampled_from(dialect.events[kind].actions)


def _message(cls: type[Any], dialect: Dialect, **special: SearchStrategy[Any]) -> SearchStrategy[Any]:
    known = _places(cls, dialect)
    chosen = {name: special[name] if name in special else _values(cls, name, dialect) for name in sorted(known)}
    return st.builds(cls, **chosen)


def _places(cls: type[Any], dialect: Dialect) -> set[str]:
    """The fields that the dialect can express: all, but for those that one of them alone has."""
    optional = {
        "view": cls.__name__ in VIEWS[dialect.name],
        "report_errors": dialect.name == "kvmi-v7",
        "max_message_size": dialect.name == "kvmi-v12",
        "features": dialect.name != "kvmi-v6",
        "singlestep": cls is not PfReply or dialect.name == "kvmi-v6",
        "type": cls is not TrapData or dialect.name == "kvmi-v6",
        **dict.fromkeys(("spp", "vmfunc", "eptp", "ve"), dialect.name == "kvmi-v7"),
    }
    return {f.name for f in fields(cls) if optional.get(f.name, True)}


VIEWS = {
    "kvmi-v6": {"SetPageAccess", "GetPageAccess", "GetPageWriteBitmap", "SetPageWriteBitmap", "PfData"},
    "kvmi-v7": {"SetPageAccess", "SetPageSve", "SetEptView", "ControlEptView", "GetEptViewReply"},
    "kvmi-v12": set[str](),
}
"""Messages that name an EPT view."""


def _values(cls: type[Any], name: str, dialect: Dialect) -> SearchStrategy[Any]:
    if name == "event":
        known = st.sampled_from(sorted(dialect.events, key=lambda kind: kind.value))
        return known | st.integers(0x100, 0xFFFF)
    if cls is CheckCommand and name == "command":
        return st.sampled_from(sorted(dialect.commands, key=lambda c: c.__name__)) | st.integers(0x100, 0xFFFF)
    if name == "features":
        return _message(Features, dialect)
    if (cls.__name__, name) in SPECIAL:
        return SPECIAL[cls.__name__, name]
    return FIELDS[name] if name in FIELDS else st.booleans()


def _exactly(count: int, values: SearchStrategy[Any]) -> SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, min_size=count, max_size=count).map(tuple)
