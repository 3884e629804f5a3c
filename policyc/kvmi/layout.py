"""C structs described by one line of text each, with every hole spelled out.

A row such as `kvmi_msg_hdr: u16 id, u16 size, u32 seq` becomes a `Layout`: named fields with offset and size, and a
`struct.Struct` that packs and unpacks the values. Fields whose name begins with `pad` or `reserved` are padding: they
are written as zeros and skipped when read. KVMI sends host byte order, and only x86 was ever deployed: everything is
little endian.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Field", "Layout", "parse_layouts"]

_SCALARS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "s64": "q", "char": "s"}
_FIELD = re.compile(r"(?P<type>\w+) (?P<name>\w+)(?:\[(?P<count>\d*)\])?")


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a struct: `size` bytes at `offset`; a flexible array has `count` None and size 0."""

    name: str
    type: str
    offset: int
    count: int | None
    size: int

    @property
    def padding(self) -> bool:
        """Whether the bytes mean nothing."""
        return self.name.startswith(("pad", "reserved"))


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A struct on the wire.

    Attributes:
        names: the values that `struct` packs and unpacks, in order. A scalar is an integer; an array or a nested
            struct is a bytes object. A nested struct that ends in a flexible array is spread out into its own values.
        nested: the struct name of each value that is a nested struct.
        tail: name of the flexible array at the end, or None.
        tail_layout: layout of one element of the tail.
        padding_mask: an integer with all bits set at padding bytes, for one test of a whole payload.
    """

    name: str
    fields: tuple[Field, ...]
    size: int
    struct: Struct
    names: tuple[str, ...]
    nested: Mapping[str, str]
    tail: str | None
    tail_layout: Layout | None
    padding_mask: int

    def padding_is_zero(self, payload: bytes) -> bool:
        """Whether the padding of a struct at the start of `payload` is zero; what is missing counts as zero."""
        return not int.from_bytes(payload[: self.size], "little") & self.padding_mask


def parse_layouts(rows: str, known: Mapping[str, Layout] | None = None) -> dict[str, Layout]:
    """Read one struct a line, `name: type field, type field[n], type field[]`; later rows may nest earlier ones.

    Raises:
        ValueError: a row isn't understood, has a hole, or its size isn't a multiple of its alignment.
    """
    layouts = dict(known or {})
    for row in filter(None, map(str.strip, rows.splitlines())):
        name, colon, body = row.partition(":")
        if not colon:
            raise ValueError(f"not a struct: {row}")
        layouts[name] = _layout(name, body.strip(), layouts)
    return layouts


def _layout(name: str, body: str, known: Mapping[str, Layout]) -> Layout:
    fields: list[Field] = []
    codes: list[str] = []
    names: list[str] = []
    nested: dict[str, str] = {}
    tail: str | None = None
    tail_layout: Layout | None = None
    offset = mask = 0
    for text in filter(None, body.split(", ")):
        field = _field(text, offset, known, name)
        fields.append(field)
        inner = known.get(field.type)
        if field.padding:
            codes.append(f"{field.size}x")
            mask |= ((1 << 8 * field.size) - 1) << 8 * offset
        elif field.count is None:
            tail, tail_layout = field.name, inner or _element(field.type)
        elif inner and inner.tail:
            codes.append(inner.struct.format[1:])
            names.extend(inner.names)
            tail, tail_layout = inner.tail, inner.tail_layout
        else:
            whole = inner or field.count != 1 or field.type == "char"
            codes.append(f"{field.size}s" if whole else _SCALARS[field.type])
            names.append(field.name)
            if inner:
                nested[field.name] = field.type
        offset += field.size
    return Layout(
        name, tuple(fields), offset, Struct("<" + "".join(codes)), tuple(names), nested, tail, tail_layout, mask
    )


def _field(text: str, offset: int, known: Mapping[str, Layout], owner: str) -> Field:
    match = _FIELD.fullmatch(text)
    if not match or (match["type"] not in _SCALARS and match["type"] not in known):
        raise ValueError(f"{owner}: not a field: {text}")
    inner = known.get(match["type"])
    each = inner.size if inner else Struct("<" + _SCALARS[match["type"]]).size
    count = {None: 1, "": None}[match["count"]] if not match["count"] else int(match["count"])
    if offset % min(each or 1, 8) and not inner:
        raise ValueError(f"{owner}: `{text}` at offset {offset} isn't aligned: name the hole")
    return Field(match["name"], match["type"], offset, count, each * (count or 0))


def _element(kind: str) -> Layout:
    code = Struct("<" + _SCALARS[kind])
    return Layout(kind, (), code.size, code, ("value",), {}, None, None, 0)
