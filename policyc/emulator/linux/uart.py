"""The first serial port, a 16550A whose line takes no time: the guest's console.

Registers and their bits are those of the PC16550D data sheet. A character that is written is gone at once, so the
transmitter is always empty, and says so by an interrupt when it is asked to.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OUTPUT_MAX", "Uart"]

OUTPUT_MAX: Final = 1 << 16
"""Bytes of output that are kept; the oldest go first."""

INPUT_MAX: Final = 1 << 12

_DATA, _ENABLE, _IDENTIFICATION, _LINE_CONTROL, _MODEM_CONTROL, _LINE_STATUS, _MODEM_STATUS, _SCRATCH = range(8)
_DIVISOR_LATCH: Final = 0x80
_RECEIVED: Final = 1
_EMPTY: Final = 2
_NOTHING_PENDING: Final = 0xC1
_RECEIVED_PENDING: Final = 0xC4
_EMPTY_PENDING: Final = 0xC2
_TRANSMITTER_EMPTY: Final = 0x60
_CONNECTED: Final = 0xB0


class Uart:
    """The port.

    Args:
        enable, line, modem: its registers as they were.
        edge: raises its interrupt line.
    """

    def __init__(self, enable: int, line: int, modem: int, edge: Callable[[], None]) -> None:
        self._registers = [0, enable, 0, line, modem, 0, 0, 0]
        self._divisor = [1, 0]
        self._edge = edge
        self._empty_pending = False
        self._raised = False
        self._input: deque[int] = deque(maxlen=INPUT_MAX)
        self._output: deque[int] = deque(maxlen=OUTPUT_MAX)

    @property
    def output(self) -> bytes:
        """What the guest has written, as far as it is kept."""
        return bytes(self._output)

    def type(self, data: bytes) -> None:
        """Characters arrive at the guest."""
        self._input.extend(data)
        self._update()

    def read(self, register: int) -> int:
        """IN from the port `register` bytes above its first."""
        value = self._value(register)
        if register == _DATA and self._input and not self._latched:
            self._input.popleft()
        elif register == _IDENTIFICATION and value == _EMPTY_PENDING:
            self._empty_pending = False
        self._update()
        return value

    def write(self, register: int, value: int) -> None:
        """OUT to the port."""
        if register in (_DATA, _ENABLE) and self._latched:
            self._divisor[register] = value
            return
        if register == _DATA:
            self._output.append(value)
            self._empty_pending = False
            self._update()
        if register == _DATA or (register == _ENABLE and value & _EMPTY and not self._registers[_ENABLE] & _EMPTY):
            self._empty_pending = True
        self._registers[register] = value
        self._update()

    @property
    def _latched(self) -> bool:
        return bool(self._registers[_LINE_CONTROL] & _DIVISOR_LATCH)

    @property
    def _pending(self) -> int:
        enable = self._registers[_ENABLE]
        if self._input and enable & _RECEIVED:
            return _RECEIVED_PENDING
        return _EMPTY_PENDING if self._empty_pending and enable & _EMPTY else _NOTHING_PENDING

    def _value(self, register: int) -> int:
        if register in (_DATA, _ENABLE) and self._latched:
            return self._divisor[register]
        if register == _DATA:
            return self._input[0] if self._input else 0
        if register == _IDENTIFICATION:
            return self._pending
        if register == _LINE_STATUS:
            return _TRANSMITTER_EMPTY | (_RECEIVED if self._input else 0)
        return _CONNECTED if register == _MODEM_STATUS else self._registers[register]

    def _update(self) -> None:
        raised = self._pending != _NOTHING_PENDING
        if raised and not self._raised:
            self._edge()
        self._raised = raised
