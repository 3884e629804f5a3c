"""The interrupt command register, in its x2APIC form: how one processor interrupts, resets and starts another.

Of the local APIC that is all there is. Source: Intel SDM, volume 3, 11.6.1 and 11.12.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MSR_X2APIC_ICR", "Command", "Delivers", "command_of", "destinations"]

MSR_X2APIC_ICR: Final = 0x830

_BROADCAST: Final = 0xFFFF_FFFF
_SELF: Final = 1
_ALL: Final = 2
_ALL_BUT_SELF: Final = 3
_FIRST_VECTOR: Final = 16


class Delivers(Enum):
    """The delivery modes that are carried out; others are ignored."""

    FIXED = 0
    INIT = 5
    STARTUP = 6


@dataclass(frozen=True, slots=True)
class Command:
    """What was written to the register.

    Attributes:
        shorthand: 0 where `destination` counts; else oneself, all, all but oneself.
        destination: an APIC id, which is the vCPU's index; all ones is everybody.
    """

    delivers: Delivers
    vector: int
    shorthand: int
    destination: int


def command_of(value: int) -> Command | None:
    """What a value of the register asks for; None for a delivery mode or a vector that nothing comes of."""
    vector, mode = value & 0xFF, value >> 8 & 7
    if mode not in {known.value for known in Delivers}:
        return None
    delivers = Delivers(mode)
    if delivers is Delivers.FIXED and vector < _FIRST_VECTOR:
        return None
    return Command(delivers, vector, value >> 18 & 3, value >> 32)


def destinations(command: Command, sender: int, processors: Iterable[int]) -> list[int]:
    """The processors that a command is for."""
    everybody = list(processors)
    if command.shorthand == _SELF:
        return [sender]
    if command.shorthand == _ALL:
        return everybody
    if command.shorthand == _ALL_BUT_SELF:
        return [index for index in everybody if index != sender]
    if command.destination == _BROADCAST:
        return everybody
    return [index for index in everybody if index == command.destination]
