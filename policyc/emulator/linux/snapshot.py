"""A snapshot in a folder: memory, state, symbols, and a manifest that says what they are and what they came from.

    manifest.json   versions, sizes and digests of everything else
    memory.zlib     RAM from gpa 0
    state.json      registers, MSRs and devices
    kallsyms        the running kernel's own /proc/kallsyms
    console.log     what it said while it booted

The folder appears whole or not at all. A snapshot that is loaded is checked against its manifest before anything in it
is used; sizes have limits, and memory is unpacked no further than the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from policyc.emulator.linux.errors import SnapshotError
from policyc.emulator.linux.state import machine_state_from
from policyc.emulator.memory import RAM_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from policyc.emulator.linux.state import MachineState

__all__ = [
    "MANIFEST",
    "SYMBOLS",
    "Origin",
    "Snapshot",
    "check_target",
    "load_snapshot",
    "work_folder",
    "write_snapshot",
]

MANIFEST: Final = "manifest.json"
MEMORY: Final = "memory.zlib"
STATE: Final = "state.json"
SYMBOLS: Final = "kallsyms"
CONSOLE: Final = "console.log"

FORMAT: Final = 1
FILE_LIMITS: Final[Mapping[str, int]] = {MEMORY: 512 << 20, STATE: 1 << 20, SYMBOLS: 64 << 20, CONSOLE: 8 << 20}
"""Largest size of each file, in bytes; memory itself is limited by `RAM_LIMIT`."""

MANIFEST_LIMIT: Final = 1 << 20
_PAGE_ALIGNMENT: Final = 2 << 20
_LEVEL: Final = 6
_PACKAGE_FIELDS: Final = 3


@dataclass(frozen=True, slots=True)
class Origin:
    """What a snapshot was made from.

    Attributes:
        kernel: name of the kernel's package.
        banner: the kernel's own line about itself.
        command_line: of the kernel.
        seed: of the boot's randomness.
        slide: of the kernel's addresses, in bytes.
        reserved: gpa from which on the RAM isn't the kernel's.
        cpu: QEMU's description of the processor.
        qemu: its version.
        packages: name, version and digest of every package that was fetched.
    """

    kernel: str
    banner: str
    command_line: str
    seed: int
    slide: int
    reserved: int
    cpu: str
    qemu: str
    packages: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine that can be continued.

    Attributes:
        memory: RAM from gpa 0.
        symbols: the kernel's symbol table as text.
        digest: of the manifest: names this snapshot.
    """

    origin: Origin
    state: MachineState
    memory: bytes
    symbols: bytes
    console: bytes
    digest: str


def check_target(folder: Path) -> None:
    """Whether a snapshot may be written to `folder`: where nothing is yet, or another snapshot.

    Raises:
        SnapshotError: something else is there.
        OSError: it can't be looked at.
    """
    if folder.exists() and not folder.is_dir():
        raise SnapshotError(f"{folder} is there, and no folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise SnapshotError(f"{folder} holds something that is no snapshot")


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, on the same file system, that goes away again with all that is in it.

    Raises:
        SnapshotError: none can be made there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent)
    except OSError as error:
        raise SnapshotError(
            f"no folder can be made in {folder.parent}: {(error.strerror or str(error)).lower()}"
        ) from None
    with made as name:
        yield Path(name)


def write_snapshot(
    folder: Path, origin: Origin, state: MachineState, memory: bytes, symbols: bytes, console: bytes
) -> None:
    """Write a snapshot; one that was there before is replaced.

    Raises:
        OSError: it can't be written.
        SnapshotError: the folder holds something else.
    """
    check_target(folder)
    contents = {
        MEMORY: zlib.compress(memory, _LEVEL),
        STATE: _json(state.to_json()),
        SYMBOLS: symbols,
        CONSOLE: console,
    }
    files = {name: {"size": len(data), "sha256": _digest(data)} for name, data in contents.items()}
    manifest = {"format": FORMAT, "origin": asdict(origin), "memory_size": len(memory), "files": files}
    with work_folder(folder) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        for file, data in (*contents.items(), (MANIFEST, _json(manifest))):
            (new / file).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def load_snapshot(folder: Path) -> Snapshot:
    """Read and check a snapshot.

    Raises:
        SnapshotError: there is none, or what is there isn't what the manifest says; which file, below `folder`.
    """
    raw = _read(folder / MANIFEST, MANIFEST_LIMIT)
    manifest = _parsed(raw, MANIFEST)
    if manifest.get("format") != FORMAT:
        raise SnapshotError(f"{MANIFEST}: a snapshot of another format")
    size = manifest.get("memory_size")
    if not isinstance(size, int) or not 0 < size <= RAM_LIMIT or size % _PAGE_ALIGNMENT:
        raise SnapshotError(f"{MANIFEST}: memory of {size!r} bytes")
    files = {name: _checked(folder, manifest.get("files"), name) for name in FILE_LIMITS}
    state = machine_state_from(_parsed(files[STATE], STATE))
    return Snapshot(
        origin=_origin(manifest.get("origin")),
        state=state,
        memory=_unpacked(files[MEMORY], size),
        symbols=files[SYMBOLS],
        console=files[CONSOLE],
        digest=_digest(raw),
    )


def _checked(folder: Path, files: object, name: str) -> bytes:
    entry = files.get(name) if isinstance(files, dict) else None
    if not isinstance(entry, dict):
        raise SnapshotError(f"{MANIFEST}: it doesn't name {name}")
    data = _read(folder / name, FILE_LIMITS[name])
    if (entry.get("size"), entry.get("sha256")) != (len(data), _digest(data)):
        raise SnapshotError(f"{name}: not what the manifest says it is")
    return data


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise SnapshotError(f"{path.name}: {(error.strerror or str(error)).lower()}") from None
    if len(data) > limit:
        raise SnapshotError(f"{path.name}: more than {limit} bytes")
    return data


def _unpacked(data: bytes, size: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        memory = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise SnapshotError(f"{MEMORY}: {error}") from None
    if len(memory) != size or not unpacker.eof or unpacker.unused_data:
        raise SnapshotError(f"{MEMORY}: not the {size} bytes of memory that the manifest announces")
    return memory


def _origin(document: object) -> Origin:
    entry = document if isinstance(document, dict) else {}
    words = {name: entry.get(name) for name in ("kernel", "banner", "command_line", "cpu", "qemu")}
    numbers = {name: entry.get(name) for name in ("seed", "slide", "reserved")}
    packages = entry.get("packages")
    if (
        not all(isinstance(word, str) for word in words.values())
        or not all(isinstance(number, int) and 0 <= number <= RAM_LIMIT for number in numbers.values())
        or not isinstance(packages, list)
        or not all(isinstance(row, list) and len(row) == _PACKAGE_FIELDS for row in packages)
    ):
        raise SnapshotError(f"{MANIFEST}: the origin isn't complete")
    rows = tuple((str(name), str(version), str(digest)) for name, version, digest in packages)
    return Origin(
        kernel=str(words["kernel"]),
        banner=str(words["banner"]),
        command_line=str(words["command_line"]),
        seed=int(str(numbers["seed"])),
        slide=int(str(numbers["slide"])),
        reserved=int(str(numbers["reserved"])),
        cpu=str(words["cpu"]),
        qemu=str(words["qemu"]),
        packages=rows,
    )


def _parsed(data: bytes, name: str) -> dict[str, object]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(f"{name}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise SnapshotError(f"{name}: no JSON object")
    return document


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
