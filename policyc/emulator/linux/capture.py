"""Taking a running machine out of QEMU: processor and devices at the entry of the timer interrupt.

There the kernel stands in supervisor mode with interrupts off, and no device waits for anything: the timer has just
fired and will be set again, the console is silent.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from policyc.emulator.linux.errors import BuildError
from policyc.emulator.linux.gdbstub import GdbStub, Processor
from policyc.emulator.linux.state import MSRS, CpuState, DeviceState, MachineState

if TYPE_CHECKING:
    from policyc.emulator.linux.qemu import Qemu

__all__ = ["capture"]

_SEGMENT: Final = re.compile(r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=(\w+) (\w+) (\w+) (\w+)", re.MULTILINE)
_TABLE: Final = re.compile(r"^(GDT|IDT)= +(\w+) (\w+)$", re.MULTILINE)
_PIN: Final = re.compile(r"^  pin (\d+) +0x(\w{16}) ", re.MULTILINE)
_PORT: Final = re.compile(r"= 0x(\w+)")
_LVT_TIMER: Final = re.compile(r"^LVTT\s+0x(\w+)", re.MULTILINE)
_TIMER: Final = re.compile(r"^Timer\s+DCR=0x(\w+).*initial_count = (\d+)", re.MULTILINE)
_SPURIOUS: Final = re.compile(r"^SPIV\s+0x(\w+)", re.MULTILINE)

LVT_TIMER: Final = 0x320
INITIAL_COUNT: Final = 0x380
DIVIDE: Final = 0x3E0
SPURIOUS: Final = 0xF0
_UART_PORTS: Final = (0x3F9, 0x3FB, 0x3FC)
_PINS: Final = 24
_GATE_BYTES: Final = 16


def capture(qemu: Qemu, start: int, boot_seconds: float) -> MachineState:
    """Boot, and take the state of the machine at the first timer interrupt after it has come to an address.

    QEMU stands still from then on. Nothing here depends on when it is asked, so the same boot gives the same state.

    Args:
        start: address in the kernel that is reached once, when everything is ready.

    Raises:
        BuildError: QEMU shows it in another form than it was written for, or no interrupt comes.
    """
    stub = GdbStub(qemu.gdb)
    try:
        stub.run_to(start, boot_seconds)
        lapic = _lapic(qemu)
        tables = {name: (int(base, 16), int(limit, 16)) for name, base, limit in _TABLE.findall(_registers(qemu))}
        if set(tables) != {"GDT", "IDT"}:
            raise BuildError("QEMU shows no descriptor tables")
        stub.run_to(_gate(stub, tables["IDT"][0], lapic[LVT_TIMER] & 0xFF), boot_seconds)
        time_stamp = stub.time_stamp()
        msrs = stub.model_specific_registers(tuple(MSRS.values()))
        return MachineState(_cpu(qemu, stub.processor(), msrs, time_stamp), _devices(qemu))
    except TimeoutError:
        raise BuildError("the guest didn't come to where its machine is taken") from None
    finally:
        stub.close()


def _gate(stub: GdbStub, table: int, vector: int) -> int:
    low, _, _, _, middle, high = struct.unpack("<HHBBHIxxxx", stub.read(table + _GATE_BYTES * vector, _GATE_BYTES))
    handler: int = low | middle << 16 | high << 32
    return handler


def _cpu(qemu: Qemu, processor: Processor, msrs: dict[int, int], time_stamp: int) -> CpuState:
    shown = _registers(qemu)
    segments = {
        name.lower(): (int(selector, 16), int(base, 16), int(limit, 16), int(flags, 16))
        for name, selector, base, limit, flags in _SEGMENT.findall(shown)
    }
    for name, base, limit in _TABLE.findall(shown):
        segments[name.lower()] = (0, int(base, 16), int(limit, 16), 0)
    if len(segments) != 10:
        raise BuildError(f"QEMU shows {len(segments)} segments instead of 10")
    return CpuState(
        processor.registers,
        segments,
        {name: msrs[index] for name, index in MSRS.items()},
        _fxsave(processor).hex(),
        time_stamp,
    )


def _fxsave(processor: Processor) -> bytes:
    area = bytearray(512)
    struct.pack_into("<HHB", area, 0, processor.fcw & 0xFFFF, processor.fsw & 0xFFFF, _abridged(processor.ftw))
    struct.pack_into("<II", area, 24, processor.mxcsr, 0xFFFF)
    for number in range(8):
        area[32 + 16 * number : 42 + 16 * number] = processor.st[10 * number : 10 * number + 10]
    area[160:416] = processor.xmm
    return bytes(area)


def _abridged(tags: int) -> int:
    """QEMU's stub gives the tag word with one bit a register, set for an empty one."""
    return ~tags & 0xFF


def _devices(qemu: Qemu) -> DeviceState:
    pins = {int(number): int(entry, 16) for number, entry in _PIN.findall(qemu.monitor("info pic"))}
    if sorted(pins) != list(range(_PINS)):
        raise BuildError(f"QEMU shows {len(pins)} pins of the I/O APIC instead of {_PINS}")
    enable, line, modem = (_port(qemu, number) for number in _UART_PORTS)
    return DeviceState(_lapic(qemu), tuple(pins[number] for number in range(_PINS)), (enable, line, modem))


def _lapic(qemu: Qemu) -> dict[int, int]:
    text = qemu.monitor("info lapic")
    entry, timer, spurious = _LVT_TIMER.search(text), _TIMER.search(text), _SPURIOUS.search(text)
    if entry is None or timer is None or spurious is None:
        raise BuildError("QEMU shows the local APIC in another form than it did")
    return {
        SPURIOUS: int(spurious[1], 16),
        LVT_TIMER: int(entry[1], 16),
        INITIAL_COUNT: int(timer[2]),
        DIVIDE: int(timer[1], 16),
    }


def _port(qemu: Qemu, number: int) -> int:
    found = _PORT.search(qemu.monitor(f"i/1xb {number:#x}"))
    if found is None:
        raise BuildError(f"QEMU doesn't show port {number:#x}")
    return int(found[1], 16)


def _registers(qemu: Qemu) -> str:
    return qemu.monitor("info registers").replace("\r", "")
