"""Real instructions that touch memory, as bytes: one row each.

The bytes are put together here, from Intel's opcode tables (SDM vol. 2), without a disassembler: what decodes them is
what is being tested.

A row's code is written as hexadecimal bytes and a few words: `.` is where a REX prefix goes if the operand needs one,
`W` a REX prefix with its W bit, `/N` ModRM with N as the register or opcode extension, `@` the operand's address in
eight bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.support.instruction_forms import MASK, Form

__all__ = ["DATA_REGISTERS", "LOADS", "SOURCE", "STORES", "UNCERTAIN", "Row", "assemble"]

SOURCE = "source"
"""Stands for the address of readable memory that is guarded by nothing, in a row's registers."""

UNCERTAIN = 1024
"""Bytes that the tool counts with where it can't know fewer (`docs/limitations.md`)."""

DATA_REGISTERS = {
    "rax": 0x1122334455667788,
    "rcx": 0x0102030405060703,
    "rdx": 0x8877665544332211,
    "r10": 0x00C0FFEE00C0FFEE,
}


@dataclass(frozen=True)
class Row:
    """One instruction.

    Attributes:
        code: see above.
        skips: a denied store is stepped over, since it is all that the instruction does; else it gets a fault.
        needs_step: KVM's emulator doesn't know it (arch/x86/kvm/emulate.c of Linux 5.4 and 5.15).
        aim: registers that hold the target's address, with what is added, where ModRM doesn't say the operand.
        registers: what else it needs.
        align: of the operand, in bytes.
        at_most: bytes that the tool has to count with, where a processor may touch fewer than the most.
        fill: the eight bytes that memory is filled with; None for bytes that are all different.
        stack: RSP leads to the operand.
        flags: RFLAGS.
        spoils: what Unicorn has changed when the instruction's store is refused, where a processor changes nothing.
        spoils_always: and so does it wrong when it makes it again.
        unplaced: where its operand lies, or ends, isn't certain: it isn't stepped on a page with guarded bytes.
        misplaced: Unicorn forgets the immediate byte when it works out a RIP-relative address.
    """

    name: str
    code: str
    skips: bool = False
    needs_step: bool = False
    aim: Mapping[str, int] = field(default_factory=dict, hash=False)
    registers: Mapping[str, int | str] = field(default_factory=dict, hash=False)
    align: int = 1
    at_most: int = 0
    fill: str | int | None = None
    stack: bool = False
    flags: int = 2
    spoils: str = ""
    spoils_always: bool = False
    misplaced: bool = False
    unplaced: bool = False

    @property
    def has_operand(self) -> bool:
        """Whether ModRM says where the memory is."""
        return "/" in self.code and not self.aim

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def assemble(row: Row, form: Form, at: int, operand: int) -> tuple[bytes, dict[str, int]]:
    """The instruction at `at` on memory at `operand`, and the registers that lead there."""
    prefix = form.prefix if row.has_operand else b""
    head, tail, rex, wide = b"", b"", None, False
    registers: dict[str, int] = {}
    displacement: int | None = None
    for token in row.code.split():
        match token:
            case "." | "W":
                rex, wide = 0x40 | (8 if token == "W" else 0), token == "W"
            case "@":
                tail += operand.to_bytes(8, "little")
            case _ if token.startswith("/"):
                number = int(token[1:])
                bits, modrm, registers = form.encode(number & 7, operand)
                rex = (rex or 0x40) | bits | (4 if number > 7 else 0)
                displacement = len(tail) + 1 if form.name == "rip-relative" else None
                tail += modrm
            case _ if rex is None:
                head += bytes.fromhex(token)
            case _:
                tail += bytes.fromhex(token)
    middle = bytes([rex]) if rex is not None and (wide or rex != 0x40) else b""
    if displacement is not None:
        end = at + len(prefix + head + middle + tail)
        tail = tail[:displacement] + (operand - end & 0xFFFF_FFFF).to_bytes(4, "little") + tail[displacement + 4 :]
    registers.update({name: operand + offset & MASK for name, offset in row.aim.items()})
    return prefix + head + middle + tail, registers


def _rows(kind: dict[str, object], text: str) -> Iterator[Row]:
    for line in text.strip().splitlines():
        name, code = (part.strip() for part in line.split(":"))
        yield Row(name, code, **kind)  # type: ignore[arg-type]  # the names are Row's own


DF = 2 | 1 << 10
PLAIN: dict[str, object] = {"skips": True}
STEPPED: dict[str, object] = {"skips": True, "needs_step": True}
LOSSY: dict[str, object] = {}
UNKNOWN: dict[str, object] = {"needs_step": True}
PUSHES: dict[str, object] = {"aim": {"rsp": 8}, "stack": True}
CARRY = "the flags of a rotation through carry are changed already"
MMX = "the x87 stack is marked as in use already"
EQUAL = {"rax": 0x41414141, "rdx": 0x41414141}
EQUAL_WIDE = {"rax": 0x41414141_41414141, "rdx": 0x41414141_41414141}
TO_RDI: dict[str, object] = {"aim": {"rdi": 0}, "registers": {"rsi": SOURCE}}

STORES: tuple[Row, ...] = (
    *_rows(
        PLAIN,
        """
        mov byte       : . 88 /0
        mov ah         : . 88 /4
        mov word       : 66 . 89 /0
        mov dword      : . 89 /0
        mov qword      : W 89 /2
        mov r10        : W 89 /10
        mov imm8       : . c6 /0 5a
        mov imm16      : 66 . c7 /0 5a5b
        mov imm32      : . c7 /0 5a5b5c5d
        mov simm32     : W c7 /0 5a5b5cdd
        movabs byte    : . a2 @
        movabs word    : 66 . a3 @
        movabs dword   : . a3 @
        movabs qword   : W a3 @
        mov ds         : . 8c /3
        movnti dword   : . 0fc3 /1
        movnti qword   : W 0fc3 /1
        sete           : . 0f94 /0
        setnc          : . 0f93 /0
        setle          : . 0f9e /0
        not byte       : . f6 /2
        not qword      : W f7 /2
        fnstcw         : . d9 /7
        fnstsw         : . dd /7
        movups         : . 0f11 /1
        movupd         : 66 . 0f11 /1
        movdqu         : f3 . 0f7f /9
        sgdt           : . 0f01 /0
        sidt           : . 0f01 /1
        smsw           : . 0f01 /4
        """,
    ),
    *_rows(
        PLAIN | {"align": 16},
        """
        movaps         : . 0f29 /1
        movapd         : 66 . 0f29 /1
        movdqa         : 66 . 0f7f /1
        movntdq        : 66 . 0fe7 /1
        movntps        : . 0f2b /1
        movntpd        : 66 . 0f2b /1
        """,
    ),
    *_rows(
        STEPPED,
        """
        movlps         : . 0f13 /1
        movhps         : . 0f17 /1
        movlpd         : 66 . 0f13 /1
        movhpd         : 66 . 0f17 /1
        movd           : 66 . 0f7e /1
        movq from gpr  : 66 W 0f7e /1
        movq           : 66 . 0fd6 /1
        pextrb         : 66 . 0f3a14 /1 03
        pextrw         : 66 . 0f3a15 /1 03
        pextrd         : 66 . 0f3a16 /1 03
        pextrq         : 66 W 0f3a16 /1 01
        extractps      : 66 . 0f3a17 /1 02
        stmxcsr        : . 0fae /3
        """,
    ),
    # KVM's emulator of Linux 5.4 takes these for MOVUPS and stores sixteen bytes.
    Row("movss", "f3 . 0f11 /1", skips=True, needs_step=True, at_most=16),
    Row("movsd", "f2 . 0f11 /1", skips=True, needs_step=True, at_most=16),
    # With REX.W its stores of a selector are eight bytes wide.
    Row("mov ds wide", "W 8c /3", skips=True, at_most=UNCERTAIN),
    Row("sldt", ". 0f00 /0", skips=True, at_most=8),
    Row("str", "W 0f00 /1", skips=True, at_most=8),
    Row("movbe dword", ". 0f38f1 /0", skips=True),
    Row("movbe qword", "W 0f38f1 /0", skips=True),
    Row("movbe word", "66 . 0f38f1 /0", skips=True, needs_step=True),
    Row("fxsave", ". 0fae /0", skips=True, needs_step=True, align=16, at_most=512),
    Row("fxsave64", "W 0fae /0", skips=True, needs_step=True, align=16, at_most=512),
    *_rows(
        LOSSY,
        """
        add byte       : . 00 /1
        add dword      : . 01 /1
        lock add       : f0 W 01 /1
        adc imm8       : W 83 /2 7f
        sbb            : 66 . 19 /1
        sub imm8       : . 83 /5 7f
        and imm32      : W 81 /4 0f0f0f0f
        or             : . 09 /1
        xor            : W 31 /1
        lock xor byte  : f0 . 30 /1
        inc byte       : . fe /0
        lock inc       : f0 W ff /0
        dec            : . ff /1
        neg            : . f7 /3
        lock not       : f0 . f7 /2
        shl            : . d1 /4
        shr cl         : W d3 /5
        sar            : 66 . c1 /7 03
        rol            : . c0 /0 03
        shrd cl        : W 0fad /1
        xchg byte      : . 86 /1
        xchg           : . 87 /1
        lock xchg      : f0 W 87 /1
        cmpxchg        : . 0fb1 /1
        lock cmpxchg   : f0 W 0fb1 /1
        lock cmpxchg8b : f0 . 0fc7 /1
        xadd byte      : . 0fc0 /1
        lock xadd      : f0 W 0fc1 /1
        bts imm        : W 0fba /5 05
        lock btr imm   : f0 . 0fba /6 1f
        btc imm        : 66 . 0fba /7 0f
        pop            : . 8f /0
        """,
    ),
    *_rows(
        UNKNOWN,
        """
        fst dword      : . d9 /2
        fst qword      : . dd /2
        fstp dword     : . d9 /3
        fstp tbyte     : . db /7
        fist word      : . df /2
        fistp dword    : . db /3
        fistp qword    : . df /7
        fisttp qword   : . dd /1
        fbstp          : . df /6
        """,
    ),
    *_rows(LOSSY | {"spoils": CARRY, "spoils_always": True, "flags": 3}, "rcl imm : . c1 /2 03\nrcr : W d1 /3"),
    *_rows(LOSSY | {"spoils": MMX}, "mmx movq : . 0f7f /0"),
    *_rows(UNKNOWN | {"spoils": MMX}, "mmx movd : . 0f7e /0\nmovntq : . 0fe7 /0"),
    Row("shld", ". 0fa4 /1 05", misplaced=True),
    # These find what they compare with, and exchange.
    Row("cmpxchg equal", "f0 W 0fb1 /1", fill=0x41414141_41414141, registers={"rax": 0x41414141_41414141}),
    Row("cmpxchg8b equal", "f0 . 0fc7 /1", fill=0x41414141_41414141, registers=EQUAL),
    Row("cmpxchg16b equal", "f0 W 0fc7 /1", needs_step=True, align=16, fill=0x41414141_41414141, registers=EQUAL_WIDE),
    Row("lock cmpxchg16b", "f0 W 0fc7 /1", needs_step=True, align=16),
    Row("fnstenv", ". d9 /6", needs_step=True, at_most=28),
    Row("fnsave", ". dd /6", needs_step=True, at_most=136),
    Row(
        "xsave",
        ". 0fae /4",
        needs_step=True,
        align=64,
        at_most=UNCERTAIN,
        registers={"rax": 3, "rdx": 0},
        unplaced=True,
    ),
    Row("maskmovdqu", "66 . 0ff7 ca", needs_step=True, unplaced=True, aim={"rdi": 0}, at_most=16),
    Row("maskmovq", ". 0ff7 ca", needs_step=True, aim={"rdi": 0}, at_most=8, spoils=MMX, unplaced=True),
    # A bit's number leads to bytes far from the operand: 0x3003 bits up, 0x3040 bits down.
    Row("bts far", "W 0fab 0b", aim={"rbx": -0x600}, registers={"rcx": 0x3003}, at_most=UNCERTAIN),
    Row("lock btr behind", "f0 W 0fb3 0b", aim={"rbx": 0x608}, registers={"rcx": -0x3040 & MASK}, at_most=UNCERTAIN),
    Row("btc dword", ". 0fbb 0b", aim={"rbx": -0x20}, registers={"rcx": 0x105}, at_most=UNCERTAIN),
    *_rows(
        TO_RDI,
        """
        stosb          : aa
        stosw          : 66 ab
        stosd          : ab
        stosq          : W ab
        movsb          : a4
        movsw          : 66 a5
        movsd string   : a5
        movsq          : W a5
        """,
    ),
    Row("stosb backwards", "aa", aim={"rdi": 0}, flags=DF),
    Row("rep stosb", "f3 aa", aim={"rdi": 0}, registers={"rcx": 5}),
    Row("rep stosq", "f3 W ab", aim={"rdi": 0}, registers={"rcx": 3}),
    Row("rep stosw backwards", "66 f3 ab", aim={"rdi": 0}, registers={"rcx": 4}, flags=DF),
    Row("rep movsb", "f3 a4", aim={"rdi": 0}, registers={"rsi": SOURCE, "rcx": 6}),
    Row("rep movsd", "f3 a5", aim={"rdi": 0}, registers={"rsi": SOURCE, "rcx": 3}),
    Row("rep movsq backwards", "f3 W a5", aim={"rdi": 0}, registers={"rsi": SOURCE, "rcx": 3}, flags=DF),
    Row("repne movsb", "f2 a4", aim={"rdi": 0}, registers={"rsi": SOURCE, "rcx": 2}),
    *_rows(
        PUSHES,
        """
        push rax       : 50
        push r10       : 4152
        push imm8      : 6a 7f
        push imm32     : 68 5a5b5cdd
        push fs        : 0fa0
        pushfq         : 9c
        call           : e8 08000000
        """,
    ),
    Row("push ax", "66 50", aim={"rsp": 2}, stack=True, at_most=8),
    Row("push memory", "ff 36", aim={"rsp": 8}, registers={"rsi": SOURCE}, stack=True),
    Row("call memory", "ff 16", aim={"rsp": 8}, registers={"rsi": SOURCE}, stack=True, fill="halt"),
    Row("enter", "c8 100000", aim={"rsp": 8}, registers={"rbp": SOURCE}, stack=True, at_most=UNCERTAIN),
)
"""Instructions that write."""

LOADS: tuple[Row, ...] = (
    *_rows(
        LOSSY,
        """
        mov to byte    : . 8a /0
        mov to word    : 66 . 8b /0
        mov to dword   : . 8b /0
        mov to qword   : W 8b /0
        movzx byte     : . 0fb6 /0
        movzx word     : W 0fb7 /0
        movsx byte     : . 0fbe /0
        movsx word     : W 0fbf /0
        movsxd         : W 63 /0
        cmovne         : W 0f45 /0
        cmovb          : . 0f42 /0
        cmp            : . 39 /1
        cmp imm        : W 83 /7 7f
        test           : . 85 /1
        add to         : . 03 /1
        imul           : . 0faf /1
        mul            : . f7 /4
        movups to      : . 0f10 /1
        movdqu to      : f3 . 0f6f /1
        """,
    ),
    *_rows(
        UNKNOWN,
        """
        movq to        : f3 . 0f7e /1
        fld dword      : . d9 /0
        fild qword     : . df /5
        """,
    ),
    Row("movss to", "f3 . 0f10 /1", needs_step=True, at_most=16),
    Row("movabs to rax", "W a1 @"),
    Row("movbe to dword", ". 0f38f0 /0"),
    Row("bt imm", ". 0fba /4 05", at_most=UNCERTAIN),
    Row("movdqa to", "66 . 0f6f /1", align=16),
    Row("fldcw", ". d9 /5", needs_step=True, fill=0x037F_037F_037F_037F),
    Row("xlatb", "d7", aim={"rbx": -0x88}),
    Row("lodsb", "ac", aim={"rsi": 0}),
    Row("lodsq", "W ad", aim={"rsi": 0}),
    Row("scasb", "ae", aim={"rdi": 0}),
    Row("cmpsd", "a7", aim={"rdi": 0}, registers={"rsi": SOURCE}),
    Row("rep lodsw", "66 f3 ad", aim={"rsi": 0}, registers={"rcx": 3}),
    Row("repne scasb", "f2 ae", aim={"rdi": 0}, registers={"rcx": 4, "rax": 0}),
    Row("pop rax", "58", aim={"rsp": 0}, stack=True),
    Row("popfq", "9d", aim={"rsp": 0}, stack=True, align=8, fill=0x8D7),
    Row("ret", "c3", aim={"rsp": 0}, stack=True, align=8, fill="halt"),
    Row("leave", "c9", aim={"rbp": 0}),
)
"""Instructions that only read."""
