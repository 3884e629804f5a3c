"""How far a running kernel slid from its profile, by what its entry points say.

Each anchor's address minus the profile's is a slide, and all that are in place must give the same one: a kernel of
another build, a hooked gate and a forged register disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from policyc.addresses import ADDRESS_SPACE_END, Gva
from policyc.guest.linux_anchors import GATE_SIZE, Anchor, gate_target
from policyc.guest.linux_image import KERNEL_HALF
from policyc.guest.profile import Profile

__all__ = [
    "FINGERPRINT_ANCHORS",
    "SLIDE_ALIGNMENT",
    "Disagreement",
    "KernelNotReady",
    "Located",
    "WrongKernel",
    "locate",
]

FINGERPRINT_ANCHORS = 32
"""Anchors that must agree before a kernel counts as the profile's; where the profile has fewer, all of them."""

SLIDE_ALIGNMENT = 2 << 20
"""A kernel that isn't loaded at a multiple of 2 MiB doesn't boot (arch/x86/kernel/head64.c, __startup_64)."""

CPU_ENTRY_AREA = range(0xFFFF_FE00_0000_0000, 0xFFFF_FE80_0000_0000)
"""What every page table of a guest maps (Documentation/arch/x86/x86_64/mm.rst)."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An anchor that doesn't lead where the profile says: where it is, the names that were expected, what is there."""

    place: str
    expected: tuple[str, ...]
    found: str

    def __str__(self) -> str:
        return f"{self.place} leads to {self.found}, not to {' or '.join(f'`{name}`' for name in self.expected)}"


@dataclass(frozen=True, slots=True)
class KernelNotReady:
    """No kernel can be found yet: firmware runs, or a kernel that is just starting. Look again later."""

    reason: str


@dataclass(frozen=True, slots=True)
class WrongKernel:
    """What runs isn't the profile's kernel, or isn't whole: the reason, and each anchor that contradicts.

    Attributes:
        whole: false where most anchors agree, so that the kernel is the profile's and somebody has changed the others.
    """

    reason: str
    disagreements: tuple[Disagreement, ...] = ()
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Located:
    """A slide that the anchors agree on."""

    slide: int
    agreed: tuple[str, ...]
    silent: tuple[str, ...]


def locate(
    profile: Profile, anchors: Sequence[Anchor], lstar: int, idt: bytes
) -> Located | KernelNotReady | WrongKernel:
    """The slide that LSTAR and every installed gate agree on.

    Args:
        profile: the kernel looked for.
        anchors: its anchors, all of them.
        lstar: a vCPU's LSTAR, not 0.
        idt: its IDT from the start, any number of bytes.
    """
    if lstar in CPU_ENTRY_AREA:
        return WrongKernel(
            "LSTAR leads to a trampoline in the CPU entry area, as in Linux 4.15 to 4.19 with page-table isolation: "
            "such a kernel can't be located"
        )
    targets = {anchor.place: _target(anchor, lstar, idt) for anchor in anchors}
    slides = [target - gva for anchor in anchors if (target := targets[anchor.place]) for gva in sorted(anchor.gvas)]
    (slide, _), *_ = Counter(slides).most_common(1)
    agreed = tuple(anchor.place for anchor in anchors if _agrees(anchor, targets[anchor.place], slide))
    silent = tuple(anchor.place for anchor in anchors if targets[anchor.place] is None)
    disagreements = tuple(
        Disagreement(anchor.place, anchor.names, _describe(profile, target, slide))
        for anchor in anchors
        if (target := targets[anchor.place]) is not None and anchor.place not in agreed
    )
    if disagreements:
        return _contradicted(len(anchors), agreed, disagreements)
    unfit = _unfit(profile, slide)
    if unfit is not None:
        return WrongKernel(unfit)
    needed = min(FINGERPRINT_ANCHORS, len(anchors))
    if len(agreed) < needed:
        return KernelNotReady(f"{len(agreed)} of {len(anchors)} anchors are in place, {needed} are needed")
    return Located(slide, agreed, silent)


def _contradicted(count: int, agreed: Sequence[str], disagreements: tuple[Disagreement, ...]) -> WrongKernel:
    """Another kernel agrees by accident at most; where the greater part agrees, the rest was changed."""
    number = len(disagreements)
    if len(agreed) <= number:
        return WrongKernel(
            f"{number} of {count} anchors contradict the profile: it is of another kernel", disagreements
        )
    verb = "leads" if number == 1 else "lead"
    reason = f"{number} of {count} anchors {verb} elsewhere, and {len(agreed)} agree: its entry points were changed"
    return WrongKernel(reason, disagreements, whole=False)


def _target(anchor: Anchor, lstar: int, idt: bytes) -> Gva | None:
    if anchor.vector is None:
        return Gva(lstar)
    return gate_target(idt[anchor.vector * GATE_SIZE : (anchor.vector + 1) * GATE_SIZE])


def _agrees(anchor: Anchor, target: Gva | None, slide: int) -> bool:
    return target is not None and target - slide in anchor.gvas


def _describe(profile: Profile, target: Gva, slide: int) -> str:
    found = profile.symbol_at(Gva(target - slide)) if 0 <= target - slide < ADDRESS_SPACE_END else None
    if found is None:
        return f"{target:#x}, where the profile has nothing"
    image, symbol, offset = found
    return f"`{image.name}:{symbol.name}`" + (f" + {offset:#x}" if offset else "")


def _unfit(profile: Profile, slide: int) -> str | None:
    """Why no kernel can have slid this far."""
    kernel = profile.kernel
    ends = (profile.anchor, *(part.end for part in kernel.sections.values()))
    if slide % SLIDE_ALIGNMENT:
        return (
            f"the kernel would be off its profile by {slide:#x}, which isn't a multiple of {SLIDE_ALIGNMENT >> 20} MiB"
        )
    if profile.anchor + slide < KERNEL_HALF or max(ends) + slide > ADDRESS_SPACE_END:
        return f"the kernel would be off its profile by {slide:#x}, which leaves the kernel's half of the address space"
    return None
