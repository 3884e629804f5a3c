"""What a processor reaches that isn't RAM: ports, frames of device registers, and its time-stamp counter.

A machine without devices has `EmptyBus`: reads give ones and writes are lost, as on a bus that nobody answers on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EMPTY_BUS", "Bus", "EmptyBus", "Registers"]


class Registers(Protocol):
    """A frame of device registers; `offset` is within the frame, `size` 1 to 8 bytes."""

    def read(self, offset: int, size: int) -> int:
        """What the device answers."""

    def write(self, offset: int, size: int, value: int) -> None:
        """What the guest stores."""


class Bus(Protocol):
    """The devices of a machine; everything is called while the guest runs."""

    @property
    def frames(self) -> Mapping[int, Registers]:
        """Devices by the guest physical address of their frame, outside RAM."""

    def read_port(self, port: int, size: int) -> int:
        """IN of `size` bytes."""

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT of `size` bytes."""

    def time_stamp(self) -> int | None:
        """RDTSC; None leaves it to the engine, which counts the host's time."""


class EmptyBus:
    """No devices."""

    frames: Final[Mapping[int, Registers]] = {}

    def read_port(self, _port: int, size: int) -> int:
        """See `Bus`."""
        return (1 << 8 * size) - 1

    def write_port(self, _port: int, _size: int, _value: int) -> None:
        """See `Bus`."""

    def time_stamp(self) -> int | None:
        """See `Bus`."""
        return None


EMPTY_BUS: Final = EmptyBus()
