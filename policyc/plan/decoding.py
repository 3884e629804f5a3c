"""Plain JSON values that the schema has accepted, as a plan again.

The schema vouches for shapes and types; checked here is what a schema can't say: that indices lead somewhere, that
events and effects go together as the catalogue has it, and that ranges are ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policyc.catalog import EVENTS, FIELDS, LEGALITY, VECTORS, Access, EffectKind, carries, column_of_access
from policyc.plan.condition_steps import Step, decode_condition
from policyc.plan.conditions import Condition, fields_of, places_of
from policyc.plan.model import (
    BoundPlace,
    Effect,
    EventKey,
    Exemption,
    GuestFacts,
    Plan,
    PolicyRef,
    Rate,
    Record,
    Rule,
    SourceFile,
    SourceSpan,
    Watch,
)
from policyc.plan.places import Absolute, Base, DescriptorTable, Extent, ModuleSection, Place, Section, SymbolPlace

__all__ = ["decode_plan"]

# What json.loads gives for an object; the schema has been over it, so a missing key or a wrong type can't come up.
Object = Mapping[str, Any]

_BASES = {base.word: base for base in Base}


def decode_plan(document: Object) -> Plan:
    """Rebuild the plan.

    Raises:
        ValueError: the document is well-formed and makes no sense; the text says where.
    """
    core, sources = document["core"], document["sources"]
    plan = Plan(
        target=core["target"],
        cpu=core["cpu"],
        guest=_guest(core["guest"]),
        policies=tuple(PolicyRef(p["name"], p["mode"] == "enforce") for p in core["policies"]),
        places=tuple(_bound_place(place) for place in core["places"]),
        rules=tuple(_rule(rule) for rule in core["rules"]),
        sources=tuple(SourceFile(f["path"], f["digest"]) for f in sources["files"]),
        spans=tuple(_span(span) for span in sources["rules"]),
        watches=tuple(_watch(watch) for watch in core["watches"]),
        watch_spans=tuple(_span(span) for span in sources["watches"]),
    )
    _check_references(plan)
    for number, rule in enumerate(plan.rules):
        _check_legal(number, rule)
    return plan


def _guest(guest: Object) -> GuestFacts:
    return GuestFacts(
        os=guest["os"],
        arch=guest["arch"],
        image_base=_address(guest["image_base"]),
        landmarks={name: _address(value) for name, value in guest["landmarks"].items()},
        copy_routines=tuple(_extent(extent) for extent in guest["copy_routines"]),
        profile_digest=guest["profile"],
        build_id=guest["build_id"],
        banner=guest["banner"],
        code=None if guest["code"] is None else tuple(_extent(extent) for extent in guest["code"]),
    )


def _address(text: str) -> int:
    return int(text, 16)


def _extent(extent: Object) -> Extent:
    return Extent(_BASES[extent["base"]], _address(extent["start"]), _address(extent["end"]))


def _bound_place(bound: Object) -> BoundPlace:
    extents = None if bound["extents"] is None else tuple(_extent(extent) for extent in bound["extents"])
    return BoundPlace(_place(bound["place"]), extents, bound["inferred"])


def _place(place: Object) -> Place:
    match place["kind"]:
        case "section":
            return Section(place["image"], place["name"])
        case "symbol":
            return SymbolPlace(place["image"], place["pattern"], place["offset"], place["size"])
        case "module":
            return ModuleSection(place["module"], place["name"])
        case "table":
            return DescriptorTable(_BASES[place["base"]])
        case _:
            return Absolute(_extent(place["extent"]))


def _access(letters: str) -> Access:
    return Access(sum(bit for letter, bit in zip(letters, Access, strict=True) if letter != "-"))


def _rule(rule: Object) -> Rule:
    effect, event = rule["effect"], rule["event"]
    return Rule(
        id=rule["id"],
        policy=rule["policy"],
        effect=Effect(EffectKind[effect["kind"].upper()], _address(effect["argument"]), effect["retries"]),
        enforce=rule["mode"] == "enforce",
        access=_access(rule["access"]),
        places=tuple(rule["places"]),
        event=None if event is None else EventKey(event["word"], tuple(event["numbers"])),
        origin=tuple(rule["origin"]),
        exemptions=tuple(_exemption(exemption) for exemption in rule["exemptions"]),
        overriding=tuple(rule["overriding"]),
        record=_record(rule["record"]),
        when=_condition(rule["when"]),
    )


def _watch(watch: Object) -> Watch:
    return Watch(
        id=watch["id"],
        policy=watch["policy"],
        places=tuple(watch["places"]),
        period=watch["period_ms"],
        restore=watch["restore"],
        enforce=watch["mode"] == "enforce",
        record=_record(watch["record"]),
    )


def _record(record: Object) -> Record:
    return Record(record["severity"], record["because"], tuple(record["tags"]), _rate(record["limit"]))


def _span(span: Object) -> SourceSpan:
    return SourceSpan(span["file"], span["start"], span["end"], span["line"])


def _exemption(exemption: Object) -> Exemption:
    return Exemption(
        code=tuple(exemption["code"]),
        because=exemption["because"],
        owner=exemption["owner"],
        until=exemption["until"],
        when=_condition(exemption["when"]),
    )


def _rate(limit: Object | None) -> Rate | None:
    return None if limit is None else Rate(limit["count"], limit["per"])


def _condition(steps: Sequence[Step] | None) -> Condition | None:
    return None if steps is None else decode_condition(steps)


def _conditions(rule: Rule) -> list[Condition]:
    return [condition for condition in (rule.when, *(e.when for e in rule.exemptions)) if condition is not None]


def _check_references(plan: Plan) -> None:
    for number, rule in enumerate(plan.rules):
        _check_index(f"rule {number}: policy", (rule.policy,), plan.policies)
        _check_index(f"rule {number}: place", rule.places, plan.places)
        _check_index(f"rule {number}: from", rule.origin, plan.places)
        for exemption in rule.exemptions:
            _check_index(f"rule {number}: except from", exemption.code, plan.places)
            if not exemption.code and exemption.when is None:
                raise ValueError(f"rule {number} has an exception that excepts nothing in particular")
        for condition in _conditions(rule):
            _check_index(f"rule {number}: in", sorted(places_of(condition)), plan.places)
    for number, watch in enumerate(plan.watches):
        _check_index(f"watch {number}: policy", (watch.policy,), plan.policies)
        _check_index(f"watch {number}: place", watch.places, plan.places)
    for number, span in enumerate((*plan.spans, *plan.watch_spans)):
        _check_index(f"span {number}: file", (span.file,), plan.sources)
    for things, spans, word in ((plan.rules, plan.spans, "rules"), (plan.watches, plan.watch_spans, "watches")):
        if len(things) != len(spans):
            raise ValueError(f"{len(things)} {word} but {len(spans)} source spans")


def _check_index(where: str, indices: Sequence[int], table: Sequence[object]) -> None:
    for index in indices:
        if index >= len(table):
            raise ValueError(f"{where} {index} does not exist: there are {len(table)}")


def _check_legal(number: int, rule: Rule) -> None:
    """A plan could ask for an effect that its event can't carry; the reply loop must never meet one."""
    if (rule.event is None) == (rule.access == Access.NONE):
        raise ValueError(f"rule {number} must be about either an access or an event")
    if rule.event is not None and rule.event.word not in EVENTS:
        raise ValueError(f"rule {number} names no event of the language: `{rule.event.word}`")
    if rule.event is None and not rule.places:
        raise ValueError(f"rule {number} guards no place")
    vector = rule.effect.kind in (EffectKind.FAULT, EffectKind.INJECT)
    if vector and rule.effect.argument not in VECTORS.values():
        raise ValueError(f"rule {number} injects exception {rule.effect.argument}, which would stop the guest")
    columns = column_of_access(rule.access) if rule.event is None else {EVENTS[rule.event.word].column}
    for column in sorted(columns, key=lambda column: column.value):
        if column not in LEGALITY[rule.effect.kind]:
            raise ValueError(f"rule {number}: {rule.effect.kind.name.lower()} is impossible on {column.value}")
        for word in sorted(word for condition in _conditions(rule) for word in fields_of(condition)):
            if not carries(column, FIELDS[word]):
                raise ValueError(f"rule {number}: {column.value} has no field `{word}`")
