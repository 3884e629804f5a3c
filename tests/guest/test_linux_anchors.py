from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.guest.linux_anchors import VECTORS, anchors_of, gate_target
from policyc.guest.profile import Image
from policyc.guest.readers import build_profile
from tests.support.guest_tables import BASE, kernel_rows, table

HANDLER = 0xFFFF_FFFF_8100_0C60


def gate(target: int, *, kind: int = 0x8E) -> bytes:
    """An IDT entry as arch/x86/include/asm/desc_defs.h lays it out (struct gate_struct)."""
    low, middle, high = target & 0xFFFF, target >> 16 & 0xFFFF, target >> 32
    return b"".join(
        part.to_bytes(size, "little")
        for part, size in [(low, 2), (0x10, 2), (kind << 8, 2), (middle, 2), (high, 4), (0, 4)]
    )


def kernel(extra: str, without: tuple[str, ...] = ()) -> Image:
    return build_profile(table(kernel_rows(without=without), extra=extra)).kernel


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        (gate(HANDLER), HANDLER),
        (gate(HANDLER, kind=0xEE), HANDLER),
        (gate(HANDLER, kind=0x8F), HANDLER),
        (gate(0), 0),
        (gate((1 << 64) - 1), (1 << 64) - 1),
        (gate(HANDLER, kind=0x0E), None),
        (gate(HANDLER, kind=0x85), None),
        (gate(HANDLER, kind=0x9E), None),
        (bytes(16), None),
        (gate(HANDLER)[:15], None),
        (b"", None),
    ],
)
def test_where_a_gate_leads(entry: bytes, target: int | None) -> None:
    assert gate_target(entry) == target


@given(st.binary(max_size=20))
def test_any_bytes_are_a_gate_or_none(entry: bytes) -> None:
    target = gate_target(entry)
    assert target is None or (len(entry) == 16 and entry[5] & 0x8E == 0x8E)


def test_every_handler_of_a_kernel_since_5_8_is_an_anchor() -> None:
    anchors = anchors_of(kernel(""))
    assert [anchor.place for anchor in anchors] == ["LSTAR", *(f"vector {vector}" for vector, _, _ in VECTORS)]
    assert anchors[0].gvas == {BASE + 0x80}
    assert [anchor.names for anchor in anchors[1:3]] == [("asm_exc_divide_error",), ("asm_exc_debug",)]
    assert len({anchor.vector for anchor in anchors}) == len(anchors)


def test_an_older_kernel_has_its_exceptions_and_two_page_faults() -> None:
    older = {name: BASE + 0x4000 + 16 * index for index, name in enumerate(n for row in VECTORS for n in row[2])}
    lines = "".join(f"{gva:016x} T {name}\n" for name, gva in older.items())
    lines += f"{BASE + 0x60_0010:016x} d debug\n{BASE + 0x60_0020:016x} b nmi\n"
    anchors = anchors_of(kernel(lines, without=tuple(name for _, name, _ in VECTORS)))
    assert [anchor.vector for anchor in anchors] == [None, *range(0x14)]
    assert anchors[2].gvas == {older["debug"]}
    assert anchors[15].names == ("page_fault", "async_page_fault", "trace_page_fault")
    assert anchors[15].gvas == {older["page_fault"], older["async_page_fault"], older["trace_page_fault"]}


def test_an_older_name_in_a_newer_kernel_is_not_an_anchor() -> None:
    lines = f"{BASE + 0x4000:016x} T debug\n"
    assert [anchor.place for anchor in anchors_of(kernel(lines, without=("asm_exc_debug",)))][:3] == [
        "LSTAR",
        "vector 0",
        "vector 2",
    ]
