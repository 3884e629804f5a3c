"""A question in the words of a test case, such as `write kernel:schedule + 5 from 0xffffffffc0401000`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.compiler.cases import resolve_tests
from policyc.compiler.places import PlaceResolver
from policyc.compiler.resolved import ResolvedCase
from policyc.diagnostics import Diagnostic, Source, Span, has_errors
from policyc.lang.parse import parse
from policyc.plan.places import Lookup

__all__ = ["MAX_QUESTION_LENGTH", "ask"]

MAX_QUESTION_LENGTH = 10_000
"""Characters; far more than any question needs."""

_BEFORE = 'test "" { '
_AFTER = " => allow }"
_NAME = "<question>"
_EXAMPLES = "one access, as in `write kernel:schedule + 5`, or one event, as in `on cr4 with old = smep, new = 0`"


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """The question as the only case of a test block: the one form in which the language knows it."""

    question: Source
    text: Source

    @staticmethod
    def around(text: str) -> _Wrapped:
        after = " }" if "=>" in text else _AFTER
        return _Wrapped(Source(_NAME, text), Source(_NAME, f"{_BEFORE}{text}\n{after}"))

    def unwrapped(self, found: Sequence[Diagnostic]) -> list[Diagnostic]:
        """The diagnostics with places in the question alone."""
        return [
            replace(
                one,
                message=self._message(one),
                span=one.span and self._moved(one.span),
                notes=tuple((span and self._moved(span), text) for span, text in one.notes),
            )
            for one in found
        ]

    def _message(self, found: Diagnostic) -> str:
        """What stands behind the question was never written, so it isn't what was found there."""
        expected, comma, _ = found.message.partition(", found ")
        if not comma or found.span is None or found.span.start < len(_BEFORE) + len(self.question.text.rstrip()):
            return found.message
        return f"{expected}, and the question ends"

    def _moved(self, span: Span) -> Span:
        end = len(self.question.text)
        start, stop = (max(0, min(offset - len(_BEFORE), end)) for offset in (span.start, span.end))
        return Span(self.question, start, max(start, stop))


def ask(text: str, lookup: Lookup | None) -> tuple[ResolvedCase | None, list[Diagnostic]]:
    """The case that the question is about, or None with the reasons. What it expects, if it says so, means nothing.

    Args:
        lookup: says where symbols and sections lie.
    """
    if len(text) > MAX_QUESTION_LENGTH:
        return None, [Diagnostic("P128", f"a question has at most {MAX_QUESTION_LENGTH} characters")]
    if not text.strip():
        return None, [Diagnostic("P126", "the question is empty", None, f"ask about {_EXAMPLES}")]
    wrapped = _Wrapped.around(text)
    file, found = parse(wrapped.text, PLAIN_EFFECT_WORDS)
    if file is None:
        return None, wrapped.unwrapped(found)
    if len(file.statements) != 1 or len(file.tests) != 1 or len(file.tests[0].cases) != 1:
        whole = Span(wrapped.question, 0, len(text))
        return None, [Diagnostic("P101", "this isn't one question", whole, f"ask about {_EXAMPLES}")]
    found = []
    (test,) = resolve_tests(file.tests, PlaceResolver((), lookup, found), found)
    if has_errors(found) or not test.cases:
        return None, wrapped.unwrapped(found)
    return test.cases[0], wrapped.unwrapped(found)
