"""The devices that a running Linux kernel needs: local APIC with its timer, I/O APIC, serial port, ACPI timer.

Everything that has to do with time counts in nanoseconds of the guest's clock. Interrupts are raised and not tracked in
service: the kernel serves one at a time with interrupts off, and its end-of-interrupt changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from policyc.emulator.linux.uart import Uart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from policyc.emulator.bus import Registers
    from policyc.emulator.linux.state import DeviceState

__all__ = ["Devices", "IoApic", "LocalApic"]

LAPIC_FRAME: Final = 0xFEE0_0000
IOAPIC_FRAME: Final = 0xFEC0_0000
PM_TIMER_PORT: Final = 0x608
UART_PORTS: Final = range(0x3F8, 0x400)
UART_PIN: Final = 4

_PM_TIMER_HZ: Final = 3_579_545
_PM_TIMER_MASK: Final = 0xFF_FFFF
_SECOND: Final = 1_000_000_000

_VERSION: Final = 0x30
_INTERRUPT_COMMAND: Final = 0x300
_LVT_TIMER: Final = 0x320
_INITIAL_COUNT: Final = 0x380
_CURRENT_COUNT: Final = 0x390
_DIVIDE: Final = 0x3E0
_VERSION_VALUE: Final = 0x0005_0014
_MASKED: Final = 1 << 16
_PERIODIC: Final = 1 << 17
_TO_OTHERS: Final = 3
_VECTOR: Final = 0xFF
_DELIVERY: Final = 7 << 8


class LocalApic:
    """The local APIC of the one processor (Intel SDM, volume 3, chapter 10); its timer counts nanoseconds.

    Args:
        registers: by offset, as they were.
        now: the guest's clock.
        interrupt: raises a vector.

    Attributes:
        deadline: when the timer fires next, None if it isn't set.
    """

    def __init__(self, registers: Mapping[int, int], now: Callable[[], int], interrupt: Callable[[int], None]) -> None:
        self._registers = {_VERSION: _VERSION_VALUE, **registers}
        self._now = now
        self._interrupt = interrupt
        self.deadline: int | None = None

    def read(self, offset: int, _size: int) -> int:
        """See `Registers`."""
        if offset == _CURRENT_COUNT:
            left = self.deadline - self._now() if self.deadline is not None else 0
            return max(left, 0) >> self._shift
        return self._registers.get(offset, 0)

    def write(self, offset: int, _size: int, value: int) -> None:
        """See `Registers`."""
        self._registers[offset] = value & 0xFFFF_FFFF
        if offset == _INITIAL_COUNT:
            self.deadline = self._now() + (value << self._shift) if value else None
        elif offset == _INTERRUPT_COMMAND and not value & _DELIVERY and value >> 18 & 3 != _TO_OTHERS:
            self._interrupt(value & _VECTOR)

    def expire(self, now: int) -> None:
        """Raise the timer's interrupt if it is due."""
        if self.deadline is None or now < self.deadline:
            return
        entry = self._registers.get(_LVT_TIMER, _MASKED)
        period = self._registers.get(_INITIAL_COUNT, 0) << self._shift
        self.deadline = max(self.deadline + period, now) if entry & _PERIODIC and period else None
        if not entry & _MASKED:
            self._interrupt(entry & _VECTOR)

    @property
    def _shift(self) -> int:
        divide = self._registers.get(_DIVIDE, 0)
        return ((divide & 3 | divide >> 1 & 4) + 1) & 7


class IoApic:
    """The I/O APIC (Intel 82093AA), for edge-triggered pins: an index, a window, and 24 redirection entries."""

    def __init__(self, pins: tuple[int, ...], interrupt: Callable[[int], None]) -> None:
        self._pins = list(pins)
        self._interrupt = interrupt
        self._index = 0

    def read(self, offset: int, _size: int) -> int:
        """See `Registers`."""
        if offset != 0x10:
            return self._index
        if self._index == 1:
            return (len(self._pins) - 1) << 16 | 0x20
        pin, high = divmod(self._index - 0x10, 2)
        return self._pins[pin] >> 32 * high & 0xFFFF_FFFF if 0 <= pin < len(self._pins) else 0

    def write(self, offset: int, _size: int, value: int) -> None:
        """See `Registers`."""
        if offset != 0x10:
            self._index = value & 0xFF
            return
        pin, high = divmod(self._index - 0x10, 2)
        if 0 <= pin < len(self._pins):
            kept = self._pins[pin] & ~(0xFFFF_FFFF << 32 * high)
            self._pins[pin] = kept | (value & 0xFFFF_FFFF) << 32 * high

    def edge(self, pin: int) -> None:
        """A device raises its line."""
        entry = self._pins[pin]
        if not entry & _MASKED and not entry & _DELIVERY & ~(1 << 8):
            self._interrupt(entry & _VECTOR)


class Devices:
    """The bus of a Linux machine.

    Args:
        state: as the devices were.
        clock: the guest's clock, in nanoseconds, while it runs.
        interrupt: raises a vector.
    """

    def __init__(self, state: DeviceState, clock: Callable[[], int], interrupt: Callable[[int], None]) -> None:
        self._clock = clock
        self.lapic = LocalApic(state.lapic, clock, interrupt)
        self.ioapic = IoApic(state.ioapic, interrupt)
        self.uart = Uart(*state.uart, lambda: self.ioapic.edge(UART_PIN))
        self.frames: Mapping[int, Registers] = {LAPIC_FRAME: self.lapic, IOAPIC_FRAME: self.ioapic}

    def read_port(self, port: int, size: int) -> int:
        """See `Bus`."""
        if port in UART_PORTS:
            return self.uart.read(port - UART_PORTS.start)
        if port == PM_TIMER_PORT:
            return self._clock() * _PM_TIMER_HZ // _SECOND & _PM_TIMER_MASK
        return (1 << 8 * size) - 1

    def write_port(self, port: int, _size: int, value: int) -> None:
        """See `Bus`."""
        if port in UART_PORTS:
            self.uart.write(port - UART_PORTS.start, value & 0xFF)

    def time_stamp(self) -> int:
        """See `Bus`: a nanosecond a count."""
        return self._clock()
