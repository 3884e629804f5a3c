"""Why a plan decides as it does: the verdict, every rule that has to do with it, and what is done on the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from policyc.analysis.cases import Answer, Tables, answer
from policyc.analysis.probes import Asked, probes_of
from policyc.analysis.reasons import bystanders, holes_over, lifting, strictest_first, why_not
from policyc.analysis.wording import event_text, exemption_text
from policyc.catalog import (
    EVENTS,
    LEGALITY,
    MSR_RANGES,
    TARGETS,
    VECTORS,
    Column,
    EffectKind,
    Mechanism,
    column_of_access,
)
from policyc.compiler.resolved import ResolvedCase
from policyc.plan.accesses import MemoryAccess
from policyc.plan.model import Effect, EventKey, Plan
from policyc.plan.places import Extent
from policyc.plan.tables import link_time_table

__all__ = ["Explanation", "Part", "Role", "explain", "on_the_wire"]


_VECTOR_WORDS = {number: word for word, number in VECTORS.items()}


class Role(Enum):
    """What a rule has to do with a verdict."""

    DECIDES = "decides"
    APPLIES = "applies"
    SET_ASIDE = "set aside"
    LIFTED = "excepted"
    NO_SAY = "no say"


@dataclass(frozen=True, slots=True)
class Part:
    """The part of one rule in a verdict; `detail` says why it is no larger, where it could be."""

    rule: int
    role: Role
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """One verdict and its reasons.

    Attributes:
        answer: the verdict, on the first of all accesses that are decided so.
        spans: where those lie, ascending; empty for an event.
        parts: every rule that is about these bytes or this event, those first that count most.
    """

    answer: Answer
    spans: tuple[Extent, ...]
    parts: tuple[Part, ...]


def explain(case: ResolvedCase, plan: Plan) -> tuple[Explanation, ...]:
    """The verdicts on what the case asks about, each with its reasons; several where its bytes are decided differently.

    Raises:
        UnresolvedPlaceError: a place of the plan has no extents before it is bound.
        TooManyProbesError: the case comes to more accesses than are asked about.
    """
    tables = Tables(link_time_table(plan))
    found: dict[object, tuple[Answer, list[Extent]]] = {}
    for probe in probes_of(case, tables.verdicts, plan.guest.image_base):
        said = answer(probe, tables)
        _, spans = found.setdefault((probe.rip, said.verdict, said.missing), (said, []))
        spans.extend(probe.spans)
    return tuple(
        Explanation(said, tuple(sorted(spans)), tuple(_parts(plan, tables, said))) for said, spans in found.values()
    )


def on_the_wire(asked: Asked, effect: Effect | None) -> Mapping[str, str]:
    """What brings the effect about, by dialect, where the event that tells of it comes."""
    key = None if isinstance(asked, MemoryAccess) else asked.event
    column = _column(asked)
    return {dialect: _mechanism(column, key, effect, dialect) for dialect in TARGETS}


def _parts(plan: Plan, tables: Tables, said: Answer) -> Iterator[Part]:
    table, verdict = tables.verdicts, said.verdict
    for place, index in enumerate(strictest_first(plan, verdict)):
        yield Part(index, Role.APPLIES if place else Role.DECIDES)
    for index in verdict.set_aside:
        holes = ", ".join(f"`{plan.rules[hole].id}`" for hole in holes_over(table, verdict, index))
        yield Part(index, Role.SET_ASIDE, f"by {holes}")
    for index in verdict.exempted:
        exemptions = [plan.rules[index].exemptions[number] for number in lifting(table, said.asked, index)]
        texts = (f'{exemption_text(plan, exemption)} because "{exemption.because}"' for exemption in exemptions)
        yield Part(index, Role.LIFTED, ", ".join(texts))
    for index in bystanders(table, said.asked, verdict):
        yield Part(index, Role.NO_SAY, why_not(table, said.asked, index).value)


def _column(asked: Asked) -> Column:
    if isinstance(asked, MemoryAccess):
        (column,) = column_of_access(asked.access)
        return column
    return EVENTS[asked.event.word].column


def _mechanism(column: Column, key: EventKey | None, effect: Effect | None, dialect: str) -> str:
    if key is not None and not _exists(key, dialect):
        return f"`{event_text(key)}` doesn't exist here"
    effect = effect or Effect(EffectKind.ALLOW)
    mechanism = LEGALITY[effect.kind][column]
    text = mechanism.value
    if mechanism in (Mechanism.FAULT, Mechanism.FAULT_UNTIL_TRAP):
        # A `deny` that has to be a fault is #GP, as `deny by fault` is.
        vector = effect.argument if effect.kind is not EffectKind.DENY else VECTORS["gp"]
        text += f", #{_VECTOR_WORDS.get(vector, str(vector)).upper()}"
    return f"RETRY up to {effect.retries} times, then {text}" if effect.retries else text


def _exists(key: EventKey, dialect: str) -> bool:
    if dialect not in EVENTS[key.word].dialects:
        return False
    return key.word != "msr" or any(number in span for number in key.numbers for span in MSR_RANGES[dialect])
