"""What is said about a case that failed: what was expected, what the policy says, and which rules make it say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from policyc.analysis.addresses import address_text
from policyc.analysis.cases import Answer, CaseResult, Unit
from policyc.analysis.probes import MAX_PROBES
from policyc.analysis.reasons import bystanders, lifting, strictest_first, why_not
from policyc.analysis.wording import access_text, count, effect_text
from policyc.diagnostics import Diagnostic, Source, Span
from policyc.guest.profile import Profile
from policyc.plan.accesses import MemoryAccess
from policyc.plan.model import Plan
from policyc.plan.places import Base
from policyc.plan.verdicts import Verdict

__all__ = ["MAX_RULES_TOLD", "failure", "span_of_rule"]

MAX_RULES_TOLD = 8
"""Rules that one failure is explained by; the rest is counted."""

Note = tuple[Span | None, str]


def failure(result: CaseResult, test: str, unit: Unit, profile: Profile) -> Diagnostic:
    """Why the case failed, which it must have."""
    case, failing = result.case, result.failing
    event = case.event.key if case.event is not None else None
    expected = effect_text(case.effect, event)
    if failing is None:
        fact = f"test `{test}`: the case comes to more than {MAX_PROBES} accesses"
        return Diagnostic("P802", fact, case.asked_span, "ask about fewer places, or from fewer")
    if failing.missing:
        fields = " and ".join(f"`{word}`" for word in failing.missing)
        fact = f"test `{test}` expects `{expected}`, but the verdict turns on {fields}"
        example = ", ".join(f"{word} = …" for word in failing.missing)
        help: str | None = f"say it in the case, before `=>`: `with {example}`"
        code = "P802"
    else:
        fact = f"test `{test}` expects `{expected}`, but the policy says `{effect_text(failing.verdict.would, event)}`"
        code, help = "P801", None
    notes = (*_where(failing, profile), *_rules(unit, failing))
    return Diagnostic(code, fact, case.asked_span, help, notes)


def span_of_rule(plan: Plan, index: int, sources: Mapping[str, Source]) -> Span | None:
    """Where the rule was written, if the text is at hand."""
    span = plan.spans[index]
    source = sources.get(plan.sources[span.file].path)
    return None if source is None else Span(source, span.start, span.end)


def _where(failing: Answer, profile: Profile) -> Iterator[Note]:
    """The very bytes, and who touches them."""
    asked = failing.asked
    rip = failing.probe.rip
    by = "" if rip is None else f" by code at {address_text(Base.VIRTUAL, rip, profile)}"
    if isinstance(asked, MemoryAccess):
        size = count(asked.size or 0, "byte")
        yield None, f"asked: {access_text(asked.access)} {size} at {address_text(asked.base, asked.start, profile)}{by}"
    elif by:
        yield None, f"asked:{by}"


def _rules(unit: Unit, failing: Answer) -> Iterator[Note]:
    told = list(_all_rules(unit, failing))
    yield from told[:MAX_RULES_TOLD]
    if len(told) > MAX_RULES_TOLD:
        yield None, f"{count(len(told) - MAX_RULES_TOLD, 'more rule')} about it"
    if not told:
        what = "these bytes" if isinstance(failing.asked, MemoryAccess) else "this event"
        yield None, f"no rule is about {what}"


def _all_rules(unit: Unit, failing: Answer) -> Iterator[Note]:
    """Every rule about these bytes or this event, those first that count most."""
    plan, table, verdict = unit.plan, unit.tables.verdicts, failing.verdict

    def note(index: int, text: str) -> Note:
        return span_of_rule(plan, index, unit.sources), f"this rule {text}"

    for place, index in enumerate(strictest_first(plan, verdict)):
        yield note(index, f"{'decides' if place == 0 else 'applies too'}: {_said(plan, index, verdict)}")
    for index in verdict.set_aside:
        yield note(index, "is set aside by an `allow`")
    for index in verdict.exempted:
        exemptions = [plan.rules[index].exemptions[number] for number in lifting(table, failing.asked, index)]
        reasons = " and ".join(f"`{exemption.because}`" for exemption in exemptions)
        yield note(index, f"makes an exception here, because {reasons}")
    for index in bystanders(table, failing.asked, verdict):
        yield note(index, f"has no say: {why_not(table, failing.asked, index).value}")


def _said(plan: Plan, index: int, verdict: Verdict) -> str:
    """The rule's effect, and what becomes of it in monitor mode."""
    rule = plan.rules[index]
    text = f"`{effect_text(rule.effect, rule.event)}`"
    if rule.enforce:
        return text
    return f"{text}, in monitor mode, where the reply is `{effect_text(verdict.effect, rule.event)}`"
