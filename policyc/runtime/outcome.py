"""What came of carrying out an effect, as mechanisms hand it to the record."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Delivered", "Done"]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the kernel's TRAP event says was given to the guest: an exception, or an interrupt with error code 0."""

    vector: int
    error_code: int


@dataclass(frozen=True, slots=True)
class Done:
    """What was done on the wire.

    Attributes:
        text: in words, for the record.
        delivered: what the guest was given last, where the kernel said so.
        goes_on: the vCPU is past the instruction, whatever else.
    """

    text: str
    delivered: Delivered | None = None
    goes_on: bool = False
