"""A snapshot is used as the manifest says, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policyc.emulator.linux.attacker import AttackerPages, attacker_symbols
from policyc.emulator.linux.errors import SnapshotError
from policyc.emulator.linux.snapshot import Origin, Snapshot, load_snapshot, write_snapshot
from policyc.emulator.linux.state import MSRS, REGISTERS, SEGMENTS, CpuState, DeviceState, MachineState
from policyc.emulator.linux.symbols import read_symbols
from policyc.emulator.memory import Memory

MEMORY = bytes(range(256)) * 8192  # 2 MiB
ORIGIN = Origin("linux-image-x", "Linux version x", "quiet", 1, 0x20_0000, 0, "qemu64", "7.2", (("p", "1", "ab"),))
STATE = MachineState(
    CpuState(
        dict.fromkeys(REGISTERS, 1),
        dict.fromkeys(SEGMENTS, (1, 2, 3, 4)),
        dict.fromkeys(MSRS, 5),
        "00" * 512,
        6,
    ),
    DeviceState({0x320: 0xEC}, (0,) * 24, (1, 2, 3)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_snapshot(tmp_path / "snap", ORIGIN, STATE, MEMORY, b"symbols", b"console")
    return tmp_path / "snap"


def test_snapshot__is_read_as_it_was_written(folder: Path) -> None:
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert load_snapshot(folder) == Snapshot(ORIGIN, STATE, MEMORY, b"symbols", b"console", digest)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["snap"]


def test_snapshot__replaces_another_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    write_snapshot(folder, ORIGIN, STATE, MEMORY, b"others", b"")
    assert load_snapshot(folder).symbols == b"others"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(SnapshotError, match=r"mine holds something that is no snapshot$"):
        write_snapshot(tmp_path / "mine", ORIGIN, STATE, MEMORY, b"", b"")
    assert (tmp_path / "mine" / "letter").read_text() == "dear"
    with pytest.raises(SnapshotError, match=r"letter is there, and no folder$"):
        write_snapshot(tmp_path / "mine" / "letter", ORIGIN, STATE, MEMORY, b"", b"")
    with pytest.raises(SnapshotError, match=r"^no folder can be made in /proc: "):
        write_snapshot(Path("/proc/snap"), ORIGIN, STATE, MEMORY, b"", b"")


@pytest.mark.parametrize("name", ["memory.zlib", "state.json", "kallsyms", "console.log"])
def test_snapshot__is_refused_where_a_file_has_changed(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(SnapshotError, match=f"{name}: not what the manifest says it is$"):
        load_snapshot(folder)
    (folder / name).unlink()
    with pytest.raises(SnapshotError, match=f"{name}: no such file or directory$"):
        load_snapshot(folder)


def change(folder: Path, edit: Callable[[Any], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace(folder: Path, name: str, content: bytes) -> None:
    """Another content, and a manifest that knows of it."""
    (folder / name).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(folder, lambda manifest: manifest["files"].update({name: entry}))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda manifest: manifest.update(format=2), "a snapshot of another format"),
        (lambda manifest: manifest.update(memory_size=1 << 40), "memory of 1099511627776 bytes"),
        (lambda manifest: manifest.update(memory_size=4096), "memory of 4096 bytes"),
        (lambda manifest: manifest.update(memory_size="2M"), "memory of '2M' bytes"),
        (lambda manifest: manifest["files"].pop("kallsyms"), "it doesn't name kallsyms"),
        (lambda manifest: manifest.update(files=[]), "it doesn't name memory.zlib"),
        (lambda manifest: manifest["origin"].pop("slide"), "the origin isn't complete"),
        (lambda manifest: manifest["origin"].update(slide=-1), "the origin isn't complete"),
        (lambda manifest: manifest["origin"].update(packages=[["p"]]), "the origin isn't complete"),
        (lambda manifest: manifest.update(origin=3), "the origin isn't complete"),
    ],
)
def test_snapshot__is_refused_for_its_manifest(folder: Path, edit: Callable[[Any], None], problem: str) -> None:
    change(folder, edit)
    with pytest.raises(SnapshotError, match=f"{problem}$"):
        load_snapshot(folder)


@pytest.mark.parametrize("size", [len(MEMORY) - 1, len(MEMORY) + 1, 1 << 26], ids=["short", "long", "bomb"])
def test_memory__has_the_size_that_was_announced(folder: Path, size: int) -> None:
    replace(folder, "memory.zlib", zlib.compress(bytes(size)))
    with pytest.raises(SnapshotError, match=r"not the 2097152 bytes of memory that the manifest announces$"):
        load_snapshot(folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "state.json: not JSON: Expecting"),
        (b"[" * 100_000, "state.json: "),
        (b"[]", "state.json: no JSON object"),
        (b"{}", "state.json: cpu is missing or no object"),
    ],
    ids=["cut off", "deep", "list", "empty"],
)
def test_state__is_refused_where_it_is_none(folder: Path, content: bytes, problem: str) -> None:
    replace(folder, "state.json", content)
    with pytest.raises(SnapshotError, match=f"^{problem}"):
        load_snapshot(folder)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda cpu, _: cpu["registers"].update(rip=1 << 64), "registers.rip is missing or no 64-bit number"),
        (lambda cpu, _: cpu["registers"].update(rip=True), "registers.rip is missing or no 64-bit number"),
        (lambda cpu, _: cpu["msrs"].pop("lstar"), "msrs.lstar is missing or no 64-bit number"),
        (lambda cpu, _: cpu["segments"].update(cs=[1]), "segments.cs is no list of 4 numbers"),
        (lambda cpu, _: cpu.update(fxsave="zz" * 512), "cpu.fxsave isn't 512 bytes in hexadecimal"),
        (lambda _, devices: devices.update(ioapic=[0]), "ioapic is no list of 24 numbers"),
        (lambda _, devices: devices["lapic"].update({"5": 1}), "a register of the local APIC has no offset"),
    ],
)
def test_state__is_checked_field_by_field(folder: Path, edit: Callable[[Any, Any], None], problem: str) -> None:
    state = json.loads((folder / "state.json").read_text())
    edit(state["cpu"], state["devices"])
    replace(folder, "state.json", json.dumps(state).encode())
    with pytest.raises(SnapshotError, match=f"^state.json: {problem}"):
        load_snapshot(folder)


def test_symbols__the_first_of_a_name_counts_and_modules_dont() -> None:
    table = b"ffffffff81000000 T _text\nffffffff81000010 t _text\nffffffffc0000000 t init\t[loop]\n"
    assert read_symbols(table) == {"_text": 0xFFFF_FFFF_8100_0000}
    with pytest.raises(SnapshotError, match=r"^kallsyms: no line of a symbol table: 'zz T x'$"):
        read_symbols(b"zz T x\n")


def test_attacker__needs_room() -> None:
    memory = Memory(2 << 20)
    with pytest.raises(SnapshotError, match=r"^the manifest leaves no RAM to the attacker: it begins at 0x1ff000$"):
        AttackerPages(memory, 0, (2 << 20) - 0x1000)
    with pytest.raises(SnapshotError, match=r"^the kernel has no page tables for its module area$"):
        AttackerPages(memory, 0, 1 << 20)


def test_attackers_page__is_what_its_listing_shows() -> None:
    folder = Path(__file__).parents[3] / "policyc/emulator/linux/attacker"
    content = (folder / "attacker.bin").read_bytes()
    shown = bytearray()
    names = {}
    for line in (folder / "attacker.lst").read_text().splitlines():
        if line.endswith(">:"):
            address, name = line[:-2].split(" <")
            names[name] = int(address, 16)
        elif line.startswith(" ") and "\t" in line:
            shown += bytes.fromhex(line.split("\t")[1])
    assert bytes(shown) == content
    assert {name: names[name] for name in attacker_symbols()} == attacker_symbols()


def test_attackers_page__is_what_its_source_gives(tmp_path: Path) -> None:
    if shutil.which("as") is None:
        return  # the listing is held against the page by the test above; the source needs an assembler
    folder = Path(__file__).parents[3] / "policyc/emulator/linux/attacker"
    subprocess.run([folder / "build.sh", tmp_path], check=True)
    for name in ("attacker.bin", "attacker.map"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
