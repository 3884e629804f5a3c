"""Addresses as people read them: with the symbol that they lie in, where a profile knows one."""

from __future__ import annotations

from policyc.addresses import Gva
from policyc.guest.profile import Profile
from policyc.plan.places import Base, Extent

__all__ = ["address_text", "extent_text", "symbol_text"]


def address_text(base: Base, address: int, profile: Profile | None) -> str:
    """The address at slide 0, such as `kernel:schedule + 0x5 (0xffffffff81001005)` or `idt + 0x10`."""
    if base in (Base.IDT, Base.GDT):
        return f"{base.word} + {address:#x}"
    number = f"{address:#x}"
    if base is Base.PHYSICAL:
        return f"physical {number}"
    symbol = symbol_text(address, profile)
    return number if symbol is None else f"{symbol} ({number})"


def extent_text(extent: Extent) -> str:
    """The bytes as a half-open range."""
    word = "" if extent.base is Base.VIRTUAL else f"{extent.base.word} "
    return f"{word}{extent.start:#x}..{extent.end:#x}"


def symbol_text(gva: int, profile: Profile | None) -> str | None:
    """The symbol whose bytes hold `gva`, with the offset into it."""
    found = None if profile is None else profile.symbol_at(Gva(gva))
    if found is None:
        return None
    image, symbol, offset = found
    return f"{image.name}:{symbol.name}" + (f" + {offset:#x}" if offset else "")
