"""What a plan carries of its profile, so that the runtime needs no other file to find and recognise the kernel."""

from __future__ import annotations

from policyc.guest.landmarks import landmarks_of
from policyc.guest.profile import Image, Profile
from policyc.plan.model import GuestFacts
from policyc.plan.places import Base, Extent

__all__ = ["COPY_ROUTINES", "guest_facts"]

COPY_ROUTINES: tuple[str, ...] = (
    "__memcpy",
    "__memmove",
    "__memset",
    "memcpy",
    "memcpy_erms",
    "memcpy_orig",
    "memmove",
    "memmove_erms",
    "memset",
    "memset_erms",
    "memset_orig",
)
"""Leaf routines of arch/x86/lib that store for their caller and push nothing first.

While RIP is in one, the return address on top of the stack leads to the function that called it, or that called the one
which got there by a tail jump, as `text_poke_memcpy` gets to `memcpy`.
"""


CODE_SECTIONS = (".text", ".init")
"""Sections of the kernel image that hold code."""


def guest_facts(profile: Profile) -> GuestFacts:
    """The facts of this profile's kernel."""
    kernel = profile.kernel
    return GuestFacts(
        os=profile.os,
        arch=profile.arch,
        image_base=profile.anchor,
        landmarks=landmarks_of(profile),
        copy_routines=_copy_routines(kernel, profile.anchor),
        profile_digest=profile.digest,
        build_id=profile.identity.build_id,
        banner=profile.identity.banner,
        code=_code(kernel, profile.anchor),
    )


def _code(kernel: Image, anchor: int) -> tuple[Extent, ...] | None:
    """The kernel's text and what runs at boot, which shares its section with data."""
    if kernel.section(CODE_SECTIONS[0]) is None:
        return None
    spans = [span for name in CODE_SECTIONS if (span := kernel.section(name)) is not None and span.start >= anchor]
    return tuple(sorted(Extent(Base.IMAGE, span.start - anchor, span.end - anchor) for span in spans))


def _copy_routines(kernel: Image, anchor: int) -> tuple[Extent, ...]:
    found = {
        Extent(Base.IMAGE, symbol.gva - anchor, symbol.gva - anchor + symbol.size)
        for name in COPY_ROUTINES
        for symbol in kernel.symbol(name)
        if symbol.size and symbol.gva >= anchor
    }
    return tuple(sorted(found))
