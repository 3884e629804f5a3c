"""What `policyc explain` has to say, for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from policyc.analysis.explanation import Explanation, on_the_wire
from policyc.analysis.page_map import GuardedPages, page_map
from policyc.analysis.wording import access_text, effect_text, event_text, exemption_text, rule_text, watch_text
from policyc.cli.explain_printer import Printer
from policyc.compiler.resolved import ResolvedCase
from policyc.plan.accesses import MemoryAccess
from policyc.plan.model import Rule, SourceSpan, Watch

__all__ = ["JsonPrinter"]


class JsonPrinter(Printer):
    """Prints one JSON document a question."""

    def answer(self, case: ResolvedCase, explained: Sequence[Explanation]) -> str:
        pages = page_map(self._plan) if case.event is None else ()
        return _dumped({"version": 1, "answers": [self._answer(case, one, pages) for one in explained]})

    def pages(self) -> str:
        return _dumped({"version": 1, "pages": [self._run(run) for run in page_map(self._plan, self._profile)]})

    def rules(self) -> str:
        rules = [self._rule(index) for index in range(len(self._plan.rules))]
        watches = [self._watch(index) for index in range(len(self._plan.watches))]
        return _dumped({"version": 1, "rules": rules, "watches": watches})

    def _answer(self, case: ResolvedCase, one: Explanation, pages: Sequence[GuardedPages]) -> dict[str, object]:
        said, event = one.answer, case.event.key if case.event is not None else None
        document: dict[str, object] = {
            "event": None if event is None else event_text(event),
            "access": None,
            "rip": None if said.probe.rip is None else hex(said.probe.rip),
            "effect": effect_text(said.verdict.effect, event),
            "would": effect_text(said.verdict.would, event),
            "missing": list(said.missing),
            "mildest": effect_text(said.mildest, event),
            "wire": dict(on_the_wire(said.asked, said.verdict.effect)),
            "rules": [{"role": part.role.value, "detail": part.detail} | self._rule(part.rule) for part in one.parts],
        }
        if isinstance(said.asked, MemoryAccess):
            run = self._pages_under(said.asked, pages)
            document["access"] = {
                "kind": access_text(said.asked.access),
                "base": said.asked.base.word,
                "start": hex(said.asked.start),
                "size": said.asked.size,
                "name": self._address(said.asked.base, said.asked.start),
                "ranges": [
                    {"start": hex(span.start), "end": hex(span.end), "name": self._address(span.base, span.start)}
                    for span in one.spans
                ],
                "page_rights": "rwx" if run is None else run.run.allowed.rwx,
                "collateral": said.verdict.collateral,
            }
        return document

    def _run(self, run: GuardedPages) -> dict[str, object]:
        return {
            "base": run.span.base.word,
            "start": hex(run.span.start),
            "end": hex(run.span.end),
            "pages": run.run.pages,
            "rights": run.run.allowed.rwx,
            "guarded": run.run.guarded,
            "collateral": run.run.collateral,
            "rules": [self._rule(index) for index in run.rules],
            "neighbours": [{"name": n.name, "start": hex(n.start), "size": n.size} for n in run.neighbours],
            "more_neighbours": run.more_neighbours,
        }

    def _rule(self, index: int) -> dict[str, object]:
        rule = self._plan.rules[index]
        exceptions = [
            {"text": exemption_text(self._plan, e), "because": e.because, "owner": e.owner, "until": e.until}
            for e in rule.exemptions
        ]
        text = {"policy": self._plan.policies[rule.policy].name, "rule": rule.id, "text": rule_text(self._plan, index)}
        return {**text, **self._facts(rule, self._plan.spans[index]), "exceptions": exceptions}

    def _watch(self, index: int) -> dict[str, object]:
        watch = self._plan.watches[index]
        name = self._plan.policies[watch.policy].name
        text = {"policy": name, "watch": watch.id, "text": watch_text(self._plan, index)}
        return {**text, **self._facts(watch, self._plan.watch_spans[index])}

    def _facts(self, stated: Rule | Watch, span: SourceSpan) -> dict[str, object]:
        limit = stated.record.limit
        return {
            "mode": "enforce" if stated.enforce else "monitor",
            "severity": stated.record.severity,
            "limit": None if limit is None else {"count": limit.count, "per": limit.per},
            "bytes": self._bytes_of(stated),
            "file": self._plan.sources[span.file].path,
            "line": span.line,
        }


def _dumped(document: Mapping[str, object]) -> str:
    return json.dumps(document, indent=2) + "\n"
