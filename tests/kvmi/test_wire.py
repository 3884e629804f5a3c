"""Every struct, command and event against the facts of the kernel headers: names, offsets, sizes, numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from policyc.kvmi import DIALECTS, Action, EventKind
from policyc.kvmi.dialects import RunsOn
from policyc.kvmi.layout import Layout, parse_layouts
from policyc.kvmi.wire import HANDSHAKE, SHARED
from tests.support.kvmi_vectors import VECTORS

LINES = [line.split(" ", 3) for line in (VECTORS / "layouts.txt").read_text().splitlines()]
GENERATIONS = {name.removeprefix("kvmi-"): dialect for name, dialect in DIALECTS.items()}

OTHER_COMMAND_NAMES = {
    "GET_GUEST_INFO": "GetInfo",
    "VM_GET_INFO": "GetInfo",
    "GET_VCPU_INFO": "VcpuGetInfo",
    "VCPU_GET_INFO": "VcpuGetInfo",
    "VCPU_PAUSE": "PauseVcpu",
    "VM_CONTROL_EVENTS": "ControlVmEvents",
    "CONTROL_VM_EVENTS": "ControlVmEvents",
    "VM_PAUSE_VCPU": "PauseVcpu",
    "PAUSE_VCPU": "PauseVcpu",
}
"""Commands whose name here isn't simply the kernel's without VM or VCPU in front."""

WITHOUT_STRUCT = {"read_physical_reply", "kvmi_vcpu_get_xsave_reply", "kvmi_vcpu_set_xsave"}
"""What some headers declare as bare bytes; 4096 of them in the case of xsave."""

Member = tuple[int, str, str, str]
"""Offset, scalar type, name and count."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A command, event or struct as a header has it."""

    name: str
    words: tuple[str, ...]
    values: dict[str, str]
    body: str


def facts(what: str, generation: str) -> list[Fact]:
    found = []
    for where, kind, name, rest in LINES:
        if (where, kind) == (generation, what):
            head, _, body = rest.partition(":")
            words = head.split(" ")
            values = dict(word.split("=") for word in words if "=" in word)
            found.append(Fact(name, tuple(word for word in words if "=" not in word), values, body))
    return found


def header_structs(generation: str) -> dict[str, Fact]:
    return {fact.name: fact for where in (generation, "kvm_x86") for fact in facts("struct", where)}


def flat_fact(name: str, structs: dict[str, Fact], start: int = 0) -> list[Member]:
    """The scalars of a struct of the header, nested structs opened."""
    found: list[Member] = []
    for member in structs[name].body.split("; "):
        match = re.fullmatch(r" ?(\d+) (\w+) (\w+)(?:\[(.+)\])?", member)
        assert match, member
        at = start + int(match[1])
        if match[2] in structs and not match[4]:
            found += flat_fact(match[2], structs, at)
        elif match[2] != "group":
            found.append((at, match[2], match[3], match[4] or "1"))
    return found


def flat_layout(layout: Layout, structs: dict[str, Layout], start: int = 0) -> list[Member]:
    """The scalars of one of our layouts, in the same form."""
    found: list[Member] = []
    for field in layout.fields:
        if field.type in structs and field.count == 1:
            found += flat_layout(structs[field.type], structs, start + field.offset)
        else:
            count = "*" if field.count is None else str(field.count)
            found.append((start + field.offset, field.type, field.name, count))
    return found


def check_struct(generation: str, ours: str | None, theirs: str) -> None:
    if ours in WITHOUT_STRUCT:
        return
    structs = dict(GENERATIONS[generation].structs)
    assert (ours is None) == (theirs == "-")
    if ours is None:
        return
    wanted = header_structs(generation)
    assert flat_layout(structs[ours], structs) == flat_fact(theirs, wanted)
    assert structs[ours].size == int(wanted[theirs].values["size"])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_commands_are_those_of_the_header(generation: str) -> None:
    dialect = GENERATIONS[generation]
    seen = []
    for fact in facts("command", generation):
        row = dialect.command_by_id[int(fact.values["id"])]
        seen.append(row.message)
        bare = re.sub(r"^(VM|VCPU)_", "", fact.name).title().replace("_", "")
        assert row.message.__name__ == OTHER_COMMAND_NAMES.get(fact.name, bare)
        assert row.vcpu_header is (fact.words[0] == "vcpu_hdr"), fact.name
        assert row.runs_on is {"recv": RunsOn.RECEIVER, "vcpu": RunsOn.VCPU}[fact.words[1]], fact.name
        check_struct(generation, row.request, fact.values["request"])
        if fact.name not in ("READ_PHYSICAL", "VM_READ_PHYSICAL"):
            check_struct(generation, row.reply, fact.values["reply"])
    assert set(seen) == dialect.commands.keys()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_events_are_those_of_the_header(generation: str) -> None:
    dialect = GENERATIONS[generation]
    actions = {"C": Action.CONTINUE, "R": Action.RETRY, "X": Action.CRASH}
    seen = []
    for fact in facts("event", generation):
        row = dialect.event_by_id[int(fact.values["id"])]
        seen.append(row.kind)
        assert row.kind.name == {"PAUSE_VCPU": "PAUSE"}.get(fact.name, fact.name)
        assert row.vm_level is (fact.words[0] == "vm")
        listed = tuple(actions[letter] for letter in fact.values["actions"].strip("-"))
        # RETRY for CPUID isn't in the kernel's list of actions, and works on a running v7 kernel.
        assert row.actions == (listed if row.kind is not EventKind.CPUID else tuple(Action))
        check_struct(generation, row.data, fact.values["data"])
        check_struct(generation, row.reply, fact.values["reply"])
    assert set(seen) == dialect.events.keys()


@pytest.mark.parametrize(
    ("generation", "ours", "theirs"),
    [
        *((generation, name, name) for generation in GENERATIONS for name in ("kvmi_msg_hdr", "kvmi_error_code")),
        *((generation, "kvmi_vcpu_hdr", "kvmi_vcpu_hdr") for generation in GENERATIONS),
        *((generation, "kvmi_page_access_entry", "kvmi_page_access_entry") for generation in GENERATIONS),
        ("v6", "kvmi_event", "kvmi_event"),
        ("v7", "kvmi_event", "kvmi_event"),
        ("v12", "kvmi_event_hdr", "kvmi_event_hdr"),
        ("v12", "kvmi_vcpu_event", "kvmi_vcpu_event"),
        ("v6", "kvmi_event_reply", "kvmi_event_reply"),
        ("v7", "kvmi_event_reply", "kvmi_event_reply"),
        ("v12", "kvmi_event_reply", "kvmi_vcpu_event_reply"),
    ],
)
def test_frames_are_those_of_the_header(generation: str, ours: str, theirs: str) -> None:
    check_struct(generation, ours, theirs)


@pytest.mark.parametrize(
    ("vmm", "ours", "theirs"),
    [
        ("qemu_v7", "introspector2qemu", "introspector2qemu"),
        ("qemu_v7", "hello_v7", "qemu2introspector"),
        ("qemu_v12", "hello_v12", "qemu2introspector"),
        ("qemu_v7_2_11_93", "e820_entry", "e820_entry"),
    ],
)
def test_handshake_is_that_of_qemu(vmm: str, ours: str, theirs: str) -> None:
    assert flat_layout(HANDSHAKE[ours], dict(HANDSHAKE)) == flat_fact(theirs, header_structs(vmm))


def test_hello_with_memory_map_is_that_of_qemu() -> None:
    """Here the flexible array lies in a nested struct whose hole the header doesn't name."""
    ours = {
        (at, kind, count) for at, kind, name, count in flat_layout(HANDSHAKE["hello_e820"], {}) if "pad" not in name
    }
    theirs = flat_fact("qemu2introspector", header_structs("qemu_v7_2_11_93"))
    assert ours == {(at, kind, count) for at, kind, name, count in theirs if "pad" not in name}


@pytest.mark.parametrize("name", [fact.name for fact in facts("struct", "kvm_x86")])
def test_register_blocks_are_those_of_the_header(name: str) -> None:
    assert flat_layout(SHARED[name], dict(SHARED)) == flat_fact(name, header_structs("v7"))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("u8 a", "not a struct"),
        ("s: u8 a, u16 b", "name the hole"),
        ("s: u9 a", "not a field"),
        ("s: other a", "not a field"),
        ("s: u8", "not a field"),
    ],
)
def test_a_row_that_is_wrong_is_refused(row: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_layouts(row)


def test_a_layout_says_what_the_row_says() -> None:
    layout = parse_layouts("s: u8 a, u8 padding1, u16 b, u32 reserved, u64 c[2], u32 d[]")["s"]
    assert [(f.name, f.offset, f.count, f.size, f.padding) for f in layout.fields] == [
        ("a", 0, 1, 1, False),
        ("padding1", 1, 1, 1, True),
        ("b", 2, 1, 2, False),
        ("reserved", 4, 1, 4, True),
        ("c", 8, 2, 16, False),
        ("d", 24, None, 0, False),
    ]
    assert (layout.size, layout.names, layout.tail) == (24, ("a", "b", "c"), "d")
    assert layout.struct.pack(1, 2, b"c" * 16) == b"\1\0\2\0\0\0\0\0" + b"c" * 16
    assert layout.padding_is_zero(b"\xff\0\xff\xff\0\0\0\0")
    assert not layout.padding_is_zero(b"\0\0\0\0\0\0\1")
