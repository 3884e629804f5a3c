"""Operand addresses, held against what the processor really touches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import UC_HOOK_MEM_READ, UC_HOOK_MEM_WRITE, UC_MEM_WRITE, Uc

from policyc.emulator.context import GPR_NAMES
from policyc.emulator.decode import Access, accesses, decode
from tests.support.emulator_bench import CODE, DATA, GDT, SPARE, STACK, Bench

INSTRUCTIONS = {
    "mov [rbx], rax": "488903",
    "mov [rbx+rcx*4+0x10], eax": "89448b10",
    "mov [ebx], rax": "67488903",
    "mov byte [rip+0x20000], 1": "c6050000020001",
    "movabs [0x40010], rax": "48a31000040000000000",
    "mov rax, gs:[rbx]": "65488b03",
    "mov fs:[8], eax": "6489042508000000",
    "add [rbx], rax": "480103",
    "xchg [rbx], rcx": "48870b",
    "lock xadd [rbx], rax": "f0480fc103",
    "lock cmpxchg [rbx], rcx": "f0480fb10b",
    "bts [rbx], rcx": "480fab0b",
    "btr dword [rbx], ecx": "0fb30b",
    "bt word [rbx], cx": "660fa30b",
    "push rax": "50",
    "push [rbx]": "ff33",
    "pop rax": "58",
    "pop [rbx]": "8f03",
    "call rbx": "ffd3",
    "ret": "c3",
    "leave": "c9",
    "pushfq": "9c",
    "popfq": "9d",
    "movsq": "48a5",
    "stosb": "aa",
    "lodsd": "ad",
    "cmpsb": "a6",
    "scasq": "48af",
    "xlatb": "d7",
    "movdqu [rbx], xmm0": "f30f7f03",
    "movups xmm0, [rbx+rdi]": "0f10043b",
    "iretq": "48cf",
}


def touched(bench: Bench, code: str) -> set[tuple[int, int, bool]]:
    """The bytes that one step reads and writes, as Unicorn's own memory hooks tell: address, size, written."""
    seen: set[tuple[int, int, bool]] = set()

    def note(_uc: Uc, kind: int, address: int, size: int, _value: int, _: object) -> None:
        seen.add((address, size, kind == UC_MEM_WRITE))

    bench.engine._uc.hook_add(UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, note)
    bench.engine.step()
    return seen


@pytest.mark.parametrize("code", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
@settings(max_examples=15, deadline=None)
@given(offset=st.integers(0, 0x7FF), number=st.integers(-200, 200))
def test_every_byte_that_is_touched_belongs_to_an_operand(code: str, offset: int, number: int) -> None:
    instruction = bytes.fromhex(code)
    bench = Bench(instruction, rbx=DATA + 0x800 + offset, rcx=number & (1 << 64) - 1, rdi=SPARE + offset)
    if "rip" in code or code == "67488903":
        bench.set(rbx=DATA + offset)
    if code == "0f10043b":
        bench.set(rdi=offset)
    bench.set(rsi=DATA + offset, rax=offset & 0xFF, rbp=DATA + offset, rsp=STACK - 0x100)
    bench.words(STACK - 0x100, CODE, 0x10, 2, STACK - 0x80, 0x18)
    bench.engine.msr_write(0xC000_0100, DATA)
    bench.engine.msr_write(0xC000_0101, 0x100)
    engine = bench.engine
    engine.context.load()
    registers = dict(zip(GPR_NAMES, engine.context.gprs_and_rip(), strict=True)) | {"fs_base": DATA, "gs_base": 0x100}
    insn = decode(instruction)
    assert insn is not None
    known = accesses(insn, registers)
    seen = touched(bench, code)
    assert seen
    descriptors = range(GDT, GDT + 80)  # read along with segment registers, and no operand
    for address, size, written in seen:
        assert address in descriptors or any(
            access.gva <= address and address + size <= access.gva + access.size and (access.written or not written)
            for access in known
        ), (hex(address), size, written, known)


def test_the_address_of_a_bit_string_goes_below_its_base() -> None:
    insn = decode(bytes.fromhex("480fab0b"))
    assert insn is not None
    registers = dict.fromkeys((*GPR_NAMES, "fs_base", "gs_base"), 0) | {"rbx": DATA, "rcx": (1 << 64) - 1}
    assert [access.gva for access in accesses(insn, registers)] == [DATA - 8]


def test_a_masked_store_goes_where_rdi_points() -> None:
    insn = decode(bytes.fromhex("660ff7c1"))
    assert insn is not None
    registers = dict.fromkeys((*GPR_NAMES, "fs_base", "gs_base"), 0) | {"rdi": DATA}
    assert accesses(insn, registers) == [Access(DATA, 16, read=False, written=True)]


IN_32_BITS = {
    "push eax": ("50", [Access(STACK - 4, 4, read=False, written=True)]),
    "pop eax": ("58", [Access(STACK, 4, read=True, written=False)]),
    "pushal": ("60", [Access(STACK - 32, 32, read=False, written=True)]),
    "popal": ("61", [Access(STACK, 32, read=True, written=False)]),
    "leave": ("c9", [Access(SPARE, 4, read=True, written=False)]),
    "iretd": ("cf", [Access(STACK, 20, read=True, written=False)]),
    "mov [ebx], eax": ("8903", [Access(DATA, 4, read=False, written=True)]),
    "mov [0x40010], eax": ("a310000400", [Access(DATA + 0x10, 4, read=False, written=True)]),
    "mov [bx], al": ("678807", [Access(DATA & 0xFFFF, 1, read=False, written=True)]),
}


@pytest.mark.parametrize(("code", "wanted"), IN_32_BITS.values(), ids=IN_32_BITS)
def test_what_32_bit_code_touches(code: str, wanted: list[Access]) -> None:
    """The upper halves of registers mean nothing there."""
    upper = 0x7777 << 32
    insn = decode(bytes.fromhex(code), 32)
    assert insn is not None
    registers = dict.fromkeys((*GPR_NAMES, "fs_base", "gs_base"), 0)
    registers |= {"rbx": DATA | upper, "rsp": STACK | upper, "rbp": SPARE | upper}
    assert accesses(insn, registers) == wanted


def test_the_same_bytes_in_code_of_another_width() -> None:
    names = {bits: insn.name for bits in (16, 32, 64) if (insn := decode(bytes.fromhex("4889c8"), bits)) is not None}
    assert names == {16: "dec", 32: "dec", 64: "mov"}


def test_bytes_that_are_no_instruction() -> None:
    assert decode(b"") is None
    assert decode(bytes.fromhex("06")) is None
    assert decode(bytes.fromhex("48")) is None
