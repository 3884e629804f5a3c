"""What the VMM lets the tool use: QEMU's `command` and `event` properties, by number or by name."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policyc.kvmi import Dialect, EventKind
    from policyc.kvmi.messages import Command

__all__ = ["allowed_commands", "allowed_events"]

T = TypeVar("T")


def allowed_commands(dialect: Dialect, words: Iterable[str]) -> frozenset[type[Command]] | None:
    """The commands that are allowed; None for all, where none is named.

    Args:
        words: numbers as on the wire, or names such as `set-page-access`.

    Raises:
        ValueError: the dialect has no such command.
    """
    named = {_kebab(command.__name__): command for command in dialect.commands}
    numbered = {row.id: command for command, row in dialect.commands.items()}
    return _chosen(f"command of {dialect.name}", words, named, numbered)


def allowed_events(dialect: Dialect, words: Iterable[str]) -> frozenset[EventKind] | None:
    """The same for events, whose names are those of `EventKind`.

    Raises:
        ValueError: the dialect has no such event.
    """
    named = {kind.value: kind for kind in dialect.events}
    numbered = {row.id: kind for kind, row in dialect.events.items()}
    return _chosen(f"event of {dialect.name}", words, named, numbered)


def _chosen(what: str, words: Iterable[str], named: Mapping[str, T], numbered: Mapping[int, T]) -> frozenset[T] | None:
    chosen: set[T] = set()
    for word in words:
        found = numbered.get(int(word)) if word.isdecimal() and len(word) < 10 else named.get(word)
        if found is None:
            close = get_close_matches(word, named, 1)
            hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(named)}"
            raise ValueError(f"no {what} is `{word}`; {hint}")
        chosen.add(found)
    return frozenset(chosen) or None


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
