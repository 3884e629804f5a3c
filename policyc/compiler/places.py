"""Places as written to places as bytes: `let` names expanded, addresses checked, symbols looked up in the profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policyc.compiler.resolved import ResolvedPlace
from policyc.diagnostics import Diagnostic, Span, did_you_mean
from policyc.lang import ast
from policyc.plan.places import (
    Absolute,
    Base,
    DescriptorTable,
    Extent,
    Lookup,
    ModuleSection,
    Place,
    Resolution,
    Section,
    SymbolPlace,
    resolve,
)

__all__ = ["TABLE_WORDS", "PlaceResolver"]

TABLE_WORDS: Mapping[str, Base] = {"idt": Base.IDT, "gdt": Base.GDT}
"""Places that are a word of their own."""

MAX_SUGGESTIONS = 100
"""Unknown names of one file for which the nearest known one is looked for."""

PHYSICAL_ADDRESS_END = 1 << 52
"""One past the largest physical address that x86-64 can have (Intel SDM vol. 3A 4.1.4)."""


class PlaceResolver:
    """Resolves the places of one file. Diagnostics are appended to `diagnostics`; a faulty place comes to nothing."""

    def __init__(self, lets: Sequence[ast.Let], lookup: Lookup | None, diagnostics: list[Diagnostic]) -> None:
        self._diagnostics = diagnostics
        self._lookup = lookup
        self._lets: dict[str, ast.Let] = {}
        self._used: set[str] = set()
        self._open: list[str] = []
        self._known: dict[Place, Resolution] = {}
        self._reported: set[tuple[str, Span]] = set()
        for let in lets:
            self._define(let)

    def resolve(self, places: Sequence[ast.Place]) -> tuple[ResolvedPlace, ...]:
        """The places that are written, names expanded, each once, in the order written."""
        found: dict[ResolvedPlace, None] = {}
        for written in places:
            for place, span in self._expand(written):
                resolved = self._bytes_of(place, span)
                if resolved is not None:
                    found.setdefault(resolved)
        return tuple(found)

    def unused_names(self) -> list[Diagnostic]:
        """A warning for each name that nothing uses."""
        return [
            Diagnostic("P206", f"nothing uses the name `{name}`", let.name.span, "remove it, or use it in a rule")
            for name, let in self._lets.items()
            if name not in self._used
        ]

    def _define(self, let: ast.Let) -> None:
        name = let.name.text
        if name in TABLE_WORDS:
            self._report("P205", f"`{name}` is a place of its own and can't be given another meaning", let.name.span)
        elif (first := self._lets.get(name)) is not None:
            self._diagnostics.append(
                Diagnostic(
                    "P205",
                    f"the name `{name}` is given twice",
                    let.name.span,
                    "give the second one another name",
                    notes=((first.name.span, "it was given here first"),),
                )
            )
        else:
            self._lets[name] = let

    def _expand(self, written: ast.Place) -> list[tuple[Place, Span]]:
        match written:
            case ast.NamePlace(name):
                return self._expand_name(name)
            case ast.SectionPlace(image, section):
                return [(Section(image.text, section.text), written.span)]
            case ast.ModulePlace(module, section):
                return [(ModuleSection(module.text, section.text), written.span)]
            case ast.SymbolPlace(image, symbol, offset, size):
                if size is not None and size.value == 0:
                    self._report("P207", f"`{written.span.text}` covers no bytes", size.span, "give a size above zero")
                    return []
                shift = offset.value if offset is not None else 0
                return [(SymbolPlace(image.text, symbol.text, shift, size.value if size else None), written.span)]
            case ast.PhysicalPlace():
                return self._absolute(Base.PHYSICAL, written, PHYSICAL_ADDRESS_END)
            case ast.VirtualPlace():
                return self._absolute(Base.VIRTUAL, written, 1 << 64)
            case ast.LiteralPlace(address):
                if address.value >= 1 << 64:
                    self._report("P207", f"`{address.text}` is no 64-bit address", address.span)
                    return []
                return [(Absolute(Extent(Base.VIRTUAL, address.value, address.value + 1)), written.span)]

    def _expand_name(self, name: ast.Word) -> list[tuple[Place, Span]]:
        if name.text in TABLE_WORDS:
            return [(DescriptorTable(TABLE_WORDS[name.text]), name.span)]
        let = self._lets.get(name.text)
        if let is None:
            # Looking for what was meant costs a look at every name, so it ends where nobody reads on.
            many = len(self._reported) > MAX_SUGGESTIONS
            near = None if many else did_you_mean(name.text, [*self._lets, *TABLE_WORDS])
            help = f"did you mean `{near}`?" if near else "a place is a section, a symbol, an address or a `let` name"
            self._report("P204", f"there is no place called `{name.text}`", name.span, help)
            return []
        self._used.add(name.text)
        if name.text in self._open:
            self._report("P208", f"`{name.text}` is defined by itself", name.span, "a name can't contain itself")
            return []
        self._open.append(name.text)
        try:
            return [(place, name.span) for written in let.places for place, _ in self._expand(written)]
        finally:
            self._open.pop()

    def _absolute(
        self, base: Base, written: ast.PhysicalPlace | ast.VirtualPlace, limit: int
    ) -> list[tuple[Place, Span]]:
        start = written.start.value
        end = written.end.value if written.end is not None else start + (written.size.value if written.size else 0)
        if start >= end:
            self._report(
                "P207", f"`{written.span.text}` covers no bytes", written.span, "ranges are half-open: start..end"
            )
        elif end > limit:
            self._report("P207", f"`{written.span.text}` ends above the largest {base.word} address", written.span)
        else:
            return [(Absolute(Extent(base, start, end)), written.span)]
        return []

    def _bytes_of(self, place: Place, span: Span) -> ResolvedPlace | None:
        if self._lookup is None:
            self._check_section(place, span)
            return ResolvedPlace(place, span)
        resolution = self._known.get(place)
        if resolution is None:
            (resolution,) = resolve((place,), self._lookup)
            self._known[place] = resolution
        if resolution.missing is not None:
            code = "P202" if isinstance(place, Section) else "P203"
            self._report(code, resolution.missing.fact, span, resolution.missing.help)
            return None
        return ResolvedPlace(place, span, resolution)

    def _check_section(self, place: Place, span: Span) -> None:
        """Which sections a Linux kernel has is known without any profile, so a misspelt one never waits for one."""
        from policyc.guest.linux_image import SECTIONS
        from policyc.guest.profile import KERNEL

        known = [bounds.name for bounds in SECTIONS]
        if isinstance(place, Section) and place.image == KERNEL and place.name not in known:
            near = did_you_mean(place.name, known)
            listed = ", ".join(f"`{KERNEL} {name}`" for name in known)
            help = f"did you mean `{KERNEL} {near}`?" if near else f"known sections: {listed}"
            self._report("P202", f"there is no section `{KERNEL} {place.name}`", span, help)

    def _report(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        """Report a mistake once, though the name that has it may be used often."""
        if (code, span) not in self._reported:
            self._reported.add((code, span))
            self._diagnostics.append(Diagnostic(code, message, span, help))
