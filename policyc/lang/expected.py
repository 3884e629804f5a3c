"""Says in the words of the language what could have stood at a place, instead of naming the grammar's terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from policyc.lang.scan import Lexeme
    from policyc.lang.text_to_tree import Parser

__all__ = ["CLAUSES", "EFFECTS", "PLACES", "describe"]

EFFECTS: Final = frozenset({"EFFECT", "INJECT", "PIN", "RETRY"})
PLACES: Final = frozenset({"NAME", "SYMBOL", "NUMBER", "MODULE", "PHYSICAL", "VIRTUAL"})
CONDITION: Final = frozenset({"NAME", "NUMBER", "NOT", "LPAR", "TILDE"})
VALUE: Final = frozenset({"NAME", "NUMBER", "LPAR", "TILDE"})
CLAUSES: Final = frozenset(
    {"FROM", "WHEN", "BY", "BECAUSE", "OWNER", "OVERRIDING", "EXCEPT", "SEVERITY", "TAG", "AT", "MODE"}
)

GROUPS: Final = (
    (frozenset({"VERSION", "FOR"}), "the rest of the header"),
    (frozenset({"BY", "SEVERITY", "TAG"}), "a clause"),
    (frozenset({"LET", "IMPORT"}), "a new statement"),
    (PLACES, "a place such as `kernel .text`"),
    (frozenset({"COMPARISON", "AND", "OR"}), "an operator such as `==` or `and`"),
    (CONDITION, "a condition"),
    (VALUE, "a value"),
    (EFFECTS, "an effect such as `deny`"),
)
"""Sets of terminals that are one thing to the author, larger sets before those they contain."""

MEMBERS: Final = {
    "a clause": CLAUSES,
    "a new statement": frozenset({"LET", "IMPORT", "POLICY", "TEST", "WATCH", "ON", "LABEL", "$END"}) | EFFECTS,
    "an operator such as `==` or `and`": frozenset({"AMPERSAND", "VBAR", "IN", "LPAR"}),
    "the rest of the header": frozenset({"VERSION", "FOR", "MODE"}),
}
"""What else a group stands for once it is named."""

NAMES: Final = {
    "severity": "a severity such as `high`",
    "by": "`skip` or `fault`",
    "mode": "`monitor` or `enforce`",
    "on": "an event such as `cr4`",
    "per": "a unit of time such as `second`",
    "for": "an operating system such as `linux`",
    "let": "a name",
    "inject": "an exception such as `gp`",
    "pin": "a bit such as `wp`",
    "module": "the name of a module",
    "with": "a field of the event such as `old`",
}
"""What a plain name is, by the word before it."""

TERMINALS: Final = {
    "SYMBOL": "a symbol such as `kernel:schedule`",
    "SECTION": "a section such as `.text`",
    "STRING": "a text in quotes",
    "NUMBER": "a number",
    "DATE": "a date such as `2027-06-30`",
    "DURATION": "a time such as `5s`",
    "COMPARISON": "a comparison such as `==`",
    "EFFECT": "an effect such as `deny`",
    "LABEL": "a label",
    "COMMA": "`,`",
    "EQUAL": "`=`",
    "SLASH": "`/`",
    "VBAR": "`|`",
    "AMPERSAND": "`&`",
    "TILDE": "`~`",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "PLUS": "`+`",
    "MINUS": "`-`",
    "_DOTS": "`..`",
    "_ARROW": "`=>`",
    "$END": "nothing more",
}
"""Every other terminal that isn't a keyword."""

CONTINUATIONS: Final = frozenset(
    {"COMMA", "PLUS", "MINUS", "SIZE", "VBAR", "AMPERSAND", "AND", "OR", "SLASH", "SECTION", "STRING", "RESTORE"}
)
"""What merely lengthens something that is complete: left out where it could have ended."""

ENDS: Final = frozenset({"$END", "_ARROW", "EVERY", "BECAUSE"})
"""What follows a place, or the end of a statement."""


def describe(expected: frozenset[str], parser: Parser, previous: Lexeme) -> str:
    """What could have stood behind `previous`, such as "`to` or `of`"."""
    left = set(expected)
    if ENDS & left:
        left -= CONTINUATIONS
    found: list[str] = []
    for group, name in GROUPS:
        if group <= left:
            found.append(name)
            left -= group | MEMBERS.get(name, frozenset())
    found += [_terminal(terminal, parser, previous) for terminal in parser.patterns if terminal in left]
    return _listed(found if "$END" not in left else [*found, TERMINALS["$END"]])


def _terminal(terminal: str, parser: Parser, previous: Lexeme) -> str:
    if terminal == "NAME":
        if previous.text in parser.effect_words:
            return "an access such as `write`"
        return NAMES.get(previous.text, "a name")
    if terminal in parser.keywords:
        return f"`{parser.keywords[terminal]}`"
    return TERMINALS[terminal]


def _listed(parts: list[str]) -> str:
    """The parts as a list in words: `a, b or c`."""
    if len(parts) < 2:
        return "".join(parts) or "something else"
    return f"{', '.join(parts[:-1])} or {parts[-1]}"
