"""The few symbols of a profile by which its running kernel is found and recognised.

A plan carries them instead of the whole profile: some fifty addresses, from which `find_kernel` works as well as from
two hundred thousand.
"""

from __future__ import annotations

from collections.abc import Mapping

from policyc.addresses import Gva
from policyc.guest.linux_anchors import anchors_of
from policyc.guest.linux_image import BASE_SYMBOLS, SECTIONS, kernel_image
from policyc.guest.linux_kernel import KERNEL_ROOTS
from policyc.guest.profile import KERNEL, Identity, Profile, ProfileSource

__all__ = ["landmarks_of", "profile_of_landmarks"]

_DATA_LANDMARKS = (*KERNEL_ROOTS, "linux_banner", "system_state")


def landmarks_of(profile: Profile) -> dict[str, Gva]:
    """The landmarks that the profile has, by name; names that stand for several places are left out."""
    bounds = [name for section in SECTIONS for name in (*section.starts, section.end)]
    anchors = [name for anchor in anchors_of(profile.kernel) for name in anchor.names]
    names = {*BASE_SYMBOLS, *bounds, "_end", *anchors, *_DATA_LANDMARKS}
    found = {name: profile.kernel.symbol(name) for name in sorted(names)}
    return {name: symbols[0].gva for name, symbols in found.items() if len(symbols) == 1}


def profile_of_landmarks(
    landmarks: Mapping[str, int], identity: Identity, *, os: str, arch: str, digest: str
) -> Profile:
    """A profile that holds the landmarks alone.

    Raises:
        ProfileError: they aren't those of an x86-64 Linux kernel.
    """
    rows = [(address, name, "D" if name in _DATA_LANDMARKS else "T") for name, address in landmarks.items()]
    image = kernel_image(rows, sparse=True)
    return Profile(os, arch, ProfileSource("landmarks", digest), identity, {KERNEL: image}, digest)
