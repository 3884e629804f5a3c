"""Places that aren't what they seem: memory that the kernel gives away, sizes that are guesses, code to be restored."""

from __future__ import annotations

from collections.abc import Iterator

from policyc.compiler.compiled import Compiled
from policyc.compiler.resolved import ResolvedPlace
from policyc.diagnostics import Diagnostic, Source
from policyc.plan.places import Base, Extent

__all__ = ["memory_stays", "restored_is_no_code", "sizes_are_known"]


def memory_stays(compiled: Compiled) -> Iterator[Diagnostic]:
    """What lies in `.init` belongs to others once the kernel runs: guarding or trusting it means guarding them."""
    freed = compiled.image.freed
    if freed is None:
        return
    for place in _places(compiled):
        if any(_meets(extent, freed) for extent in place.extents):
            fact = f"`{place.place}` lies in memory that the kernel gives to others once it runs"
            yield Diagnostic("P416", fact, place.span, "name what is still there after boot")


def sizes_are_known(compiled: Compiled) -> Iterator[Diagnostic]:
    """A distance to the next symbol may hold padding, and neighbours that the table doesn't list.

    Said once a file, and only where the profile knows the sizes of others: a System.map knows none.
    """
    if not compiled.image.has_sizes:
        return
    guessed: dict[Source, dict[str, ResolvedPlace]] = {}
    for place in _places(compiled):
        if place.resolution is not None and place.resolution.inferred:
            guessed.setdefault(place.span.source, {}).setdefault(str(place.place), place)
    for places in guessed.values():
        first, *rest = places.values()
        others = f", and {len(rest)} more like it" if rest else ""
        size = sum(extent.size for extent in first.extents)
        fact = f"the {size:#x} bytes of `{first.place}` reach to the next symbol: its own size isn't known{others}"
        yield Diagnostic("P417", fact, first.span, "if you know the size, write it with `size`")


def restored_is_no_code(compiled: Compiled) -> Iterator[Diagnostic]:
    """A vCPU may be executing the very bytes that would be written."""
    code = compiled.plan.guest.code or ()
    for watch in compiled.lowered.watch_origins:
        for place in watch.places if watch.restore_span is not None else ():
            if any(_meets(extent, one) for extent in place.extents for one in code):
                fact = f"`{place.place}` holds code, and code that is being executed can't be restored from outside"
                yield Diagnostic("P310", fact, watch.restore_span, "leave `restore` out, or `deny write` to it")
                break


def _places(compiled: Compiled) -> Iterator[ResolvedPlace]:
    for rule in compiled.origins:
        yield from rule.places
        yield from rule.origin
        for exemption in rule.exemptions:
            yield from exemption.code
        for when in rule.conditions:
            yield from when.places
    for watch in compiled.lowered.watch_origins:
        yield from watch.places


def _meets(one: Extent, other: Extent) -> bool:
    return one.base is Base.IMAGE and one.start < other.end and other.start < one.end
