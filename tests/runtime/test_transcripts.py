"""Every cell of the legality table on the wire, in each dialect, as it was looked through once and kept.

The transcripts are made by the real enforcer and the real protocol objects against the scripted kernel. What is held
against KVMI's documents here is decoded from their bytes by hand, without the codec that wrote them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from policyc.catalog import EVENTS, LEGALITY, RETRYABLE, TARGETS, Column, EffectKind
from tests.support.kvmi_vectors import expand
from tests.support.transcripts import FOLDER, REFRESH, Cell, cells, transcript

CELLS = [(dialect, cell) for dialect in TARGETS for cell in cells(dialect)]
CONTINUE, RETRY, CRASH = range(3)
REPLY_ID = {"kvmi-v7": 0, "kvmi-v12": 1}
INJECT_ID = {"kvmi-v7": 19, "kvmi-v12": 15}
SET_REGISTERS_ID = {"kvmi-v7": 14, "kvmi-v12": 9}


def of_events(column: Column, dialect: str) -> bool:
    """Whether the dialect has an event of that column; page faults are there in all."""
    specs = [spec for spec in EVENTS.values() if spec.column is column]
    return not specs or any(dialect in spec.dialects for spec in specs)


def legal_names(dialect: str) -> set[str]:
    """The transcripts that there have to be, from the table alone."""
    names = set()
    for effect, row in LEGALITY.items():
        for column in row:
            if of_events(column, dialect):
                names.add(f"{column.name.lower()}-{effect.name.lower()}.txt")
                if column in RETRYABLE and effect is not EffectKind.ALLOW:
                    names.add(f"{column.name.lower()}-retry-{effect.name.lower()}.txt")
    return names


@pytest.mark.parametrize("dialect", TARGETS)
def test_transcripts__each_legal_cell_has_one_and_no_other(dialect: str) -> None:
    assert {path.name for path in (FOLDER / dialect).iterdir()} == legal_names(dialect), f"run {REFRESH}"


@pytest.mark.parametrize(("dialect", "cell"), CELLS, ids=lambda each: each if isinstance(each, str) else each.name)
def test_transcript__is_what_happens(dialect: str, cell: Cell) -> None:
    assert transcript(cell, dialect) == (FOLDER / dialect / cell.name).read_text(), f"look, then run {REFRESH}"


# --- what the bytes say, decoded by hand ---


@dataclass
class Scene:
    """One scene of a transcript: the messages of either side, in order."""

    title: str
    lines: list[tuple[str, str, bytes]]

    def sent(self, dialect: str, message_id: int) -> list[bytes]:
        """The payloads that the tool sent under this id."""
        found = [data for side, _, data in self.lines if side == ">"]
        return [data[8:] for data in found if struct.unpack_from("<H", data) == (message_id,)]

    def replies(self, dialect: str) -> list[tuple[int, bytes]]:
        """Each event reply's action, and what follows the sixteen bytes of its head."""
        return [(payload[8], payload[16:]) for payload in self.sent(dialect, REPLY_ID[dialect])]

    @property
    def events(self) -> list[tuple[str, int]]:
        """Kind and sequence number of what came, as the lines and the bytes have it."""
        found = [(text.split()[0], data) for side, text, data in self.lines if side == "<" and " seq " in text]
        return [(kind, struct.unpack_from("<I", data, 4)[0]) for kind, data in found]


def scenes(dialect: str, name: str) -> Iterator[Scene]:
    for part in re.split(r"^== ", (FOLDER / dialect / name).read_text(), flags=re.MULTILINE)[1:]:
        title, _, *lines = part.splitlines()
        spoken = [
            (line[0], line[2:], expand(after.strip()))
            for line, after in zip(lines, [*lines[1:], ""], strict=True)
            if line[:2] in ("< ", "> ")
        ]
        yield Scene(title, spoken)


@pytest.mark.parametrize("dialect", TARGETS)
def test_replies__each_event_is_answered_once_with_its_number(dialect: str) -> None:
    for name in legal_names(dialect):
        for scene in scenes(dialect, name):
            answered = [
                struct.unpack_from("<I", data, 4)[0]
                for side, _, data in scene.lines
                if side == ">" and struct.unpack_from("<H", data) == (REPLY_ID[dialect],)
            ]
            wanted = [seq for kind, seq in scene.events if kind != "unhook"]
            assert sorted(answered) == wanted, (name, scene.title)


@pytest.mark.parametrize("dialect", TARGETS)
def test_monitored__every_reply_lets_it_happen(dialect: str) -> None:
    """Nothing is asked of the vCPU either; a register gets what the guest wrote."""
    for name in legal_names(dialect):
        for scene in scenes(dialect, name):
            if "monitor" not in scene.title:
                continue
            assert not scene.sent(dialect, INJECT_ID[dialect]), (name, scene.title)
            assert not scene.sent(dialect, SET_REGISTERS_ID[dialect]), (name, scene.title)
            for action, data in scene.replies(dialect):
                event = next(data for side, text, data in scene.lines if side == "<" and " seq " in text)
                # Old and new value are the last sixteen bytes of CR and MSR events.
                new = event[-8:] if name.startswith("register-") else b""
                assert (action, data) == (CONTINUE, new), (name, scene.title)


REGISTER_VALUES = {
    "log": {"cr0": 0x80040031, "cr3": 0x2B0B000, "cr4": 0x6F0},
    "deny": {"cr0": 0x80050033, "cr3": 0x2A0A000, "cr4": 0x3006F0},
    "pin": {"cr0": 0x80050031, "cr4": 0x1006F0, "msr efer": 0xD01},
}


@pytest.mark.parametrize("dialect", TARGETS)
@pytest.mark.parametrize("effect", REGISTER_VALUES)
def test_register__the_reply_carries_the_value(dialect: str, effect: str) -> None:
    found = {scene.title: scene.replies(dialect) for scene in scenes(dialect, f"register-{effect}.txt")}
    for word, value in REGISTER_VALUES[effect].items():
        assert found[word] == [(CONTINUE, value.to_bytes(8, "little"))]


@pytest.mark.parametrize("dialect", TARGETS)
def test_crash__is_answered_once_and_what_follows_is_denied(dialect: str) -> None:
    """Where nothing denies it, CRASH is answered again. A register keeps its old value in either case."""
    actions = {
        name: [action for action, _ in scene.replies(dialect)]
        for name in legal_names(dialect)
        if name.endswith("-crash.txt") and "retry" not in name
        for scene in list(scenes(dialect, name))[:1]
    }
    expected = {
        "write-crash.txt": [CRASH, RETRY],
        "read_execute-crash.txt": [CRASH, RETRY, CONTINUE],  # and its TRAP
        "register-crash.txt": [CRASH, CONTINUE],
        "descriptor-crash.txt": [CRASH, RETRY],
        "breakpoint-crash.txt": [CRASH, RETRY, CONTINUE],
        "hypercall-crash.txt": [CRASH, CONTINUE, CONTINUE],
        "xsetbv-crash.txt": [CRASH, CRASH],
        "cpuid-crash.txt": [CRASH, CRASH],
        "created-crash.txt": [CRASH, CRASH],
    }
    assert actions == {name: expected[name] for name in actions}
    assert len(actions) == (9 if dialect == "kvmi-v7" else 7)


@pytest.mark.parametrize("dialect", TARGETS)
def test_retry__is_answered_twice_before_anything_is_done(dialect: str) -> None:
    for name in legal_names(dialect):
        if "-retry-" in name:
            scene = next(scenes(dialect, name))
            assert [action for action, _ in scene.replies(dialect)][:2] == [RETRY, RETRY], name
            before = [text for side, text, _ in scene.lines if side == ">"][:2]
            assert all(text.endswith(": RETRY") for text in before), name


@pytest.mark.parametrize("dialect", TARGETS)
def test_skip__sets_rip_behind_the_instruction(dialect: str) -> None:
    (scene, *_) = scenes(dialect, "write-skip.txt")
    (payload,) = scene.sent(dialect, SET_REGISTERS_ID[dialect])
    # struct kvmi_vcpu_hdr, then rip at 128 of struct kvm_regs; the store is three bytes long.
    assert struct.unpack_from("<HHI", payload) == (0, 0, 0)
    assert struct.unpack_from("<Q", payload, 8 + 128) == (0xFFFFFFFFC0401003,)
    assert scene.replies(dialect) == [(RETRY, b"")]


@pytest.mark.parametrize("dialect", TARGETS)
def test_inject__names_the_exception_and_no_more(dialect: str) -> None:
    (scene, *_) = scenes(dialect, "breakpoint-inject.txt")
    (payload,) = scene.sent(dialect, INJECT_ID[dialect])
    # vCPU 0, vector 6, no error code, no address.
    assert payload == bytes(8) + b"\x06" + bytes(15)
    assert [action for action, _ in scene.replies(dialect)] == [RETRY, CONTINUE]
