"""Rules that change nothing because of other rules: covered by stricter ones, or with nothing to set aside."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

from policyc.catalog import Access, EffectKind
from policyc.compiler.compiled import Compiled
from policyc.diagnostics import Diagnostic
from policyc.plan.model import Rule
from policyc.plan.tables import events_of
from policyc.plan.verdict_table import Group

__all__ = ["allow_sets_something_aside", "rules_decide"]

NO_ACCESS = (Access.NONE,)

Key = TypeVar("Key", bound=Hashable)


def rules_decide(compiled: Compiled) -> Iterator[Diagnostic]:
    """A rule whose every byte and access a stricter rule decides is either superfluous or not what was meant."""
    rules, numbers = compiled.plan.rules, _numbers(compiled)
    covered: dict[int, int] = {}
    open_rules: set[int] = set()
    for group in _groups(compiled):
        cover = _Cover(rules, numbers, group)
        for index in group:
            if index in open_rules or rules[index].effect.kind is EffectKind.ALLOW:
                continue
            by = cover.of(index)
            if by is None:
                open_rules.add(index)
            else:
                covered.setdefault(index, by)
    for index in sorted(covered.keys() - open_rules):
        yield Diagnostic(
            "P410",
            "stricter rules decide everything that this rule is about",
            compiled.origins[index].span,
            "remove it, or let it speak of what they don't",
            notes=((compiled.origins[covered[index]].span, "this one is in force there"),),
        )


def allow_sets_something_aside(compiled: Compiled) -> Iterator[Diagnostic]:
    """An `allow` that meets no rule of its policy looks like a permission, and is none."""
    rules, numbers = compiled.plan.rules, _numbers(compiled)
    idle = {index for index, rule in enumerate(rules) if rule.effect.kind is EffectKind.ALLOW}
    if not idle:
        return
    for group in _groups(compiled):
        for index in idle.intersection(group):
            reached = _reached(rules[index], numbers)
            if any(
                rules[other].policy in reached
                and rules[other].effect.kind is not EffectKind.ALLOW
                and (rules[other].access & rules[index].access or rules[index].event is not None)
                for other in group
            ):
                idle.discard(index)
    for index in sorted(idle):
        fact = "no rule of this policy is about what is allowed here, so nothing is set aside"
        help = 'what no rule denies is allowed anyway; to reach another policy, write `overriding "its name"`'
        yield Diagnostic("P411", fact, compiled.origins[index].span, help)


def _groups(compiled: Compiled) -> Iterator[Group]:
    """The rules that lie over the same bytes, for all bytes, and those about the same event."""
    for segments in compiled.segments.values():
        for segment in segments:
            yield segment.members
    yield from events_of(compiled.plan.rules).values()


def _numbers(compiled: Compiled) -> Mapping[str, int]:
    return {policy.name: number for number, policy in enumerate(compiled.plan.policies)}


def _reached(allow: Rule, numbers: Mapping[str, int]) -> set[int]:
    """The policies whose rules an `allow` sets aside."""
    return {allow.policy, *(numbers[name] for name in allow.overriding if name in numbers)}


class _Cover:
    """The strictest rules of one group that apply whoever acts, for each kind of access."""

    def __init__(self, rules: Sequence[Rule], numbers: Mapping[str, int], group: Group) -> None:
        self._rules = rules
        self._of_policy: dict[tuple[Access, int], int] = {}
        self._of_all: dict[Access, int] = {}
        holed = set[int]()
        for index in group:
            if rules[index].effect.kind is EffectKind.ALLOW:
                holed |= _reached(rules[index], numbers)
        for index in group:
            rule = rules[index]
            if rule.effect.kind is EffectKind.ALLOW or not rule.enforce or not rule.unconditional:
                continue
            for access in _accesses(rule):
                self._keep(self._of_policy, (access, rule.policy), index)
                # A hole in its policy may set it aside while rules of other policies stand.
                if rule.policy not in holed:
                    self._keep(self._of_all, access, index)

    def of(self, index: int) -> int | None:
        """A rule that is stricter than this one wherever it applies in this group; of several, that of one access."""
        found = None
        for access in _accesses(self._rules[index]):
            candidates = (self._of_all.get(access), self._of_policy.get((access, self._rules[index].policy)))
            found = next((one for one in candidates if one is not None and self._is_stricter(one, index)), None)
            if found is None:
                return None
        return found

    def _keep(self, best: dict[Key, int], key: Key, index: int) -> None:
        if key not in best or self._is_stricter(index, best[key]):
            best[key] = index

    def _is_stricter(self, one: int, other: int) -> bool:
        return self._rules[one].effect.kind > self._rules[other].effect.kind


def _accesses(rule: Rule) -> Sequence[Access]:
    return NO_ACCESS if rule.event is not None else [bit for bit in Access if rule.access & bit]
