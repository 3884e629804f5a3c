"""A profile says where a guest's kernel has its sections and symbols, and which kernel it is.

Addresses are as its source gives them: those of the link, or those of one boot. What holds in every boot is the
distance from an image's base, so consumers keep offsets from `Image.base` and add the running kernel's own base later.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from policyc.addresses import Gva, GvaRange
from policyc.guest.errors import ProfileError
from policyc.guest.symbols import Symbol, SymbolKind, SymbolTable

__all__ = [
    "KERNEL",
    "Identity",
    "Image",
    "Missing",
    "Profile",
    "ProfileSource",
    "Symbol",
    "SymbolKind",
]

KERNEL = "kernel"
"""The name of the Linux kernel's own image."""

# Data that every x86-64 Linux kernel has under these names: a table that lists none of them lists no data at all.
DATA_WITNESSES = ("init_task", "linux_banner", "sys_call_table", "__end_rodata")


@dataclass(frozen=True, slots=True)
class ProfileSource:
    """Where a profile came from, in words that hold on every machine.

    Attributes:
        kind: the reader that understood it, such as "symbol-table".
        digest: "sha256:" and the digest of the source's bytes.
    """

    kind: str
    digest: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one kernel build from another.

    Attributes:
        build_id: the GNU build id in lower-case hex, or None where the source has none.
        banner: the line that starts with "Linux version", without its line end, or None.
    """

    build_id: str | None = None
    banner: str | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """Why something isn't in a profile: one sentence of fact, and one of help where there is any."""

    message: str
    help: str | None = None


@dataclass(frozen=True)
class Image:
    """The kernel or a module: where it starts, its sections, its symbols.

    Attributes:
        name: "kernel", or the module's name.
        base: the address that the image's offsets count from (on Linux `_text`, else `_stext`); None for a module,
            which lies elsewhere after each load.
        sections: by name, with the dot, such as ".text".
        absent_sections: the sections that this kind of image should have but hasn't here, with the reason.
        symbols: its names.
        offset_names: names whose value isn't an address but an offset or a constant, such as per-CPU variables.
    """

    name: str
    base: Gva | None
    sections: Mapping[str, GvaRange]
    absent_sections: Mapping[str, str]
    symbols: SymbolTable
    offset_names: frozenset[str] = field(default=frozenset(), repr=False)

    def symbol(self, name: str) -> tuple[Symbol, ...]:
        """Every symbol of exactly this name, in order of address; several where static functions share it."""
        return self.symbols.named(name)

    def glob(self, pattern: str) -> tuple[Symbol, ...]:
        """Every symbol whose whole name fits `pattern`, in which `*` stands for any text, in order of address."""
        return self.symbols.glob(pattern)

    def section(self, name: str) -> GvaRange | None:
        """The section called `name`, or None; `missing_section` says why."""
        return self.sections.get(name)

    def symbol_at(self, gva: Gva) -> tuple[Symbol, int] | None:
        """The symbol whose bytes hold `gva`, and the offset of `gva` in it."""
        return self.symbols.covering(gva)

    @cached_property
    def has_data_symbols(self) -> bool:
        """Whether the table lists data at all; for a module, whether any of its symbols is data."""
        if self.base is not None:
            return any(name in self.symbols for name in DATA_WITNESSES)
        return any(letter in "dDrRbB" for letter in set(self.symbols.letters))

    def missing_symbol(self, name: str) -> Missing:
        """Why `symbol(name)` or `glob(name)` found nothing."""
        written = f"`{self.name}:{name}`"
        if "*" in name:
            return Missing(f"no symbol of this profile fits {written}")
        if name in self.offset_names:
            return Missing(
                f"{written} is no address but an offset or a constant: per-CPU variables lie elsewhere on each CPU"
            )
        suggestion = self.symbols.suggest(name)
        meant = None if suggestion is None else f"did you mean `{self.name}:{suggestion}`?"
        if self.has_data_symbols:
            return Missing(f"there is no symbol {written}", meant)
        return Missing(
            f"there is no symbol {written}, and this profile's table holds no data symbols: its kernel was built "
            "without CONFIG_KALLSYMS_ALL",
            meant or "if it names data, make the profile from the System.map of the same kernel build",
        )

    def missing_section(self, name: str) -> Missing:
        """Why `section(name)` is None."""
        known = ", ".join(f"`{self.name} {section}`" for section in self.sections) or "none"
        reason = self.absent_sections.get(name)
        if reason is None:
            close = difflib.get_close_matches(name.casefold(), [*self.sections, *self.absent_sections], n=1)
            help = f"did you mean `{self.name} {close[0]}`?" if close else f"known sections: {known}"
            return Missing(f"there is no section `{self.name} {name}`", help)
        if self.has_data_symbols:
            return Missing(f"this profile can't say where `{self.name} {name}` lies: {reason}")
        return Missing(
            f"this profile can't say where `{self.name} {name}` lies: {reason}, and it holds no data symbols: its "
            "kernel was built without CONFIG_KALLSYMS_ALL",
            "make the profile from the System.map of the same kernel build",
        )


@dataclass(frozen=True)
class Profile:
    """Everything known of one kernel build.

    Attributes:
        os: "linux".
        arch: "x86_64".
        source: what it was made from.
        identity: which build it is.
        images: by name, the kernel's first.
        digest: "sha256:" and the digest over the profile's content; equal for equal content.
    """

    os: str
    arch: str
    source: ProfileSource
    identity: Identity
    images: Mapping[str, Image]
    digest: str

    @property
    def kernel(self) -> Image:
        """The kernel's own image.

        Raises:
            ProfileError: the profile has none, which no reader lets happen.
        """
        try:
            return self.images[KERNEL]
        except KeyError:
            raise ProfileError("this profile has no kernel image") from None

    @property
    def anchor(self) -> Gva:
        """The kernel's base: offsets that hold in every boot count from here.

        Raises:
            ProfileError: the profile has none, which no reader lets happen.
        """
        base = self.kernel.base
        if base is None:
            raise ProfileError("this profile doesn't say where the kernel starts")
        return base

    def image(self, name: str) -> Image | None:
        """The image called `name`, or None; `missing_image` says why."""
        return self.images.get(name)

    def missing_image(self, name: str) -> Missing:
        """Why `image(name)` is None."""
        close = difflib.get_close_matches(name, self.images, n=1)
        if close:
            return Missing(f"there is no image `{name}` in this profile", f"did you mean `{close[0]}`?")
        modules = [known for known in self.images if known != KERNEL]
        if modules:
            return Missing(f"there is no image `{name}` in this profile", f"its modules: {_listing(modules)}")
        return Missing(
            f"there is no image `{name}`: this profile holds the kernel alone",
            "a profile made from the guest's /proc/kallsyms holds the modules that were loaded",
        )

    def symbol_at(self, gva: Gva) -> tuple[Image, Symbol, int] | None:
        """The image and symbol whose bytes hold `gva`, given as the profile's addresses are, and the offset in it."""
        for image in self.images.values():
            found = image.symbol_at(gva)
            if found is not None:
                return image, *found
        return None


def _listing(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted(names)
    rest = len(ordered) - most
    return ", ".join(f"`{name}`" for name in ordered[:most]) + (f" and {rest} more" if rest > 0 else "")
