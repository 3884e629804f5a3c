"""What `policyc explain` has to say, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from policyc.analysis.addresses import extent_text, symbol_text
from policyc.analysis.explanation import Explanation, Part, on_the_wire
from policyc.analysis.page_map import GuardedPages, page_map
from policyc.analysis.wording import (
    access_text,
    count,
    effect_text,
    event_text,
    exemption_text,
    rule_place,
    rule_text,
    watch_place,
    watch_text,
)
from policyc.catalog import EffectKind
from policyc.cli.columns import aligned
from policyc.cli.explain_printer import Printer
from policyc.compiler.resolved import ResolvedCase
from policyc.diagnostics import printable
from policyc.plan.accesses import MemoryAccess
from policyc.plan.model import Effect, EventKey, Rule, Watch
from policyc.plan.places import Base, Extent

__all__ = ["TextPrinter"]

MAX_RANGES = 4
"""Ranges that are listed for one verdict; the rest is counted."""

COLLATERAL = "no rule applies, but the page is guarded: the event comes, and is let through as collateral"
UNSEEN = "no rule applies, and the page isn't guarded against it: no event comes"
PHYSICAL = "which frames the places of other rules lie on is known once the plan is armed, and isn't asked here"


class TextPrinter(Printer):
    """Prints for a terminal."""

    def answer(self, case: ResolvedCase, explained: Sequence[Explanation]) -> str:
        pages = page_map(self._plan) if case.event is None else ()
        blocks = ["\n".join(self._block(case, one, pages)) for one in explained]
        return "\n\n".join(blocks) + "\n"

    def pages(self) -> str:
        runs = page_map(self._plan, self._profile)
        if not runs:
            return "no page is guarded\n"
        rows = [("pages", "", "rights", "guarded", "collateral", "rules")]
        rows += [
            (
                extent_text(run.span),
                f"{run.run.pages}",
                run.run.allowed.rwx,
                f"{run.run.guarded:#x}",
                f"{run.run.collateral:#x}",
                ", ".join(printable(self._plan.rules[index].id) for index in run.rules),
            )
            for run in runs
        ]
        head, *lines = aligned(rows, right=frozenset({1, 3, 4}))
        text = [self._bold(head)]
        for line, run in zip(lines, runs, strict=True):
            text += [line, *self._neighbour_lines(run)]
        total = sum(run.run.pages for run in runs)
        guarded = sum(run.run.guarded for run in runs)
        collateral = sum(run.run.collateral for run in runs)
        text.append(f"{count(total, 'page')}: {count(guarded, 'byte')} guarded, {count(collateral, 'byte')} collateral")
        return "\n".join(text) + "\n"

    def rules(self) -> str:
        lines: list[str] = []
        for number, policy in enumerate(self._plan.policies):
            rules = [index for index, rule in enumerate(self._plan.rules) if rule.policy == number]
            watches = [index for index, watch in enumerate(self._plan.watches) if watch.policy == number]
            counts = [count(len(rules), "rule"), *([count(len(watches), "watch", "watches")] if watches else [])]
            mode = "" if policy.enforce else ", in monitor mode"
            lines += ["", self._bold(f'policy "{printable(policy.name)}"{mode}: {", ".join(counts)}')]
            for index in rules:
                lines += ["", *self._rule_lines(index)]
            for index in watches:
                lines += ["", *self._watch_lines(index)]
        return "\n".join(lines[1:]) + "\n" if lines else "the plan has no rules\n"

    def _rule_lines(self, index: int) -> Iterator[str]:
        rule = self._plan.rules[index]
        yield f"  {printable(rule.id)}  ({printable(rule_place(self._plan, index))})"
        yield f"    {printable(rule_text(self._plan, index))}"
        for exemption in rule.exemptions:
            owner = f' owner "{exemption.owner}"' if exemption.owner is not None else ""
            until = f" until {exemption.until}" if exemption.until is not None else ""
            text = f'{exemption_text(self._plan, exemption)} because "{exemption.because}"{owner}{until}'
            yield f"    {printable(text)}"
        yield f"    {self._facts(rule)}"

    def _watch_lines(self, index: int) -> Iterator[str]:
        watch = self._plan.watches[index]
        yield f"  {printable(watch.id)}  ({printable(watch_place(self._plan, index))})"
        yield f"    {printable(watch_text(self._plan, index))}"
        yield f"    {self._facts(watch)}"

    def _facts(self, stated: Rule | Watch) -> str:
        limit = stated.record.limit
        facts = [
            *([count(self._bytes_of(stated), "byte")] if stated.places else []),
            f"severity {stated.record.severity}",
            *([] if stated.enforce else ["mode monitor"]),
            *([f"at most {count(limit.count, 'record')} per {limit.per}"] if limit is not None else []),
        ]
        return ", ".join(facts)

    def _neighbour_lines(self, run: GuardedPages) -> Iterator[str]:
        for neighbour in run.neighbours:
            yield f"    also there: {printable(neighbour.name)} ({neighbour.start:#x}, {neighbour.size:#x} bytes)"
        if run.more_neighbours:
            yield f"    and {count(run.more_neighbours, 'more symbol')}"

    def _block(self, case: ResolvedCase, one: Explanation, pages: Sequence[GuardedPages]) -> Iterator[str]:
        said, event = one.answer, case.event.key if case.event is not None else None
        yield self._bold(self._asked(case, one, event))
        if said.probe.rip is not None:
            yield f"  by code at {self._address(Base.VIRTUAL, said.probe.rip)}"
        yield f"verdict: {self._effect(said.verdict.would, event)}"
        if said.verdict.effect != said.verdict.would:
            yield f"  in monitor mode: the reply is {self._effect(said.verdict.effect, event)}"
        if said.missing:
            words = " and ".join(f"`{word}`" for word in said.missing)
            given = "aren't" if len(said.missing) > 1 else "isn't"
            mild = effect_text(said.mildest, event)
            yield f"  it turns on {words}, which {given} given: at the mildest it is {mild}"
        told, remark = self._is_told(one, pages)
        if remark is not None:
            yield f"  {remark}"
        if isinstance(said.asked, MemoryAccess) and said.asked.base is not Base.VIRTUAL:
            yield f"  {PHYSICAL}"
        if told:
            wire = on_the_wire(said.asked, said.verdict.effect)
            yield from (f"  {line}" for line in aligned([*wire.items()]))
        if one.parts:
            yield "rules:"
            yield from (f"  {line}" for line in aligned([self._part_row(part) for part in one.parts]))

    def _asked(self, case: ResolvedCase, one: Explanation, event: EventKey | None) -> str:
        asked = one.answer.asked
        if not isinstance(asked, MemoryAccess):
            return f"on {event_text(event)}" if event is not None else ""
        if case.size is not None:
            place = self._address(asked.base, one.answer.probe.spans[0].start)
            return f"{access_text(asked.access)} {count(case.size, 'byte')} at {place}"
        listed = ", ".join(map(self._range, one.spans[:MAX_RANGES]))
        more = f" and {count(len(one.spans) - MAX_RANGES, 'more range')}" if len(one.spans) > MAX_RANGES else ""
        return f"{access_text(asked.access)} anywhere in {listed}{more}"

    def _range(self, span: Extent) -> str:
        symbol = symbol_text(span.start, self._profile) if span.base is Base.VIRTUAL else None
        return extent_text(span) + (f" ({symbol})" if symbol is not None else "")

    def _is_told(self, one: Explanation, pages: Sequence[GuardedPages]) -> tuple[bool, str | None]:
        """Whether the tool gets to know of it, and what is to be said about that."""
        asked, verdict = one.answer.asked, one.answer.verdict
        if not isinstance(asked, MemoryAccess):
            told = bool(one.parts)
            return told, None if told else "no rule is about this event: it isn't asked for, and none comes"
        run = self._pages_under(asked, pages)
        told = run is not None and not asked.access & run.run.allowed
        if not verdict.collateral:
            return told, None if told else "the page isn't guarded against it: no event comes"
        return told, COLLATERAL if told else UNSEEN

    def _part_row(self, part: Part) -> tuple[str, ...]:
        text = rule_text(self._plan, part.rule)
        mode = "" if self._plan.rules[part.rule].enforce else " (monitor)"
        detail = "" if part.detail is None else f": {part.detail}"
        rule = self._plan.rules[part.rule]
        place = rule_place(self._plan, part.rule)
        return part.role.value, printable(rule.id), printable(place), printable(f"{text}{mode}{detail}")

    def _effect(self, effect: Effect | None, event: EventKey | None) -> str:
        text = effect_text(effect, event)
        if not self._color:
            return text
        stops = effect is not None and effect.kind > EffectKind.LOG
        return click.style(text, fg="red" if stops else "yellow" if effect is not None else "green", bold=True)

    def _bold(self, text: str) -> str:
        return click.style(text, bold=True) if self._color else text
