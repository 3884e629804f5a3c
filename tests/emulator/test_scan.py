"""No sensitive instruction is missed, wherever it lies and whatever precedes it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.emulator.decode import decode
from policyc.emulator.scan import SENSITIVE, candidates

PAGE = 4096
CODES = tuple(
    bytes.fromhex(code)
    for code in (
        *("0f05", "0f06", "0f22c0", "0f22df", "0f30", "0fa2", "0f01d1", "0f0103", "0f014b08"),
        *("0f0193000000f0", "0f019c2400100000", "0f00c0", "0f000b", "0f0018", "0fc7f0", "0fc7f7"),
    )
)
PREFIXES = st.lists(st.sampled_from([0x66, 0x67, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, 0xF2, 0xF3]), max_size=2)


def is_sensitive(code: bytes) -> bool:
    insn = decode(code[:15])
    return insn is not None and (
        insn.name in SENSITIVE or (insn.name == "mov" and bool(insn.registers) and insn.registers[0].startswith("cr"))
    )


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CODES), PREFIXES, st.sampled_from([b"", b"\x48", b"\x41", b"\x4f"]), st.integers(0, PAGE - 1))
def test_its_first_byte_is_a_candidate(code: bytes, prefixes: list[int], rex: bytes, offset: int) -> None:
    instruction = bytes(prefixes) + rex + code
    both = bytearray(b"\x90" * 2 * PAGE)
    both[offset : offset + len(instruction)] = instruction
    if not is_sensitive(bytes(both[offset : offset + 15])):
        return
    assert offset in candidates(bytes(both[:PAGE]), bytes(both[PAGE : PAGE + 8]))
    assert offset in candidates(bytes(both[:PAGE]), None)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=64, max_size=64))
def test_in_random_bytes_too(code: bytes) -> None:
    page = code + bytes([0x90]) * (PAGE - len(code))
    found = candidates(page, b"\x90" * 8)
    assert {offset for offset in range(48) if is_sensitive(page[offset:])} <= found


def test_harmless_pages_have_no_candidates() -> None:
    assert candidates(b"\x90" * PAGE, b"\x90" * 8) == set()
    assert candidates(bytes(PAGE), bytes(8)) == set()
