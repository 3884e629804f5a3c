"""What a rule may not say: effects, events, fields and clauses that no kernel or processor can bring about."""

from __future__ import annotations

from collections.abc import Iterator

from policyc.catalog import (
    EVENTS,
    FIELDS,
    HOST_LIMITS,
    LEGALITY,
    MSR_RANGES,
    RETRYABLE,
    TARGETS,
    Column,
    EffectKind,
    column_of_access,
    legal_effects,
)
from policyc.compiler.operands import register_of
from policyc.compiler.options import CheckOptions
from policyc.compiler.resolved import (
    Policies,
    ResolvedCase,
    ResolvedPlace,
    ResolvedPolicy,
    ResolvedRule,
    ResolvedWatch,
    rules_of,
)
from policyc.diagnostics import Diagnostic, Span, did_you_mean
from policyc.plan.model import MAX_TEXT
from policyc.plan.places import Absolute, Base, DescriptorTable

__all__ = [
    "code_can_run_there",
    "code_causes_event",
    "denial_cant_be_lifted",
    "effect_fits_event",
    "event_exists_in_target",
    "field_exists_in_target",
    "host_reports_event",
    "one_policy_a_name",
    "overriding_is_enforced",
    "texts_fit_a_plan",
]

NOBODYS = frozenset({Column.UNHOOK, Column.CREATED})
"""Events that no code of the guest causes."""


def one_policy_a_name(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
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


def effect_fits_event(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """The legality table: an effect that the event's replies can't bring about is refused, and what can is named."""
    for rule in _rules_and_cases(policies):
        for column in _columns(rule):
            if column not in LEGALITY[rule.effect.kind]:
                help = _what_is_legal(column)
            elif rule.effect.retries and column not in RETRYABLE:
                help = "leave out `retry`: the kernel doesn't offer to try this event again"
            elif rule.effect.kind is EffectKind.PIN and (rule.event is None or register_of(rule.event.key) is None):
                help = "bits can be pinned in cr0, cr4 and msr efer"
            else:
                continue
            fact = f"`{_effect_text(rule)}` can't be done to {column.value}"
            yield Diagnostic("P304", fact, rule.effect_span, help)


def event_exists_in_target(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
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


def field_exists_in_target(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """Some events carry a field in one dialect alone."""
    for rule in rules_of(policies):
        for word, span in (field for when in rule.conditions for field in when.used):
            for column in _columns(rule):
                only = FIELDS[word].dialects.get(column, TARGETS)
                missing = [dialect for dialect in options.dialects if dialect not in only]
                if missing:
                    yield Diagnostic(
                        "P306",
                        f"{column.value} has no `{word}` in {' or '.join(missing)}",
                        span,
                        f"compile with `--target {only[0]}` if every guest runs it",
                    )


def host_reports_event(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """Some events don't come on the hosts that the author says the plan is for."""
    limits = {
        limit.kvmi: limit for limit in HOST_LIMITS if limit.cpu == options.cpu and limit.dialect in options.dialects
    }
    for rule in rules_of(policies):
        limit = limits.get(EVENTS[rule.event.key.word].kvmi) if rule.event is not None else None
        if rule.event is not None and limit is not None:
            yield Diagnostic("P419", f"on {limit.cpu.upper()} hosts, {limit.fact}", rule.event.span, limit.help)


def denial_cant_be_lifted(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """What an address of the guest leads to is up to its page tables, but for the kernel's own image."""
    for rule in rules_of(policies):
        if not rule.enforce or rule.effect.kind < EffectKind.SKIP:
            continue
        for place in rule.places:
            absolute = place.place
            if isinstance(absolute, Absolute) and absolute.extent.base is Base.VIRTUAL:
                yield Diagnostic(
                    "P420",
                    f"whoever changes the guest's page tables can take `{place.span.text}` away from the rule",
                    place.span,
                    "name a section or a symbol of the kernel, or frames by `physical`, if that is what is meant",
                )


def code_causes_event(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """`from` asks who acts, and behind some events there is nobody."""
    for rule in rules_of(policies):
        if rule.event is not None and rule.event.column in NOBODYS:
            for place in _code(rule):
                fact = f"no code of the guest causes {rule.event.column.value}, so `from` means nothing here"
                yield Diagnostic("P305", fact, place.span, "leave `from` out")
                break


def code_can_run_there(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """RIP is a virtual address, and no code runs in a descriptor table."""
    for rule in rules_of(policies):
        for place in _code(rule):
            if isinstance(place.place, DescriptorTable):
                fact = f"no code runs in the {place.place}"
            elif isinstance(place.place, Absolute) and place.place.extent.base is Base.PHYSICAL:
                fact = f"code runs at virtual addresses, and `{place.place}` is physical memory"
            else:
                continue
            yield Diagnostic("P302", fact, place.span, "name a symbol, a section or `virtual START..END`")


def texts_fit_a_plan(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
    """A plan file bounds its texts, and what can't be read again must not be written."""
    for policy in policies:
        yield from _wrong_text("the policy's name", policy.name, None)
        statements: list[ResolvedRule | ResolvedWatch] = [*policy.rules, *policy.watches]
        for statement in statements:
            yield from _wrong_text("the label", statement.label, statement.span)
            yield from _wrong_text("`because`", statement.record.because or None, statement.span)
            for tag in statement.record.tags:
                yield from _wrong_text("a tag", tag, statement.span)
            for place in statement.places:
                yield from _wrong_text("the place", str(place.place), place.span)
        for rule in policy.rules:
            for exemption in rule.exemptions:
                yield from _wrong_text("`because`", exemption.because, exemption.span)
                yield from _wrong_text("`owner`", exemption.owner, exemption.span)


def _wrong_text(what: str, text: str | None, span: Span | None) -> Iterator[Diagnostic]:
    if text is not None and not text.strip():
        yield Diagnostic("P302", f"{what} says nothing", span, "write what a reader needs to know")
    elif text is not None and len(text) > MAX_TEXT:
        yield Diagnostic(
            "P302", f"{what} has {len(text)} characters, and a plan holds {MAX_TEXT}", span, "say it shorter"
        )


def overriding_is_enforced(policies: Policies, options: CheckOptions) -> Iterator[Diagnostic]:
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
                    fact = f"there is no policy `{name}` here to override"
                    near = did_you_mean(name, names)
                    help_text = f"did you mean `{near}`?" if near else "give the file of that policy to the command too"
                    yield Diagnostic("P213", fact, rule.span, help_text)


def _effect_text(rule: ResolvedRule | ResolvedCase) -> str:
    """The effect as written, with `by skip` or `by fault` where that is what can't be."""
    text = rule.effect_span.text
    by = {EffectKind.SKIP: " by skip", EffectKind.FAULT: " by fault"}.get(rule.effect.kind, "")
    return text + by if text.endswith("deny") else text


def _what_is_legal(column: Column) -> str:
    words = legal_effects(column)
    return f"it can be {', '.join(f'`{word}`' for word in words[:-1])} or `{words[-1]}`"


def _msr_fits(rule: ResolvedRule | ResolvedCase, dialect: str) -> bool:
    if rule.event is None or rule.event.key.word != "msr":
        return True
    return any(rule.event.key.numbers[0] in span for span in MSR_RANGES[dialect])


def _columns(rule: ResolvedRule | ResolvedCase) -> list[Column]:
    columns = {rule.event.column} if rule.event is not None else column_of_access(rule.access)
    return sorted(columns, key=lambda column: column.value)


def _code(rule: ResolvedRule) -> Iterator[ResolvedPlace]:
    yield from rule.origin
    for exemption in rule.exemptions:
        yield from exemption.code


def _rules_and_cases(policies: Policies) -> Iterator[ResolvedRule | ResolvedCase]:
    """Everything that names an event or an access, and an effect on it."""
    for policy in policies:
        yield from policy.rules
        for test in policy.tests:
            yield from test.cases
