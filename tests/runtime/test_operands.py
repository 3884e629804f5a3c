"""Where an operand lies, compared with where a processor accesses memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.kvmi import CpuMode, Registers, Segment, SystemRegisters
from policyc.runtime.decode import decode
from tests.runtime.test_decode import encodings
from tests.support.instruction_bench import DATA, Bench

REGS = Registers(rcx=1, rax=1, rbx=DATA, rsp=0x6000, rbp=0x6000, rsi=0x8000, rdi=0xA000, rip=0x1000)
"""The registers of the bench."""

ADDRESSED = ["488903", "48894310", "48894b10", "4889448b08", "4889042500400000", "4889053a300000", "67488903"]
ADDRESSED += ["674889448bf8", "48894424f8", "4887448d00"]


@pytest.mark.parametrize("code", ADDRESSED)
def test_a_processor_writes_where_the_operand_lies(code: str) -> None:
    raw = bytes.fromhex(code)
    instruction = decode(CpuMode.LONG, raw)
    ran = Bench(CpuMode.LONG).run(raw)
    assert instruction is not None
    assert instruction.operand is not None
    assert ran is not None
    assert [start for start, _ in ran.writes.values()] == [
        instruction.operand.address(REGS, SystemRegisters(), instruction.length)
    ]


def test_no_processor_accesses_another_place_than_the_operand() -> None:
    bench, compared, wrong = Bench(CpuMode.LONG), 0, []
    for code in dict.fromkeys(encodings(CpuMode.LONG)):
        instruction = decode(CpuMode.LONG, code)
        if instruction is None or instruction.operand is None:
            continue
        ran = bench.run(code[: instruction.length])
        if ran is None:
            continue
        compared += 1
        start = instruction.operand.address(REGS, SystemRegisters(), instruction.length)
        for spans, size in ((ran.reads, instruction.reads), (ran.writes, instruction.writes)):
            if any(first < start or last > start + (size or 0) for first, last in spans.values()):
                wrong.append(instruction.text)
    assert wrong == []
    assert compared > 1500


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_an_address_wraps_as_a_processor_does(base: int, index: int, segment: int) -> None:
    instruction = decode(CpuMode.LONG, bytes.fromhex("654889448bf8"))  # mov gs:[rbx + rcx * 4 - 8], rax
    narrow = decode(CpuMode.LONG, bytes.fromhex("65674889448bf8"))
    assert instruction is not None
    assert narrow is not None
    assert instruction.operand is not None
    assert narrow.operand is not None
    regs = Registers(rbx=base, rcx=index)
    sregs = SystemRegisters(gs=Segment(base=segment))
    assert instruction.operand.address(regs, sregs, 6) == (segment + base + index * 4 - 8) % 2**64
    assert narrow.operand.address(regs, sregs, 7) == (segment + (base + index * 4 - 8) % 2**32) % 2**64


@pytest.mark.parametrize("code", ["50", "aa", "48a5", "0fab03", "62f27d49a20483", "0fae23", "ff33", "d7"])
def test_what_accesses_more_than_one_certain_place_has_no_operand(code: str) -> None:
    instruction = decode(CpuMode.LONG, bytes.fromhex(code).ljust(15, b"\x90"))
    assert instruction is not None
    assert instruction.operand is None


@pytest.mark.parametrize("prefixes", ["653e", "3e65", "642e", "652666", "6736f364"])
def test_a_prefix_that_hides_a_segment__leaves_no_operand(prefixes: str) -> None:
    # A processor ignores CS, DS, ES and SS in long mode, and adds the base of FS or GS whatever comes behind it.
    instruction = decode(CpuMode.LONG, bytes.fromhex(prefixes + "8903"))
    assert instruction is not None
    assert instruction.operand is None


@pytest.mark.parametrize(
    ("code", "segment"), [("658903", "gs"), ("64668903", "fs"), ("3e8903", None), ("26668903", None)]
)
def test_a_segment_by_itself__is_added_where_it_has_a_base(code: str, segment: str | None) -> None:
    instruction = decode(CpuMode.LONG, bytes.fromhex(code))
    assert instruction is not None
    assert instruction.operand is not None
    assert instruction.operand.segment == segment


def test_segments_outside_long_mode_are_not_certain() -> None:
    instruction = decode(CpuMode.PROTECTED, bytes.fromhex("8903"))
    assert instruction is not None
    assert instruction.operand is None
