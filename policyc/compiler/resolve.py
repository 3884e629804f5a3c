"""Look up every word of a policy file: first stage of the compiler.

Every mistake of the file is found in one go. A rule with a mistake may come out incomplete or not at all: a stage that
finds errors is the last, so nothing is ever made of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from policyc.catalog import (
    ACCESS_WORDS,
    MAX_RATE,
    MODES,
    RATE_SECONDS,
    SEVERITIES,
    Access,
    EffectKind,
    column_of_access,
)
from policyc.compiler.cases import resolve_tests
from policyc.compiler.conditions import resolve_condition
from policyc.compiler.effects import apply_mechanism, resolve_effect, wrong_pins
from policyc.compiler.events import resolve_event
from policyc.compiler.operands import Scene
from policyc.compiler.places import PlaceResolver
from policyc.compiler.resolved import (
    ResolvedCondition,
    ResolvedExemption,
    ResolvedPlace,
    ResolvedPolicy,
    ResolvedRule,
    ResolvedWatch,
)
from policyc.diagnostics import Diagnostic, Span, did_you_mean
from policyc.lang import ast
from policyc.plan.model import MAX_PERIOD, MIN_PERIOD, Effect, Rate, Record
from policyc.plan.places import Lookup

__all__ = ["PLATFORMS", "resolve_file"]

PLATFORMS = (("linux", "x86_64"),)
"""The guests that profiles exist for."""

Value = TypeVar("Value")


def resolve_file(file: ast.PolicyFile, lookup: Lookup | None) -> tuple[ResolvedPolicy, list[Diagnostic]]:
    """Resolve one file. Without a lookup, places keep their names and have no bytes."""
    resolver = _Resolver(file, lookup)
    return resolver.policy(), resolver.diagnostics


class _Resolver:
    """One file's resolution: the names it defines and the diagnostics found so far."""

    def __init__(self, file: ast.PolicyFile, lookup: Lookup | None) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._file = file
        self._places = PlaceResolver(file.lets, lookup, self.diagnostics)

    def policy(self) -> ResolvedPolicy:
        header = self._file.header
        if header is not None and header.platform is not None:
            self._check_platform(header.platform)
        mode = self._word(header.mode, MODES, "mode") if header is not None else None
        enforce = mode != "monitor"
        self._check_labels()
        rules = [self._rule(rule, enforce) for rule in self._file.rules]
        watches = [self._watch(watch, enforce) for watch in self._file.watches]
        tests = resolve_tests(self._file.tests, self._places, self.diagnostics)
        self.diagnostics.extend(self._places.unused_names())
        return ResolvedPolicy(
            name=header.name.text if header is not None else self._file.source.name,
            enforce=enforce,
            rules=tuple(rule for rule in rules if rule is not None),
            source=self._file.source,
            watches=tuple(watch for watch in watches if watch is not None),
            tests=tests,
            only_tests=all(isinstance(said, (ast.Import, ast.Let, ast.Test)) for said in self._file.statements),
        )

    def _rule(self, rule: ast.Rule, enforce: bool) -> ResolvedRule | None:
        clauses = rule.clauses
        effect = self._effect(rule)
        access, event = Access.NONE, None
        places: tuple[ResolvedPlace, ...] = ()
        if isinstance(rule, ast.AccessRule):
            access = self._accesses(rule.accesses)
            places = self._places.resolve(rule.places)
        else:
            event = self._keep(resolve_event(rule.event))
            self.diagnostics.extend([] if event is None else wrong_pins(rule.effect, event.key))
        scene = Scene(column_of_access(access)) if event is None else Scene(frozenset({event.column}), event.key)
        if clauses.owner is not None:
            self._report("P305", "`owner` belongs to an exception, not to a rule", clauses.owner.span)
        when = self._condition(clauses.guard, scene)
        exemptions = tuple(self._exemption(exemption, scene) for exemption in clauses.exemptions)
        origin = self._places.resolve(clauses.origin)
        mode = self._word(clauses.mode, MODES, "mode")
        record = self._record(clauses)
        if effect is None or (event is None and not (access and places)):
            return None
        if effect.kind is EffectKind.ALLOW and clauses.mode is not None:
            fact = "`allow` has no mode: a hole is there or it isn't"
            self._report("P305", fact, clauses.mode.span, "leave `mode` out")
        return ResolvedRule(
            label=rule.label.text if rule.label is not None else None,
            effect=effect,
            effect_span=rule.effect.span,
            span=rule.span,
            access=access,
            places=places,
            event=event,
            origin=origin,
            exemptions=exemptions,
            overriding=tuple(sorted({text.text for text in clauses.overriding})),
            enforce=enforce if mode is None else mode == "enforce",
            record=record,
            when=when,
        )

    def _watch(self, watch: ast.Watch, enforce: bool) -> ResolvedWatch | None:
        clauses = watch.clauses
        for word, span in _clauses_of_rules(clauses):
            help = "leave it out: a watch compares bytes, and sees no access"
            self._report("P305", f"`{word}` means nothing in a watch", span, help)
        places = self._places.resolve(watch.places)
        period = watch.period.milliseconds
        if not MIN_PERIOD <= period <= MAX_PERIOD:
            fact = f"a watch looks every 100ms to 24h, not every {watch.period.text}"
            self._report("P302", fact, watch.period.span)
        mode = self._word(clauses.mode, MODES, "mode")
        record = self._record(clauses)
        if not places:
            return None
        return ResolvedWatch(
            label=watch.label.text if watch.label is not None else None,
            places=places,
            period=period,
            span=watch.span,
            restore_span=watch.restore.span if watch.restore is not None else None,
            enforce=enforce if mode is None else mode == "enforce",
            record=record,
        )

    def _record(self, clauses: ast.Clauses) -> Record:
        return Record(
            severity=self._word(clauses.severity, SEVERITIES, "severity") or "medium",
            because=clauses.reason.text if clauses.reason is not None else None,
            tags=tuple(sorted({tag.text for tag in clauses.tags})),
            limit=self._limit(clauses.limit),
        )

    def _effect(self, rule: ast.Rule) -> Effect | None:
        effect = self._keep(resolve_effect(rule.effect))
        if effect is not None and rule.clauses.mechanism is not None:
            return self._keep(apply_mechanism(effect, rule.clauses.mechanism))
        return effect

    def _accesses(self, words: Iterable[ast.Word]) -> Access:
        access = Access.NONE
        for word in words:
            name = self._word(word, ACCESS_WORDS, "access")
            if name is not None:
                access |= ACCESS_WORDS[name]
        return access

    def _limit(self, limit: ast.RateLimit | None) -> Rate | None:
        if limit is None:
            return None
        per = self._word(limit.unit, RATE_SECONDS, "unit of time")
        if not 1 <= limit.count.value <= MAX_RATE:
            fact = f"`{limit.count.text}` records are not between 1 and {MAX_RATE}"
            self._report("P302", fact, limit.count.span, "leave `at most` out to have every record")
        return None if per is None else Rate(limit.count.value, per)

    def _condition(self, written: ast.Expression | None, scene: Scene) -> ResolvedCondition | None:
        """The condition; None where there is none, and where the rule's event or access isn't understood."""
        if written is None or not scene.columns:
            return None
        return resolve_condition(written, scene, self._places, self.diagnostics)

    def _exemption(self, exemption: ast.Exemption, scene: Scene) -> ResolvedExemption:
        return ResolvedExemption(
            code=self._places.resolve(exemption.origin),
            because=exemption.reason.text,
            owner=exemption.owner.text if exemption.owner is not None else None,
            until=exemption.until.value if exemption.until is not None else None,
            span=exemption.span,
            when=self._condition(exemption.guard, scene),
        )

    def _check_platform(self, platform: ast.Platform) -> None:
        if (platform.os.text, platform.arch.text) not in PLATFORMS:
            known = ", ".join(f"`for {os} {arch}`" for os, arch in PLATFORMS)
            fact = f"there are no profiles of {platform.os.text} {platform.arch.text} guests"
            self._report("P211", fact, platform.span, f"write {known}")

    def _check_labels(self) -> None:
        first: dict[str, ast.Word] = {}
        for statement in (*self._file.rules, *self._file.watches):
            if statement.label is None:
                continue
            earlier = first.setdefault(statement.label.text, statement.label)
            if earlier is not statement.label:
                self._report(
                    "P205",
                    f"two rules are called `{statement.label.text}`",
                    statement.label.span,
                    "records name a rule by its label: give the second one another",
                    notes=((earlier.span, "the first one"),),
                )

    def _word(self, word: ast.Word | None, known: Collection[str], kind: str) -> str | None:
        """The word, if it is one of the known ones."""
        if word is None or word.text in known:
            return None if word is None else word.text
        near = did_you_mean(word.text, known)
        help = f"did you mean `{near}`?" if near else f"one of {', '.join(f'`{name}`' for name in known)}"
        self._report("P209", f"there is no {kind} `{word.text}`", word.span, help)
        return None

    def _keep(self, outcome: tuple[Value | None, list[Diagnostic]]) -> Value | None:
        value, found = outcome
        self.diagnostics.extend(found)
        return value

    def _report(
        self,
        code: str,
        message: str,
        span: Span,
        help: str | None = None,
        notes: tuple[tuple[Span | None, str], ...] = (),
    ) -> None:
        self.diagnostics.append(Diagnostic(code, message, span, help, notes))


def _clauses_of_rules(clauses: ast.Clauses) -> Iterator[tuple[str, Span]]:
    """The clauses that only a rule can have, by their words."""
    if clauses.origin:
        yield "from", clauses.origin[0].span.to(clauses.origin[-1].span)
    for word, part in (("when", clauses.guard), ("by", clauses.mechanism), ("owner", clauses.owner)):
        if part is not None:
            yield word, part.span
    for text in clauses.overriding:
        yield "overriding", text.span
    for exemption in clauses.exemptions:
        yield "except", exemption.span
