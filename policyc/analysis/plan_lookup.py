"""A plan as a lookup of places: it knows those that its own rules name, for questions without a profile at hand."""

from __future__ import annotations

from collections.abc import Sequence

from policyc.plan.model import Plan
from policyc.plan.places import Found, Missing, ModuleSection, Place, Section, SymbolPlace

__all__ = ["PlanLookup"]


class PlanLookup:
    """Answers `policyc.plan.places.resolve` from a plan."""

    def __init__(self, plan: Plan) -> None:
        self._places = {bound.place: bound for bound in plan.places}

    def section(self, image: str, name: str) -> Found | Missing:
        """A section that a rule names."""
        return self._one(Section(image, name))

    def symbols(self, image: str, pattern: str) -> Sequence[Found] | Missing:
        """The symbols that a rule names by the same name or glob, as wholes."""
        return self._all(SymbolPlace(image, pattern))

    def module_section(self, module: str, name: str) -> Found | Missing:
        """A section of a module that a rule names."""
        return self._one(ModuleSection(module, name))

    def _one(self, place: Place) -> Found | Missing:
        found = self._all(place)
        return found if isinstance(found, Missing) else found[0]

    def _all(self, place: Place) -> Sequence[Found] | Missing:
        bound = self._places.get(place)
        if bound is None or not bound.extents:
            fact = f"the plan doesn't say where `{place}` lies: none of its rules names it as a whole"
            return Missing(fact, "give the profile too, or an address")
        return [Found(extent, bound.inferred) for extent in bound.extents]
