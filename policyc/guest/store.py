"""The profile file: one line of JSON, the same bytes for the same content, refused if a byte of it was changed.

A profile of a real kernel holds some 200,000 symbols and is read by every command, so the JSON schema is applied to
everything but the symbol columns, which are checked here by the same rules in bulk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from array import array
from collections.abc import Mapping
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias, cast

from policyc.addresses import ADDRESS_SPACE_END, Gva, Range
from policyc.guest.errors import ProfileError, printable
from policyc.guest.profile import KERNEL, Identity, Image, Profile, ProfileSource
from policyc.guest.symbols import SymbolTable

__all__ = [
    "FORMAT",
    "MAX_FILE_BYTES",
    "MAX_IMAGES",
    "MAX_NAME",
    "MAX_SYMBOLS",
    "VERSION",
    "decode",
    "encode",
    "load",
    "save",
    "seal",
]

FORMAT = "policyc-profile"
VERSION = 1

MAX_FILE_BYTES = 128 << 20
"""Size of the largest profile file that is read."""

MAX_SYMBOLS = 1_000_000
"""Symbols of one profile, all images together: four times what a large distribution kernel with its modules has."""

MAX_IMAGES = 4096
"""Images of one profile: the kernel and its loaded modules."""

MAX_NAME = 511
"""Bytes of a symbol's name: KSYM_NAME_LEN, 512, counts the terminating zero (Linux, include/linux/kallsyms.h)."""

UNSEALED = "sha256:" + "0" * 64
NAME_CHARACTERS = bytes(range(0x21, 0x7F))
NO_SYMBOLS = "this file isn't a profile of a kernel"
REMAKE = "make the profile again with `policyc profile build`"

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


def seal(
    source: ProfileSource,
    identity: Identity,
    images: Mapping[str, Image],
    *,
    os: str = "linux",
    arch: str = "x86_64",
) -> Profile:
    """A profile of these parts, with its digest."""
    unsealed = Profile(os, arch, source, identity, images, UNSEALED)
    return Profile(os, arch, source, identity, images, _digest(encode(unsealed)))


def encode(profile: Profile) -> bytes:
    """The bytes of a profile file: sorted keys, no clock, no path, nothing of this machine."""
    document = {
        "arch": profile.arch,
        "digest": profile.digest,
        "format": FORMAT,
        "identity": {"banner": profile.identity.banner, "build_id": profile.identity.build_id},
        "images": [_image_out(image) for image in profile.images.values()],
        "os": profile.os,
        "source": {"digest": profile.source.digest, "kind": profile.source.kind},
        "version": VERSION,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def decode(data: bytes) -> Profile:
    """The profile that a file's bytes hold.

    Raises:
        ProfileError: the bytes aren't a profile, are one of a newer version, or aren't what was written.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ProfileError(f"this profile is larger than the limit of {MAX_FILE_BYTES >> 20} MiB")
    document = _parse(data)
    if document.get("format") != FORMAT:
        raise ProfileError(NO_SYMBOLS, "make one with `policyc profile build SYSTEM.MAP`")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ProfileError(
            f"this profile has format version {version}; this policyc reads version {VERSION}",
            "use a newer policyc, or make the profile again with this one",
        )
    digest = document.get("digest")
    if not isinstance(digest, str) or _digest(data.replace(digest.encode(), UNSEALED.encode(), 1)) != digest:
        raise ProfileError("this profile was changed after it was written: its digest doesn't fit its content", REMAKE)
    _validate(document)
    return _profile_in(document)


def save(profile: Profile, path: Path) -> None:
    """Write `profile` to `path`: whoever reads that path meanwhile sees the old file or the new one, never a part.

    Raises:
        OSError: as the operating system says it.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with unfinished.open("xb") as file:
            file.write(encode(profile))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: Path) -> Profile:
    """The profile in the file at `path`.

    Raises:
        ProfileError: the file can't be read, or isn't a whole and unchanged profile.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"can't read this profile: {error.strerror}") from error
    return decode(data)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _parse(data: bytes) -> dict[str, Json]:
    def without_duplicates(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    try:
        document: Json = json.loads(data, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        help = REMAKE if data.startswith(b'{"arch"') else "make one with `policyc profile build SYSTEM.MAP`"
        raise ProfileError("this file isn't a profile, or only a part of one: it isn't whole JSON", help) from error
    if not isinstance(document, dict):
        raise ProfileError(NO_SYMBOLS, "make one with `policyc profile build SYSTEM.MAP`")
    return document


def _validate(document: dict[str, Json]) -> None:
    """Apply the schema to everything but the columns of symbols."""
    from jsonschema import Draft202012Validator  # takes as long to import as all the rest of a short command

    schema = json.loads(files("policyc.guest").joinpath("schema/profile-1.json").read_text("utf-8"))
    images = document.get("images")
    small = document | {"images": [_without_columns(image) for image in images] if isinstance(images, list) else images}
    error = next(Draft202012Validator(schema).iter_errors(small), None)
    if error is not None:
        raise ProfileError(f"this profile breaks its format at {error.json_path}: {printable(error.message)}", REMAKE)


def _without_columns(image: Json) -> Json:
    if not isinstance(image, dict) or not isinstance(symbols := image.get("symbols"), dict):
        return image
    small = {key: type(value)() if isinstance(value, list) else value for key, value in symbols.items()}
    return image | {"symbols": small}


def _profile_in(document: dict[str, Json]) -> Profile:
    """The profile of a document that the schema accepts: from here on only the columns need checks."""
    source, identity = cast("dict[str, str]", document["source"]), cast("dict[str, str | None]", document["identity"])
    images = [_image_in(image) for image in cast("list[dict[str, Json]]", document["images"])]
    by_name = {image.name: image for image in images}
    if len(by_name) != len(images) or images[0].name != KERNEL or images[0].base is None:
        raise ProfileError("this profile's images aren't the kernel and then modules, each once", REMAKE)
    if sum(len(image.symbols) for image in images) > MAX_SYMBOLS:
        raise ProfileError(f"this profile has more than the limit of {MAX_SYMBOLS} symbols")
    return Profile(
        os=cast("str", document["os"]),
        arch=cast("str", document["arch"]),
        source=ProfileSource(source["kind"], source["digest"]),
        identity=Identity(identity["build_id"], identity["banner"]),
        images=by_name,
        digest=cast("str", document["digest"]),
    )


def _image_out(image: Image) -> dict[str, Json]:
    table = image.symbols
    first = table.addresses[0] if table.addresses else 0
    previous = [first, *table.addresses[:-1]]
    return {
        "absent_sections": dict(image.absent_sections),
        "base": _address_out(image.base),
        "name": image.name,
        "offset_names": " ".join(sorted(image.offset_names)),
        "sections": {name: [hex(part.start), hex(part.end)] for name, part in image.sections.items()},
        "symbols": {
            "end": _address_out(table.end),
            "first": hex(first),
            "gaps": [here - before for here, before in zip(table.addresses, previous, strict=False)],
            "letters": table.letters,
            "names": table.text,
            "sizes": None if table.sizes is None else list(table.sizes),
        },
    }


def _image_in(image: dict[str, Json]) -> Image:
    name = cast("str", image["name"])
    sections = cast("dict[str, list[str]]", image["sections"])
    try:
        ranges = {key: Range(Gva(int(start, 16)), Gva(int(end, 16))) for key, (start, end) in sections.items()}
    except ValueError as error:
        raise ProfileError(f"this profile has a section that is {error}", REMAKE) from error
    return Image(
        name=name,
        base=_address_in(image["base"]),
        sections=ranges,
        absent_sections=cast("dict[str, str]", image["absent_sections"]),
        symbols=_table_in(name, cast("dict[str, Json]", image["symbols"])),
        offset_names=frozenset(_names_in(name, cast("str", image["offset_names"]))),
    )


def _table_in(image: str, symbols: dict[str, Json]) -> SymbolTable:
    gaps, text, letters = symbols["gaps"], cast("str", symbols["names"]), cast("str", symbols["letters"])
    sizes = None if symbols["sizes"] is None else _numbers_in(image, symbols["sizes"])
    steps = _numbers_in(image, gaps)
    first = int(cast("str", symbols["first"]), 16)
    if first + sum(steps) >= ADDRESS_SPACE_END:
        raise ProfileError(f"this profile's image `{printable(image)}` has addresses beyond 64 bits", REMAKE)
    lengths = {len(steps), len(_names_in(image, text)), len(letters), len(steps if sizes is None else sizes)}
    if len(lengths) != 1 or not re.fullmatch("[A-Za-z?-]*", letters):
        raise ProfileError(f"this profile's image `{printable(image)}` has columns that don't fit together", REMAKE)
    addresses = array("Q", accumulate(steps[1:], initial=first + steps[0]) if steps else ())
    return SymbolTable(addresses, text, letters, sizes, _address_in(symbols["end"]))


def _numbers_in(image: str, column: Json) -> array[int]:
    if not isinstance(column, list) or not set(map(type, column)) <= {int}:
        raise ProfileError(f"this profile's image `{printable(image)}` has a column that isn't all numbers", REMAKE)
    try:
        return array("Q", cast("list[int]", column))
    except OverflowError as error:
        raise ProfileError(f"this profile's image `{printable(image)}` has a number beyond 64 bits", REMAKE) from error


def _names_in(image: str, text: str) -> list[str]:
    names = text.split(" ") if text else []
    if text.encode("utf-8", "surrogatepass").translate(None, NAME_CHARACTERS).strip(b" "):
        raise ProfileError(f"this profile's image `{printable(image)}` has names with unprintable characters", REMAKE)
    if "" in names or max(map(len, names), default=0) > MAX_NAME:
        raise ProfileError(f"this profile's image `{printable(image)}` has an empty or an endless name", REMAKE)
    return names


def _address_out(gva: Gva | None) -> str | None:
    return None if gva is None else hex(gva)


def _address_in(text: Json) -> Gva | None:
    return Gva(int(text, 16)) if isinstance(text, str) else None
