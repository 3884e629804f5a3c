"""What a resolved policy may not say, and what it had better not: a list of checks, each a function.

A check gets all policies and the target, and yields diagnostics. To add one, write it and append it to `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from policyc.catalog import (
    EVENTS,
    FIELDS,
    LEGALITY,
    MSR_RANGES,
    RETRYABLE,
    TARGETS,
    Access,
    Column,
    EffectKind,
    column_of_access,
    legal_effects,
)
from policyc.compiler.resolved import ResolvedCase, ResolvedPlace, ResolvedPolicy, ResolvedRule
from policyc.diagnostics import Diagnostic
from policyc.plan.pages import hold
from policyc.plan.places import Base, SymbolPlace
from policyc.plan.sweep import sweep

__all__ = ["CHECKS", "Check", "CheckOptions", "run_checks"]


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What the plan is to run on: `target` is `any` or a dialect, `cpu` is `any`, `intel` or `amd`."""

    target: str = "any"
    cpu: str = "any"

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects in which everything must be legal."""
        return TARGETS if self.target == "any" else (self.target,)


Check = Callable[[Sequence[ResolvedPolicy], CheckOptions], Iterator[Diagnostic]]


def run_checks(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> list[Diagnostic]:
    """Everything that the checks have to say."""
    return [found for check in CHECKS for found in check(policies, options)]


def one_policy_a_name(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """A hole is cut within one policy, so two files may not be one policy by accident."""
    first: dict[str, ResolvedPolicy] = {}
    for policy in policies:
        earlier = first.setdefault(policy.name, policy)
        if earlier is not policy:
            yield Diagnostic(
                "P212",
                f"`{policy.source.name}` and `{earlier.source.name}` are both policy `{policy.name}`",
                None,
                "give one of them another name: an `allow` sets aside the rules of its own policy alone",
            )


def effect_fits_event(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """The legality table: an effect that the event's replies can't bring about is refused, and what can is named."""
    for rule in _rules_and_cases(policies):
        columns = {rule.event.column} if rule.event is not None else column_of_access(rule.access)
        for column in sorted(columns, key=lambda column: column.value):
            if column not in LEGALITY[rule.effect.kind]:
                help = _what_is_legal(column)
            elif rule.effect.retries and column not in RETRYABLE:
                help = "leave out `retry`: the kernel doesn't offer to try this event again"
            elif rule.effect.kind is EffectKind.PIN and not _can_pin(rule):
                help = "bits can be pinned in cr0, cr4 and msr efer"
            else:
                continue
            fact = f"`{rule.effect_span.text}` can't be done to {column.value}"
            yield Diagnostic("P304", fact, rule.effect_span, help)


def _what_is_legal(column: Column) -> str:
    words = legal_effects(column)
    return f"it can be {', '.join(f'`{word}`' for word in words[:-1])} or `{words[-1]}`"


def _can_pin(rule: ResolvedRule | ResolvedCase) -> bool:
    return rule.event is not None and (
        rule.event.key.word in ("cr0", "cr4") or (rule.event.key.word, rule.event.key.numbers) == ("msr", (0xC0000080,))
    )


def event_exists_in_target(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """Some events exist in one dialect alone."""
    for rule in _rules_and_cases(policies):
        if rule.event is None:
            continue
        spec = EVENTS[rule.event.key.word]
        have = [d for d in options.dialects if d in spec.dialects and _msr_fits(rule, d)]
        missing = [d for d in options.dialects if d not in have]
        if missing:
            only = [d for d in TARGETS if d in spec.dialects and _msr_fits(rule, d)]
            yield Diagnostic(
                "P306",
                f"`{rule.event.span.text}` doesn't exist in {' or '.join(missing)}",
                rule.event.span,
                f"compile with `--target {only[0]}` if every guest runs it",
            )


def field_exists_in_target(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """Some events carry a field in one dialect alone."""
    for rule in _rules(policies):
        columns = {rule.event.column} if rule.event is not None else column_of_access(rule.access)
        for word, span in (field for when in rule.conditions for field in when.used):
            for column in columns:
                only = FIELDS[word].dialects.get(column, TARGETS)
                missing = [dialect for dialect in options.dialects if dialect not in only]
                if missing:
                    yield Diagnostic(
                        "P306",
                        f"{column.value} has no `{word}` in {' or '.join(missing)}",
                        span,
                        f"compile with `--target {only[0]}` if every guest runs it",
                    )


def _msr_fits(rule: ResolvedRule | ResolvedCase, dialect: str) -> bool:
    if rule.event is None or rule.event.key.word != "msr":
        return True
    return any(rule.event.key.numbers[0] in span for span in MSR_RANGES[dialect])


def hardware_can_hold(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """Rights that no page-table entry expresses are found before the guest is asked for them."""
    for rule in _rules(policies):
        if rule.effect.kind is EffectKind.ALLOW or not rule.access:
            continue
        if hold(rule.access, options.cpu).impossible:
            fact = "this would leave pages that can be executed and not read, which not every processor can hold"
            help = "deny `execute` too, or compile with `--cpu intel` if every host has EPT with execute-only pages"
            yield Diagnostic("P502", fact, rule.span, help)


def overriding_is_enforced(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """A policy that only watches may not weaken one that enforces; and a name must name a policy."""
    names = {policy.name for policy in policies}
    for policy in policies:
        for rule in policy.rules:
            if rule.overriding and rule.effect.kind is not EffectKind.ALLOW:
                yield Diagnostic("P305", "only `allow` overrides another policy", rule.span, "leave `overriding` out")
            elif rule.overriding and not policy.enforce:
                fact = f"`{policy.name}` is in monitor mode and can't set aside rules of another policy"
                yield Diagnostic("P305", fact, rule.span, "leave `overriding` out, or enforce this policy")
            for name in rule.overriding:
                if name not in names:
                    yield Diagnostic("P213", f"there is no policy `{name}` here to override", rule.span)


def excepted_code_is_guarded(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """Whoever can rewrite excepted code may use its exception, so that code should be denied to writers itself."""
    guarded = [
        (extent.start, extent.end, int(extent.base))
        for rule in _rules(policies)
        if rule.enforce and rule.access & Access.W and rule.effect.kind >= EffectKind.SKIP
        if rule.spares_trusted_code_alone
        for place in rule.places
        if place.resolution is not None
        for extent in place.resolution.extents
    ]
    cover = {base: sweep((start, end, 0) for start, end, of in guarded if of == base) for base in Base}
    for rule in _rules(policies):
        for place in _weakening_code(rule):
            for extent in place.resolution.extents if place.resolution is not None else ():
                if not any(s.start <= extent.start and extent.end <= s.end for s in cover[extent.base]):
                    yield Diagnostic(
                        "P401",
                        f"`{place.place}` is excepted, and nothing keeps it from being rewritten",
                        place.span,
                        f"add `deny write to {place.place}`, or guard the section it lies in",
                    )
                    break


def excepted_code_is_one(policies: Sequence[ResolvedPolicy], options: CheckOptions) -> Iterator[Diagnostic]:
    """Static functions share names; trusting all of them when one was meant would be a wider hole than was written."""
    for rule in _rules(policies):
        for place in _weakening_code(rule):
            if not isinstance(place.place, SymbolPlace) or place.place.is_glob or place.resolution is None:
                continue
            if len(place.resolution.extents) > 1:
                yield Diagnostic(
                    "P214",
                    f"`{place.place}` stands for {len(place.resolution.extents)} functions",
                    place.span,
                    "give the address of the one that is meant, as `virtual START..END`",
                )


def _weakening_code(rule: ResolvedRule) -> Iterator[ResolvedPlace]:
    for exemption in rule.exemptions:
        yield from exemption.code
    if rule.effect.kind is EffectKind.ALLOW:
        yield from rule.origin


def _rules(policies: Sequence[ResolvedPolicy]) -> Iterator[ResolvedRule]:
    for policy in policies:
        yield from policy.rules


def _rules_and_cases(policies: Sequence[ResolvedPolicy]) -> Iterator[ResolvedRule | ResolvedCase]:
    """Everything that names an event or an access, and an effect on it."""
    for policy in policies:
        yield from policy.rules
        for test in policy.tests:
            yield from test.cases


CHECKS: tuple[Check, ...] = (
    one_policy_a_name,
    effect_fits_event,
    event_exists_in_target,
    field_exists_in_target,
    hardware_can_hold,
    overriding_is_enforced,
    excepted_code_is_one,
    excepted_code_is_guarded,
)
