"""The rows that findings are made of: when something is to be said, and in which words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from policyc.diagnostics import printable
from policyc.runtime.doctor_case import Case, Finding, Level

__all__ = ["Row", "apply", "each", "when"]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that may be said of a case, any number of times."""

    code: str
    level: Level
    facts: Callable[[Case], Iterable[str]]
    help: str | None = None


def when(code: str, level: Level, applies: Callable[[Case], bool], fact: str, help: str | None = None) -> Row:
    """A row that says the same whenever it applies."""
    return Row(code, level, lambda case: (fact,) if applies(case) else (), help)


def each(code: str, level: Level, facts: Callable[[Case], Iterable[str]], help: str | None = None) -> Row:
    """A row that finds its words in the case: none, one, or several sentences."""
    return Row(code, level, facts, help)


def apply(rows: Iterable[Row], case: Case) -> Iterator[Finding]:
    """What the rows have to say of a case, in their order."""
    for row in rows:
        for fact in row.facts(case):
            yield Finding(row.code, row.level, printable(fact), row.help)
