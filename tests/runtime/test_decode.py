"""What decoding says of an instruction's memory holds on a processor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from policyc.catalog import Access
from policyc.kvmi import CpuMode
from policyc.runtime.decode import Instruction, decode
from policyc.runtime.instructions import PURE_STORES
from tests.support.instruction_bench import Bench

# Code, bytes read, bytes written; `-` is none or not certain. All in long mode, memory at RBX where there is a choice.
SIZES = """
    8803 - 1          668903 - 2        8903 - 4          488903 - 8       c60301 - 1        66c7030100 - 2
    c70301000000 - 4  48c70301000000 - 8                  8a03 1 -         668b03 2 -        8b03 4 -
    488b03 8 -        8c03 - 2          8e1b - -          0fb603 1 -       0fb703 2 -        0fbe03 1 -
    480fbf03 2 -      486303 4 -        0003 1 1          660103 2 2       0103 4 4          480103 8 8
    0303 4 -          3903 4 -          8503 4 -          ff03 4 4         48ff0b 8 8        f613 1 1
    f71b 4 4          d023 1 1          48d12b 8 8        0fa40305 4 4     f0480103 8 8      f0ff03 4 4
    8603 1 1          668703 2 2        8703 4 4          488703 8 8       0fc003 1 1        480fc103 8 8
    0fb003 1 1        480fb10b 8 8      0fc70b 8 8        480fc70b 16 16   f0480fc70b 16 16  0fba2b05 4 4
    480fba3305 8 8    0fba6305 - -      0fab03 - -        480fb303 - -     0fbb03 - -        0f9403 - 1
    50 - 8            6650 - 8          ff33 8 8          8f03 8 8         58 8 -            ff13 8 8
    e800000000 - 8    c3 8 -            c20800 8 -        9c - 8           9d 8 -            c9 8 -
    c8100000 - -      c8100005 - -      a4 1 1            66a5 2 2         a5 4 4            48a5 8 8
    aa - 1            66ab - 2          ab - 4            48ab - 8         f3aa - 1          f348a5 8 8
    ac 1 -            48ad 8 -          a6 1 -            48a7 8 -         ae 1 -            48af 8 -
    6c - -            f36d - -          f36e - -          d7 1 -           ff2b - -          ff1b - -
    d913 - 4          d91b - 4          dd1b - 8          db3b - 10        dd03 8 -          db2b 10 -
    db1b - 4          df3b - 8          df1b - 2          dd0b - 8         df33 - 10         df23 10 -
    d933 - 28         d923 28 -         dd33 - 136        dd23 136 -       d93b - 2          dd3b - 2
    0f1103 - 16       660f7f03 - 16     f30f7f03 - 16     0f2903 - 16      f30f1103 - 16     f20f1103 - 16
    660f7e03 - 4      66480f7e03 - 8    660fd603 - 8      0f7e03 - 4       0f7f03 - 8        0f1303 - 8
    0f1703 - 8        660f1703 - 8      660fe703 - 16     0f2b03 - 16      0fe703 - 8        0fc303 - 4
    480fc303 - 8      66480fc303 - 8    660f3a140301 - 1  660f3a150301 - 2 660f3a160301 - 4  660f3a170301 - 4
    0f1003 16 -       660f6f03 16 -     f30f7e03 8 -      0fae03 - 512     480fae03 - 512    0fae0b 512 -
    0fae1b - 4        0fae13 4 -        0f0103 - 10       0f010b - 10      0f0003 - 4        0f0123 - 2
    660ff7c1 - 16     0ff7c1 - 8        0fae23 - -        0fc723 - -       0fc72b - -        0fae2b - -
    0f38f103 - 4      0fc71b - -        48cf - -          cb - -           90 - -            488d03 - -
    c5fa7f03 - 16     c5fe7f03 - 32     62f17e487f03 - 64 62f17f297f03 - 32                  c5fe6f03 32 -
    488c1b - -          480f000b - 8      f30f1003 16 -
    c5fb1103 - 8      c4e27d2e03 - -    62f27d49a20483 - -
"""
CASES = [tuple(SIZES.split()[index : index + 3]) for index in range(0, len(SIZES.split()), 3)]

UPPER_BOUNDS = """
    bnd call fldenv fnsave fnstenv frstor fxrstor fxrstor64 fxsave fxsave64 jmp leave maskmovdqu maskmovq movsd movss
    notrack pop popf popfd popfq push pushf pushfd pushfq rep repne repz repnz ret sldt str
"""
AT_MOST = frozenset(UPPER_BOUNDS.split())
"""Mnemonics whose size is an upper bound; with a prefix, what stands before them."""

PREFIXES = {
    CpuMode.REAL: ("", "66", "f2", "f3", "f0", "6667"),
    CpuMode.PROTECTED: ("", "66", "f2", "f3", "f0", "6667"),
    CpuMode.LONG: ("", "66", "f2", "f3", "f0", "48", "6648", "f248", "f348", "f048"),
}


def number(text: str) -> int | None:
    return None if text == "-" else int(text)


def decoded(mode: CpuMode, code: bytes) -> Instruction:
    instruction = decode(mode, code)
    assert instruction is not None
    return instruction


def encodings(mode: CpuMode) -> Iterator[bytes]:
    """Every opcode of the legacy maps, with each prefix and each opcode extension, on memory at RBX or BX."""
    place = 7 if mode is CpuMode.REAL else 3
    for prefix in PREFIXES[mode]:
        for escape, extensions in (("", 8), ("0f", 8), ("0f38", 1), ("0f3a", 1)):
            start = bytes.fromhex(prefix + escape)
            for opcode in range(256):
                for extension in range(extensions):
                    yield start + bytes([opcode, extension << 3 | place, 5]) + bytes(8)


@pytest.mark.parametrize(("code", "reads", "writes"), CASES)
def test_an_instruction_has_these_sizes(code: str, reads: str, writes: str) -> None:
    instruction = decoded(CpuMode.LONG, bytes.fromhex(code).ljust(15, b"\x90"))
    assert (instruction.size_of(Access.R), instruction.size_of(Access.W)) == (number(reads), number(writes))


@pytest.mark.parametrize("mode", list(CpuMode))
def test_no_processor_accesses_more_than_decoded(mode: CpuMode) -> None:
    bench, run, wrong = Bench(mode), 0, []
    for code in dict.fromkeys(encodings(mode)):
        instruction = decode(mode, code)
        if instruction is None or (instruction.reads is None and instruction.writes is None):
            continue
        ran = bench.run(code[: instruction.length])
        if ran is None:
            continue
        run += 1
        loose = mode is CpuMode.REAL or instruction.text.split()[0] in AT_MOST
        for size, real in ((instruction.reads, ran.read), (instruction.writes, ran.written)):
            if real > (size or 0) or (not loose and real != (size or 0)):
                wrong.append((code.hex(), instruction.text, size, real))
    assert wrong == []
    assert run > 2000


def test_stepping_over_a_pure_store_loses_nothing_but_the_store() -> None:
    checked: set[str] = set()
    wrong = []
    bench = Bench(CpuMode.LONG)
    for code in dict.fromkeys(encodings(CpuMode.LONG)):
        instruction = decode(CpuMode.LONG, code)
        if instruction is not None and instruction.is_pure_store:
            ran = bench.run(code[: instruction.length])
            if ran is not None:
                checked.add(instruction.text.split()[0])
                if ran.changed or not ran.writes:
                    wrong.append(instruction.text)
    assert wrong == []
    assert PURE_STORES - checked == frozenset()


@pytest.mark.parametrize("code", ["0f7f03", "0f7e03", "0fe703", "dd33", "dd1b", "aa", "a5", "50", "8703", "0103"])
def test_a_store_with_another_effect_is_not_pure(code: str) -> None:
    ran = Bench(CpuMode.LONG).run(bytes.fromhex(code))
    assert ran is not None
    assert ran.changed
    assert not decoded(CpuMode.LONG, bytes.fromhex(code)).is_pure_store


def test_storing_the_x87_environment_is_not_pure_though_qemu_lets_exceptions_stay_enabled() -> None:
    assert not decoded(CpuMode.LONG, bytes.fromhex("d933")).is_pure_store


def test_execution_counts_the_instruction_itself() -> None:
    assert decoded(CpuMode.LONG, bytes.fromhex("48890390")).size_of(Access.X) == 3


def test_a_read_and_write_at_once_counts_as_the_write() -> None:
    assert decoded(CpuMode.LONG, bytes.fromhex("480103")).size_of(Access.R | Access.W) == 8


def test_a_write_by_an_instruction_that_only_reads_has_no_size() -> None:
    assert decoded(CpuMode.LONG, bytes.fromhex("8a03")).size_of(Access.W) is None
