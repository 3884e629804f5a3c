"""Makes a profile from whatever a kernel's symbols come in: a table of formats, each known by its first bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policyc.guest.errors import ProfileError, printable
from policyc.guest.kallsyms import MAX_TABLE_BYTES, looks_like_table, read_table
from policyc.guest.profile import Identity, Image, Profile, ProfileSource
from policyc.guest.store import seal

__all__ = ["MAX_BANNER", "READERS", "Reader", "build_profile", "clean_banner"]

HEAD_BYTES = 64
"""How much of a file the sniffers see."""

MAX_BANNER = 1000
"""Characters of a kernel's banner after its first two words."""

BANNER = re.compile(f"Linux version [ -~]{{1,{MAX_BANNER}}}")


@dataclass(frozen=True, slots=True)
class Reader:
    """One format: the name that a profile keeps of it, how to know it, and how to read it.

    Attributes:
        kind: the `kind` of the profile's source.
        recognises: whether a file that starts with these bytes is of this format.
        read: its images, the kernel's first. Raises ProfileError.
    """

    kind: str
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes], dict[str, Image]]


READERS = (Reader("symbol-table", looks_like_table, read_table),)

# Formats that are known by their first bytes and can't be read, with what to do instead.
FOREIGN = (
    (b"\x7fELF", "an ELF file", "run `nm -n vmlinux > System.map` and use that"),
    (b"MZ", "a PE or boot image", "use System.map from the kernel build, or the guest's /proc/kallsyms"),
    (b"\xfd7zXZ\x00", "compressed with xz", "decompress it first"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first"),
    (b"{", "JSON", "a profile that is already built is loaded as it is"),
)


def build_profile(source: Path | bytes, *, banner: str | None = None) -> Profile:
    """The profile that a file, or its bytes, makes.

    Args:
        source: a path, or the content itself.
        banner: the kernel's "Linux version" line, as /proc/version has it, where the source doesn't hold it.

    Raises:
        ProfileError: the source can't be read or isn't of a known format, or the banner isn't one.
    """
    data = source if isinstance(source, bytes) else _read(source)
    if not data:
        raise ProfileError("this file is empty")
    head = data[:HEAD_BYTES]
    reader = next((known for known in READERS if known.recognises(head)), None)
    if reader is None:
        raise _unknown(head)
    identity = Identity(banner=None if banner is None else clean_banner(banner))
    return seal(
        ProfileSource(reader.kind, "sha256:" + hashlib.sha256(data).hexdigest()),
        identity,
        reader.read(data),
    )


def clean_banner(text: str) -> str:
    """A kernel's banner without the line end that /proc/version and `linux_banner` carry.

    Raises:
        ProfileError: it doesn't start as every Linux banner does, or holds what a terminal shouldn't be shown.
    """
    banner = text.rstrip("\n\0 ")
    if not BANNER.fullmatch(banner):
        raise ProfileError(
            f"this isn't a kernel's banner: `{printable(text)}`", "give the guest's /proc/version as it stands"
        )
    return banner


def _read(path: Path) -> bytes:
    # /proc/kallsyms says that its size is 0, so the limit is applied to what arrives.
    try:
        with path.open("rb") as file:
            return file.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"can't read this file: {error.strerror}") from error


def _unknown(head: bytes) -> ProfileError:
    for magic, what, instead in FOREIGN:
        if head.startswith(magic):
            return ProfileError(f"this file is {what}, which can't be read as a table of symbols", instead)
    return ProfileError(
        f"this file isn't a table of symbols: it starts with `{printable(head, 24)}`",
        "use System.map from the kernel build, or the guest's /proc/kallsyms",
    )
