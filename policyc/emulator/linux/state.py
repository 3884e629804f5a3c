"""What a machine is besides its memory: the values that the processor and its few devices hold.

All of it is plain numbers, written as JSON. A state that is read from a file is checked field by field; nothing in it
is used as a size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from policyc.emulator.linux.errors import SnapshotError

__all__ = ["MSRS", "CpuState", "DeviceState", "MachineState", "machine_state_from"]

MSRS: Final[Mapping[str, int]] = {
    "sysenter_cs": 0x174,
    "sysenter_esp": 0x175,
    "sysenter_eip": 0x176,
    "misc_enable": 0x1A0,
    "pat": 0x277,
    "star": 0xC000_0081,
    "lstar": 0xC000_0082,
    "cstar": 0xC000_0083,
    "syscall_mask": 0xC000_0084,
    "fs_base": 0xC000_0100,
    "gs_base": 0xC000_0101,
    "kernel_gs_base": 0xC000_0102,
    "tsc_aux": 0xC000_0103,
}

REGISTERS: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16))),
    *("rip", "rflags", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"),
)
SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs", "ldt", "tr", "gdt", "idt")
"""Each is selector, base, limit, and attributes as bits 8 to 23 of a descriptor's second word have them."""

_PINS: Final = 24
_FXSAVE_BYTES: Final = 512
_WORD_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class CpuState:
    """The processor: see `REGISTERS`, `SEGMENTS` and `MSRS` for the keys.

    Attributes:
        fxsave: x87 and SSE as FXSAVE stores them, in hexadecimal.
        time_stamp: the counter of RDTSC, in nanoseconds.
    """

    registers: Mapping[str, int]
    segments: Mapping[str, tuple[int, int, int, int]]
    msrs: Mapping[str, int]
    fxsave: str
    time_stamp: int


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The devices that the kernel goes on using.

    Attributes:
        lapic: registers of the local APIC by offset.
        ioapic: the redirection entries of its pins.
        uart: interrupt-enable, line-control and modem-control register of the first serial port.
    """

    lapic: Mapping[int, int]
    ioapic: tuple[int, ...]
    uart: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class MachineState:
    """Processor and devices."""

    cpu: CpuState
    devices: DeviceState

    def to_json(self) -> dict[str, object]:
        """As `machine_state_from` reads it."""
        return asdict(self)


def machine_state_from(document: object) -> MachineState:
    """A state that was written as JSON.

    Raises:
        SnapshotError: a field is missing, or isn't what it should be.
    """
    whole = _object(document, "state")
    cpu = _object(whole.get("cpu"), "cpu")
    devices = _object(whole.get("devices"), "devices")
    segments = _object(cpu.get("segments"), "segments")
    fxsave = cpu.get("fxsave")
    if not isinstance(fxsave, str) or len(fxsave) != 2 * _FXSAVE_BYTES or set(fxsave) - set("0123456789abcdef"):
        raise SnapshotError(f"state.json: cpu.fxsave isn't {_FXSAVE_BYTES} bytes in hexadecimal")
    lapic = _object(devices.get("lapic"), "lapic")
    return MachineState(
        CpuState(
            _numbers(cpu.get("registers"), REGISTERS, "registers"),
            {name: _four(_list(segments.get(name), 4, f"segments.{name}")) for name in SEGMENTS},
            _numbers(cpu.get("msrs"), tuple(MSRS), "msrs"),
            fxsave,
            _number(cpu.get("time_stamp"), "cpu.time_stamp"),
        ),
        DeviceState(
            {_offset(key): _number(value, f"lapic.{key}") for key, value in lapic.items()},
            tuple(_list(devices.get("ioapic"), _PINS, "ioapic")),
            _three(_list(devices.get("uart"), 3, "uart")),
        ),
    )


def _object(value: object, name: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise SnapshotError(f"state.json: {name} is missing or no object")
    return value


def _numbers(value: object, names: tuple[str, ...], name: str) -> dict[str, int]:
    found = _object(value, name)
    return {key: _number(found.get(key), f"{name}.{key}") for key in names}


def _list(value: object, count: int, name: str) -> list[int]:
    if not isinstance(value, list) or len(value) != count:
        raise SnapshotError(f"state.json: {name} is no list of {count} numbers")
    return [_number(item, name) for item in value]


def _number(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _WORD_MAX:
        raise SnapshotError(f"state.json: {name} is missing or no 64-bit number")
    return value


def _offset(key: str) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 4 or int(key) % 16:
        raise SnapshotError("state.json: a register of the local APIC has no offset that it could have")
    return int(key)


def _four(values: list[int]) -> tuple[int, int, int, int]:
    first, second, third, fourth = values
    return first, second, third, fourth


def _three(values: list[int]) -> tuple[int, int, int]:
    first, second, third = values
    return first, second, third
