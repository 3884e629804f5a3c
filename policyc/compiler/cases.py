"""The cases of test blocks: every word looked up, as in the rules that they are about.

A case with a mistake comes to nothing; the mistake is a diagnostic, in `check` and `compile` too, so that a test can't
rot unseen.
"""

from __future__ import annotations

from collections.abc import Sequence

from policyc.addresses import PAGE_SIZE
from policyc.catalog import ACCESS_WORDS, Access, column_of_access
from policyc.compiler.effects import resolve_effect
from policyc.compiler.events import resolve_event
from policyc.compiler.operands import Scene
from policyc.compiler.places import PlaceResolver
from policyc.compiler.resolved import ResolvedCase, ResolvedPlace, ResolvedTest
from policyc.compiler.settings import resolve_settings
from policyc.diagnostics import Diagnostic, did_you_mean
from policyc.lang import ast
from policyc.plan.places import Absolute, Base

__all__ = ["MAX_ACCESS_BYTES", "resolve_tests"]

MAX_ACCESS_BYTES = PAGE_SIZE
"""More than one instruction accesses at once; what crosses into a second page is two events."""


def resolve_tests(
    tests: Sequence[ast.Test], places: PlaceResolver, diagnostics: list[Diagnostic]
) -> tuple[ResolvedTest, ...]:
    """Resolve the test blocks of one file; `places` and this function append what they find to `diagnostics`."""
    first: dict[str, ast.Text] = {}
    resolved = []
    for test in tests:
        earlier = first.setdefault(test.name.text, test.name)
        if earlier is not test.name:
            diagnostics.append(
                Diagnostic(
                    "P205",
                    f"two tests are called `{test.name.text}`",
                    test.name.span,
                    "give the second one another name",
                    notes=((earlier.span, "the first one"),),
                )
            )
        if not test.cases:
            diagnostics.append(
                Diagnostic(
                    "P406",
                    f"the test `{test.name.text}` has no case, so it can't fail",
                    test.span,
                    "write what is to happen, such as `write kernel .text => deny`",
                )
            )
        cases = (_Cases(places, diagnostics).case(case) for case in test.cases)
        resolved.append(ResolvedTest(test.name.text, tuple(case for case in cases if case is not None), test.span))
    return tuple(resolved)


class _Cases:
    """Resolves cases; what is wrong with them is appended to the diagnostics of their file."""

    def __init__(self, places: PlaceResolver, diagnostics: list[Diagnostic]) -> None:
        self._places = places
        self._diagnostics = diagnostics

    def case(self, case: ast.Case) -> ResolvedCase | None:
        return self._access_case(case) if isinstance(case, ast.AccessCase) else self._event_case(case)

    def _access_case(self, case: ast.AccessCase) -> ResolvedCase | None:
        effect, found = resolve_effect(case.expected)
        self._diagnostics.extend(found)
        access = self._access(case.access)
        places = self._places.resolve([case.place])
        origin = self._places.resolve([case.origin]) if case.origin is not None else ()
        size = self._size(case.place)
        given = {"access": "the case's first word", "size": "the place", _address_field(places): "the place"}
        if case.origin is not None:
            given["rip"] = "`from`"
        fields = resolve_settings(case.settings, Scene(column_of_access(access)), given, self._diagnostics)
        if effect is None or not access or not places:
            return None
        return ResolvedCase(
            effect=effect,
            effect_span=case.expected.span,
            span=case.span,
            asked_span=case.place.span,
            access=access,
            places=places,
            size=size,
            origin=origin,
            fields=fields,
        )

    def _event_case(self, case: ast.EventCase) -> ResolvedCase | None:
        effect, found = resolve_effect(case.expected)
        self._diagnostics.extend(found)
        event, found = resolve_event(case.event)
        self._diagnostics.extend(found)
        if event is None:
            return None
        scene = Scene(frozenset({event.column}), event.key)
        fields = resolve_settings(case.settings, scene, {}, self._diagnostics)
        if effect is None:
            return None
        return ResolvedCase(
            effect=effect,
            effect_span=case.expected.span,
            span=case.span,
            asked_span=case.event.span,
            event=event,
            fields=fields,
        )

    def _access(self, word: ast.Word) -> Access:
        if word.text in ACCESS_WORDS:
            return ACCESS_WORDS[word.text]
        near = did_you_mean(word.text, ACCESS_WORDS)
        help = f"did you mean `{near}`?" if near else f"one of {', '.join(f'`{known}`' for known in ACCESS_WORDS)}"
        self._diagnostics.append(Diagnostic("P209", f"there is no access `{word.text}`", word.span, help))
        return Access.NONE

    def _size(self, place: ast.Place) -> int | None:
        """Bytes of one access, where the place is written as an address: with `size`, with an offset, or alone."""
        match place:
            case ast.SymbolPlace() | ast.PhysicalPlace() | ast.VirtualPlace() if place.size is not None:
                if place.size.value > MAX_ACCESS_BYTES:
                    self._diagnostics.append(
                        Diagnostic(
                            "P302",
                            f"one access has at most {MAX_ACCESS_BYTES} bytes, not `{place.size.text}`",
                            place.size.span,
                            "leave `size` out, or give a range, to ask about every byte",
                        )
                    )
                return place.size.value
            case ast.LiteralPlace():
                return 1
            case ast.SymbolPlace() if place.offset is not None:
                return 1
            case _:
                return None


def _address_field(places: Sequence[ResolvedPlace]) -> str:
    """The field that holds the address of the place itself."""
    physical = any(isinstance(p.place, Absolute) and p.place.extent.base is Base.PHYSICAL for p in places)
    return "gpa" if physical else "gva"
