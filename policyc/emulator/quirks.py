"""Finding out where the installed Unicorn keeps what `Context` reads and patches.

Each field is found by putting a value there and looking where it turns up, and the result is tried out. An engine
whose layout isn't the expected one is refused before a guest runs on it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import unicorn
from unicorn import UC_HOOK_INTR, UC_HOOK_TLB_FILL, Uc, UcError
from unicorn import x86_const as x86

from policyc.emulator.context import GPR_NAMES, SEGMENT_ORDER, SEGMENT_STRIDE, Context, Layout, handle_of
from policyc.emulator.unicorn_setup import open_engine

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LayoutError", "measure"]

_MSRS: Final = (0x175, 0x176, 0x277, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102)
_DESCRIPTORS: Final = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
_SCRATCH_BYTES: Final = 0x10000
_STRUCT_SEARCH: Final = 0x4000
_MARK: Final = 0x1BAD_B002_0000_0000


class LayoutError(Exception):
    """This build of Unicorn keeps its state in another way than the emulator was written for."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"unicorn {unicorn.__version__} doesn't keep {field} where policyc can find it: install unicorn 2.1.4 or a"
            " later 2.1 release (pip install 'policyc[guest]')"
        )


@lru_cache(maxsize=1)
def measure() -> Layout:
    """Find the fields in the Unicorn that is installed, once a process.

    Raises:
        LayoutError: a field isn't found where one is expected, or doesn't do what it should.
    """
    probe = _Probe()
    gprs = probe.find_gprs()
    segments = probe.find_segments(gprs)
    error_code, is_software, old_exception = probe.find_exception()
    layout = Layout(
        gprs=gprs,
        hflags=segments - 8,
        segments=segments,
        cr=probe.find("CR2", lambda value: probe.write("CR2", value)) - 16,
        error_code=error_code,
        is_software=is_software,
        old_exception=old_exception,
        msrs={index: probe.find(f"MSR {index:#x}", probe.msr_writer(index)) for index in _MSRS},
        counter=probe.find_counter(),
    )
    _try_out(layout)
    return layout


class _Probe:
    """An engine on flat memory, made to show where it keeps things."""

    def __init__(self) -> None:
        self._memory = ctypes.create_string_buffer(_SCRATCH_BYTES)
        self.uc = open_engine(ctypes.addressof(self._memory), _SCRATCH_BYTES)
        self.uc.hook_add(UC_HOOK_TLB_FILL, _map_flat)
        self.interrupts: list[int] = []
        self.uc.hook_add(UC_HOOK_INTR, self._interrupt)

    def _interrupt(self, uc: Uc, vector: int, _: object) -> None:
        self.interrupts.append(vector)
        uc.emu_stop()

    def write(self, register: str, value: object) -> None:
        self.uc.reg_write(getattr(x86, f"UC_X86_REG_{register}"), value)

    def msr_writer(self, index: int) -> Callable[[int], None]:
        return lambda value: self.uc.msr_write(index, value)

    def block(self) -> bytes:
        return bytes(self.uc.context_save())

    def run(self, code: bytes, count: int = 16) -> None:
        ctypes.memmove(ctypes.addressof(self._memory) + 0x1000, code + b"\xf4", len(code) + 1)
        self.uc.ctl_flush_tb()
        try:
            self.uc.emu_start(0x1000, 0, count=count)
        except UcError as error:
            raise LayoutError("its exceptions") from error

    def find(self, what: str, write: Callable[[int], None], pack: str = "<Q") -> int:
        """The one offset where a value that was written turns up."""
        value = _MARK & ((1 << 8 * struct.calcsize(pack)) - 1) | 0x0000_7664_1000
        before = self.block()
        write(value)
        after = self.block()
        wanted = struct.pack(pack, value)
        places = [at for at in _occurrences(after, wanted) if before[at : at + len(wanted)] != wanted]
        if len(places) != 1:
            raise LayoutError(what)
        return places[0]

    def find_gprs(self) -> int:
        values = [_MARK + 0x1000 * number for number in range(1, len(GPR_NAMES) + 1)]
        for name, value in zip(GPR_NAMES, values, strict=True):
            self.write(name.upper(), value)
        places = _occurrences(self.block(), struct.pack(f"<{len(values)}Q", *values))
        if len(places) != 1:
            raise LayoutError("the general registers")
        return places[0]

    def find_segments(self, gprs: int) -> int:
        marks = {"LDTR": _MARK + 0x100, "TR": _MARK + 0x200, "GDTR": _MARK + 0x300, "IDTR": _MARK + 0x400}
        for register, base in marks.items():
            self.write(register, (0x40, base, 0x67, 0x8B00))
        self.write("CS", 0x10)
        block = self.block()
        places = _occurrences(block, struct.pack("<Q", marks["LDTR"]))
        if len(places) != 1:
            raise LayoutError("the segment registers")
        start = places[0] - 8 - SEGMENT_ORDER.index("ldt") * SEGMENT_STRIDE
        bases = [
            struct.unpack_from("<Q", block, start + 8 + number * SEGMENT_STRIDE)[0]
            for number in range(6, len(SEGMENT_ORDER))
        ]
        selector = struct.unpack_from("<I", block, start + SEGMENT_STRIDE)[0]
        if bases != list(marks.values()) or selector != 0x10 or start <= gprs:
            raise LayoutError("the segment registers")
        return start

    def find_exception(self) -> tuple[int, int, int]:
        """Offsets of `error_code`, `exception_is_int`, `old_exception`, from a #GP that has an error code."""
        self.write("GDTR", (0, 0x9000, 0x17, 0))
        self.write("RAX", 0x1234)
        before = self.block()
        self.run(b"\x8e\xd8")  # mov ds, ax: no such selector
        after = self.block()
        codes = [at for at in _changed_words(before, after) if _word(after, at) == 0x1234]
        old = [at for at in _changed_words(before, after) if (_word(before, at), _word(after, at)) == (0xFFFFFFFF, 13)]
        if self.interrupts != [13] or len(codes) != 1 or len(old) != 1 or _word(after, codes[0] + 4) != 0:
            raise LayoutError("the exception in flight")
        self.run(b"\xcd\x21")  # int 0x21
        if self.interrupts[1:] != [0x21] or _word(self.block(), codes[0] + 4) != 1:
            raise LayoutError("the exception in flight")
        return codes[0], codes[0] + 4, old[0]

    def find_counter(self) -> int:
        """Offset of `emu_counter`, which stands before `emu_count`, from the start of `struct uc_struct`."""
        budget = 0x7EA5_0000_1235
        self.run(b"\x90" * 5, budget)
        try:
            memory = os.open("/proc/self/mem", os.O_RDONLY)
            try:
                block = os.pread(memory, _STRUCT_SEARCH, handle_of(self.uc))
            finally:
                os.close(memory)
        except OSError as error:
            raise LayoutError("its instruction counter (reading /proc/self/mem failed)") from error
        places = _occurrences(block, struct.pack("<QQ", 6, budget))
        if len(places) != 1:
            raise LayoutError("its instruction counter")
        return places[0]


def _try_out(layout: Layout) -> None:
    """Go to user mode by IRETQ, come back by a patch, and take the same fault twice."""
    probe = _Probe()
    memory = probe._memory
    descriptors = struct.pack(
        "<7Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
    )
    ctypes.memmove(ctypes.addressof(memory) + 0x9000, descriptors, len(descriptors))
    frame = struct.pack("<5Q", 0x1002, 0x33, 2, 0x8000, 0x2B)
    ctypes.memmove(ctypes.addressof(memory) + 0x7000, frame, len(frame))
    probe.write("GDTR", (0, 0x9000, 0x37, 0))
    probe.write("RSP", 0x7000)
    context = Context(probe.uc, layout)
    probe.run(b"\x48\xcf\x0f\x20\xc0")  # iretq; mov rax, cr0: a #GP in user mode
    context.load()
    if probe.interrupts != [13] or struct.unpack_from("<I", probe.block(), layout.hflags)[0] & 3 != 3:
        raise LayoutError("the privilege level")
    context.set_privilege(0)
    context.set_segment("cs", 0x10, 0, 0xFFFFFFFF, 0x00AF9B00)
    context.set_segment("ss", 0x18, 0, 0xFFFFFFFF, 0x00CF9300)
    context.forget_exception()
    context.store()
    probe.run(b"\x0f\x20\xc0")  # mov rax, cr0
    if probe.interrupts != [13] or context.instructions != 2:
        raise LayoutError("the privilege level")
    for _ in range(2):
        context.load()
        context.forget_exception()
        context.store()
        probe.write("RDX", 0)
        probe.run(b"\x48\xf7\xf2")  # div rdx
    if probe.interrupts != [13, 0, 0]:
        raise LayoutError("the exception in flight")


def _map_flat(uc: Uc, gva: int, access: int, entry: unicorn.unicorn.uc_tlb_entry, _: object) -> bool:
    entry.paddr = gva
    entry.perms = unicorn.UC_PROT_ALL
    return gva < _SCRATCH_BYTES


def _occurrences(block: bytes, wanted: bytes) -> list[int]:
    places = []
    at = block.find(wanted)
    while at >= 0:
        places.append(at)
        at = block.find(wanted, at + 1)
    return places


def _changed_words(before: bytes, after: bytes) -> list[int]:
    return [at for at in range(0, len(after) - 3, 4) if before[at : at + 4] != after[at : at + 4]]


def _word(block: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", block, at)[0]
    return value
