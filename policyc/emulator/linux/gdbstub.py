"""The little of GDB's remote protocol that it takes to read a stopped processor (GDB manual, appendix E).

QEMU's stub lays out the answer to `g` as its target description for x86-64 says (gdb-xml/i386-64bit.xml).
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.emulator.linux.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GdbStub", "Processor"]

ANSWER_SECONDS: Final = 60.0
ANSWER_MAX: Final = 1 << 20
_CHUNK: Final = 1024

_BLOCK: Final = struct.Struct("<16Q Q I 6I 3Q 5Q Q 80s 8I 256s I")
GPRS: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
CONTROL: Final = ("cr0", "cr2", "cr3", "cr4", "cr8")
_RDMSR: Final = b"\x0f\x32"
_RDTSC: Final = b"\x0f\x31"


@dataclass(frozen=True, slots=True)
class Processor:
    """The registers that GDB knows.

    Attributes:
        registers: general registers, `rip`, `rflags`, control registers and `efer`.
        selectors: of the six segments.
        bases: `fs`, `gs`, and `kernel_gs`, which SWAPGS exchanges.
        st: the eight x87 registers, ten bytes each.
        fcw, fsw, ftw: x87 control, status, and abridged tags.
        xmm: the sixteen SSE registers, sixteen bytes each.
        block: all of it as it came.
    """

    registers: dict[str, int]
    selectors: dict[str, int]
    bases: dict[str, int]
    st: bytes
    fcw: int
    fsw: int
    ftw: int
    xmm: bytes
    mxcsr: int
    block: bytes


class GdbStub:
    """A connection to QEMU's stub; the guest stands still while nobody lets it go on.

    Raises:
        BuildError: nobody answers.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.connect(str(path))
        self._received = b""
        self._ask("?")
        self._settle()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def processor(self) -> Processor:
        """All registers as they are now."""
        block = bytes.fromhex(self._ask("g"))
        if len(block) != _BLOCK.size:
            raise BuildError(f"QEMU shows {len(block)} bytes of registers instead of {_BLOCK.size}")
        values = iter(_BLOCK.unpack(block))
        registers = {name: next(values) for name in (*GPRS, "rip", "rflags")}
        selectors = {name: next(values) for name in SEGMENTS}
        bases = {name: next(values) for name in ("fs", "gs", "kernel_gs")}
        registers |= {name: next(values) for name in (*CONTROL, "efer")}
        st = next(values)
        fcw, fsw, ftw, *_ = (next(values) for _ in range(8))
        return Processor(registers, selectors, bases, st, fcw, fsw, ftw, next(values), next(values), block)

    def read(self, gva: int, size: int) -> bytes:
        """Guest memory by virtual address.

        Raises:
            BuildError: it isn't mapped.
        """
        found = b""
        while len(found) < size:
            part = min(_CHUNK, size - len(found))
            answer = self._ask(f"m{gva + len(found):x},{part:x}")
            if len(answer) != 2 * part:
                raise BuildError(f"QEMU can't read guest memory at {gva:#x}: {answer[:20]}")
            found += bytes.fromhex(answer)
        return found

    def write(self, gva: int, data: bytes) -> None:
        """Store into guest memory, whatever its rights."""
        self._expect_ok(f"M{gva:x},{len(data):x}:{data.hex()}")

    def run_to(self, gva: int, seconds: float) -> None:
        """Let the guest run until it comes to an address.

        Raises:
            BuildError: it stops elsewhere.
            TimeoutError: it doesn't stop in time.
        """
        self._expect_ok(f"Z1,{gva:x},1")
        self._ask("c", seconds)
        self._expect_ok(f"z1,{gva:x},1")
        if self.processor().registers["rip"] != gva:
            raise BuildError(f"the guest didn't stop at {gva:#x}")

    def model_specific_registers(self, indices: tuple[int, ...]) -> dict[int, int]:
        """MSRs, which the stub doesn't show: the guest itself is made to read them, one RDMSR each, and set back.

        It must stand in supervisor mode with interrupts off.
        """
        return {index: self._made_to(_RDMSR, index) for index in indices}

    def time_stamp(self) -> int:
        """The time-stamp counter, read as MSRs are."""
        return self._made_to(_RDTSC, 0)

    def _made_to(self, code: bytes, rcx: int) -> int:
        """EDX:EAX after one instruction of two bytes; everything is then as it was."""
        before = self.processor()
        rip = before.registers["rip"]
        own = self.read(rip, len(code))
        self.write(rip, code)
        block = bytearray(before.block)
        struct.pack_into("<Q", block, 8 * GPRS.index("rcx"), rcx)
        self._expect_ok(f"G{block.hex()}")
        self._ask("s")
        after = self.processor().registers
        self.write(rip, own)
        self._expect_ok(f"G{before.block.hex()}")
        if after["rip"] != rip + len(code):
            raise BuildError(f"the guest can't execute {code.hex()} for {rcx:#x}")
        return (after["rdx"] & 0xFFFF_FFFF) << 32 | after["rax"] & 0xFFFF_FFFF

    def _expect_ok(self, command: str) -> None:
        answer = self._ask(command)
        if answer != "OK":
            raise BuildError(f"QEMU's gdbstub answered {answer[:20]!r} to {command[:8]!r}")

    def _ask(self, command: str, seconds: float = ANSWER_SECONDS) -> str:
        data = command.encode()
        self._socket.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        return self._answer(seconds)

    def _settle(self) -> None:
        """QEMU may report once more that it has stopped, unasked."""
        try:
            self._answer(0.3)
        except TimeoutError:
            return

    def _answer(self, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while True:
            begin = self._received.find(b"$")
            end = self._received.find(b"#", begin + 1)
            if begin >= 0 and end >= 0 and len(self._received) >= end + 3:
                packet = self._received[begin + 1 : end]
                self._received = self._received[end + 3 :]
                self._socket.sendall(b"+")
                return packet.decode("latin-1")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(65536)
            if not data or len(self._received) > ANSWER_MAX:
                raise BuildError("QEMU's gdbstub has hung up")
            self._received += data
