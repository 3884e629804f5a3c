"""The canonical lines of each kind of statement: which parts stand together, and in which order clauses follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyc.lang import ast
from policyc.lang.layout import Atom, Line
from policyc.lang.spelling import (
    condition_atoms,
    spell_effect,
    spell_event,
    spell_number,
    spell_place,
    spell_preposition,
    spell_setting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["lines_of"]


def lines_of(node: ast.Header | ast.Statement | ast.Case, depth: int = 0) -> list[Line]:
    """The lines of a header, a case, or a statement that isn't a test block; clauses are indented once more."""
    match node:
        case ast.Header():
            return _header(node)
        case ast.Import():
            return [Line([Atom(f"import {_quoted(node.path)}", node.span.start)], depth)]
        case ast.Let():
            return [Line(_list(f"let {node.name.text} =", node.span.start, _places(node.places)), depth, hang=1)]
        case ast.AccessRule():
            accesses = ", ".join(access.text for access in node.accesses)
            lead = f"{spell_effect(node.effect)} {accesses} {spell_preposition(node.accesses)}"
            sentence = _list(lead, node.effect.span.start, _places(node.places))
            return [Line([*_label(node.label), *sentence], depth), *_clauses(node.clauses, depth + 1)]
        case ast.EventRule():
            guard = [] if node.clauses.guard is None else _condition("when", node.clauses.guard)
            event = Atom(f"on {spell_event(node.event)}", node.event.span.start)
            sentence = [*_label(node.label), event, *guard, Atom(spell_effect(node.effect), node.effect.span.start)]
            return [Line(sentence, depth), *_clauses(node.clauses, depth + 1, guard=False)]
        case ast.Watch():
            places = _places(node.places)
            period = f"every {node.period.text}{' restore' if node.restore else ''}"
            start = node.span.start if node.label is None else node.label.span.end
            sentence = [*_list("watch", start, places), Atom(period, node.period.span.start)]
            return [Line([*_label(node.label), *sentence], depth), *_clauses(node.clauses, depth + 1)]
        case ast.AccessCase():
            target = Atom(f"{node.access.text} {spell_place(node.place)}", node.span.start)
            origin = [] if node.origin is None else [Atom(f"from {spell_place(node.origin)}", node.origin.span.start)]
            return [Line([target, *origin, *_outcome(node)], depth)]
        case ast.EventCase():
            return [Line([Atom(f"on {spell_event(node.event)}", node.span.start), *_outcome(node)], depth)]
        case ast.Test():
            raise TypeError("a test block is laid out as a block")


def _header(header: ast.Header) -> list[Line]:
    first = [Atom(f"policy {_quoted(header.name)}", header.span.start)]
    if header.version:
        first.append(Atom(f"version {spell_number(header.version)}", header.version.span.start))
    lines = [Line(first, 0)]
    if header.platform:
        platform = header.platform
        lines.append(Line([Atom(f"for {platform.os.text} {platform.arch.text}", platform.span.start)], 0))
    if header.mode:
        lines.append(Line([Atom(f"mode {header.mode.text}", header.mode.span.start)], 0))
    return lines


def _clauses(clauses: ast.Clauses, depth: int, guard: bool = True) -> list[Line]:
    """A line for each clause, in their order: who and when, how, why, the exceptions, and what is recorded."""
    lines = [
        _list("from", clauses.origin[0].span.start, _places(clauses.origin)) if clauses.origin else [],
        _condition("when", clauses.guard) if clauses.guard and guard else [],
        _word("by", clauses.mechanism),
        _text("because", clauses.reason),
        _text("owner", clauses.owner),
        *(_text("overriding", text) for text in clauses.overriding),
        *(_exemption(exemption) for exemption in clauses.exemptions),
        _word("severity", clauses.severity),
        *(_text("tag", text) for text in clauses.tags),
        _limit(clauses.limit),
        _word("mode", clauses.mode),
    ]
    return [Line(atoms, depth, hang=1) for atoms in lines if atoms]


def _exemption(exemption: ast.Exemption) -> list[Atom]:
    start = exemption.span.start
    if exemption.origin:
        atoms = _list("except from", start, _places(exemption.origin))
        if exemption.guard:
            atoms += _condition("when", exemption.guard)
    elif exemption.guard:
        (first, _), *others = condition_atoms(exemption.guard)
        atoms = [Atom(f"except when {first}", start), *(Atom(text, at) for text, at in others)]
    else:
        atoms = [Atom("except", start)]
    atoms += [*_text("because", exemption.reason), *_text("owner", exemption.owner)]
    if exemption.until:
        atoms.append(Atom(f"until {exemption.until.value.isoformat()}", exemption.until.span.start))
    return atoms


def _limit(limit: ast.RateLimit | None) -> list[Atom]:
    if limit is None:
        return []
    return [Atom(f"at most {spell_number(limit.count)} per {limit.unit.text}", limit.span.start)]


def _outcome(case: ast.Case) -> Iterator[Atom]:
    """What follows the place or event of a test case."""
    if case.settings:
        yield from _list("with", case.settings[0].span.start, [(spell_setting(s), s.span.start) for s in case.settings])
    yield Atom(f"=> {spell_effect(case.expected)}", case.expected.span.start)


# ---- atoms


def _label(label: ast.Word | None) -> list[Atom]:
    return [] if label is None else [Atom(f"{label.text}:", label.span.start)]


def _places(places: Sequence[ast.Place]) -> list[tuple[str, int]]:
    return [(spell_place(place), place.span.start) for place in places]


def _list(lead: str, start: int, parts: Sequence[tuple[str, int]]) -> list[Atom]:
    """The parts with commas between; the first follows `lead` and begins at `start`."""
    ends = [","] * (len(parts) - 1) + [""]
    (first, _), *others = parts
    atoms = [Atom(f"{lead} {first}{ends[0]}", start)]
    return atoms + [Atom(f"{text}{end}", at) for (text, at), end in zip(others, ends[1:], strict=True)]


def _condition(lead: str, condition: ast.Expression) -> list[Atom]:
    (first, start), *others = condition_atoms(condition)
    return [Atom(f"{lead} {first}", start), *(Atom(text, at) for text, at in others)]


def _word(lead: str, word: ast.Word | None) -> list[Atom]:
    return [] if word is None else [Atom(f"{lead} {word.text}", word.span.start)]


def _text(lead: str, text: ast.Text | None) -> list[Atom]:
    return [] if text is None else [Atom(f"{lead} {_quoted(text)}", text.span.start)]


def _quoted(text: ast.Text) -> str:
    return f'"{text.text}"'
