"""A profile as the plan's lookup: its addresses become extents counted from the kernel image's first byte."""

from __future__ import annotations

from collections.abc import Sequence

from policyc.guest.profile import KERNEL, Image, Profile
from policyc.guest.profile import Missing as ProfileMissing
from policyc.plan.places import Base, Extent, Found, Missing

__all__ = ["ProfileLookup"]

MAX_SUGGESTIONS = 100
"""Unknown symbols for which the nearest known one is looked for."""


class ProfileLookup:
    """Answers `policyc.plan.places.resolve` from a profile."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._anchor = profile.anchor
        self._unknown = 0

    def section(self, image: str, name: str) -> Found | Missing:
        """A section of the kernel image."""
        found = self._fixed_image(image)
        if isinstance(found, Missing):
            return found
        span = found.section(name)
        if span is None:
            return _missing(found.missing_section(name))
        return Found(Extent(Base.IMAGE, span.start - self._anchor, span.end - self._anchor))

    def symbols(self, image: str, pattern: str) -> Sequence[Found] | Missing:
        """The kernel symbols of this name, or that the glob matches."""
        found = self._fixed_image(image)
        if isinstance(found, Missing):
            return found
        hits = found.glob(pattern) if "*" in pattern else found.symbol(pattern)
        if not hits:
            return self._no_symbol(found, pattern)
        outside = [hit for hit in hits if hit.gva < self._anchor]
        if outside:
            return Missing(f"`{image}:{outside[0].name}` lies outside the kernel image, where nothing slides with it")
        empty = [hit for hit in hits if not hit.size]
        if empty:
            return Missing(f"the size of `{image}:{empty[0].name}` is unknown", "give it with `size`")
        return [
            Found(
                Extent(Base.IMAGE, hit.gva - self._anchor, hit.gva - self._anchor + hit.size),
                inferred=hit.size_inferred,
            )
            for hit in hits
        ]

    def module_section(self, module: str, name: str) -> Found | Missing:
        """Modules lie elsewhere after each load, so no profile can place one."""
        return _moves(module)

    def _no_symbol(self, image: Image, name: str) -> Missing:
        """Looking for what was meant costs a look at every symbol, so it ends where nobody reads on."""
        self._unknown += 1
        if self._unknown > MAX_SUGGESTIONS:
            return Missing(f"there is no symbol `{image.name}:{name}`")
        return _missing(image.missing_symbol(name))

    def _fixed_image(self, name: str) -> Image | Missing:
        image = self._profile.image(name)
        if image is None:
            return _missing(self._profile.missing_image(name))
        return image if name == KERNEL else _moves(name)


def _moves(module: str) -> Missing:
    return Missing(
        f"`{module}` is a module: it lies elsewhere after each load, and a plan made ahead of time can't say where",
        "guard the kernel image's own sections and symbols",
    )


def _missing(reason: ProfileMissing) -> Missing:
    return Missing(reason.message, reason.help)
