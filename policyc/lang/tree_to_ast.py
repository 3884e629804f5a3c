"""From the parser's tree to the syntax tree.

The step is total: whatever Lark accepts becomes a node. What the grammar can't say, such as a clause given twice or a
day that doesn't exist, is collected as a diagnostic on the way.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from policyc.diagnostics import Diagnostic, Span
from policyc.lang import ast
from policyc.lang.limits import MAX_DEPTH, MAX_DURATION_MS, MAX_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lark.lexer import Token
    from lark.tree import Tree

    from policyc.diagnostics import Source

    TokenTree: TypeAlias = Tree[Token]
    Branch: TypeAlias = TokenTree | Token

__all__ = ["Builder"]

FACTORS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MILLISECONDS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}

MAX_DIGITS: Final = 20
"""Digits that a number within limits can have, leading zeros apart; more are refused before they are converted."""

CLAUSE_WORDS: Final = {
    "origin": "from",
    "condition": "when",
    "mechanism": "by",
    "reason": "because",
    "owner": "owner",
    "severity": "severity",
    "limit": "at most",
    "mode": "mode",
    "version": "version",
    "platform": "for",
}
"""The clauses that stand once in a statement, and the word that an author knows each by."""


class Builder:
    """Builds syntax trees from pieces of one source and collects what is wrong with them."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._base = 0
        self.diagnostics: list[Diagnostic] = []

    def file(self, tree: TokenTree, base: int) -> tuple[ast.Header | None, list[ast.Statement]]:
        """The header, if any, and the statements of a `policy_file` tree whose text begins at offset `base`."""
        self._base = base
        header: ast.Header | None = None
        statements: list[ast.Statement] = []
        for child in _trees(tree):
            if child.data == "header":
                header = self._header(child)
            else:
                statements.append(_STATEMENTS[str(child.data)](self, child))
        return header, statements

    def case(self, tree: TokenTree, base: int) -> ast.Case:
        """One case of a test block whose text begins at offset `base`."""
        self._base = base
        return _CASES[str(tree.data)](self, tree)

    # ---- statements

    def _header(self, tree: TokenTree) -> ast.Header:
        name, *parts = tree.children
        found = self._once(part for part in parts if not isinstance(part, str))
        version, platform, mode = found.get("version"), found.get("platform"), found.get("mode")
        return ast.Header(
            name=self._text(name),
            version=self._number(version.children[0]) if version else None,
            platform=self._platform(platform) if platform else None,
            mode=self._word(mode.children[0]) if mode else None,
            span=self._span(tree),
        )

    def _platform(self, tree: TokenTree) -> ast.Platform:
        os, arch = tree.children
        return ast.Platform(self._word(os), self._word(arch), self._span(tree))

    def _import(self, tree: TokenTree) -> ast.Import:
        return ast.Import(self._text(tree.children[0]), self._span(tree))

    def _let(self, tree: TokenTree) -> ast.Let:
        name, places = tree.children
        return ast.Let(self._word(name), self._places(places), self._span(tree))

    def _access_rule(self, tree: TokenTree) -> ast.AccessRule:
        label, (effect, accesses, places, *clauses) = self._label(tree)
        return ast.AccessRule(
            label=label,
            effect=self._effect(effect),
            accesses=tuple(self._word(access) for access in _children(accesses)),
            places=self._places(places),
            clauses=self._clauses(clauses, places),
            span=self._span(tree),
        )

    def _event_rule(self, tree: TokenTree) -> ast.EventRule:
        label, (event, *rest) = self._label(tree)
        before = [rest.pop(0)] if _name(rest[0]) == "condition" else []
        effect, *clauses = rest
        for clause in clauses:
            if _name(clause) == "condition":
                self._report(
                    "P107",
                    "the `when` of an event rule stands before its effect",
                    self._span(clause),
                    "write `on EVENT when CONDITION EFFECT`",
                )
        return ast.EventRule(
            label=label,
            event=self._event(event),
            effect=self._effect(effect),
            clauses=self._clauses([*before, *(c for c in clauses if _name(c) != "condition")], effect),
            span=self._span(tree),
        )

    def _watch(self, tree: TokenTree) -> ast.Watch:
        label, (places, period, *clauses) = self._label(tree)
        restore = self._word(clauses.pop(0)) if clauses and _name(clauses[0]) == "RESTORE" else None
        return ast.Watch(
            label=label,
            places=self._places(places),
            period=self._duration(period),
            restore=restore,
            clauses=self._clauses(clauses, tree.children[-1] if not clauses else period),
            span=self._span(tree),
        )

    def _test(self, tree: TokenTree) -> ast.Test:
        name, *cases = tree.children
        return ast.Test(
            name=self._text(name),
            cases=tuple(_CASES[_name(case)](self, case) for case in cases if not isinstance(case, str)),
            span=self._span(tree),
        )

    def _label(self, tree: TokenTree) -> tuple[ast.Word | None, list[Branch]]:
        """The label of a statement and its other branches."""
        first, *rest = tree.children
        if _name(first) != "LABEL":
            return None, tree.children
        start, end = self._place(first)
        return ast.Word(str(first)[:-1], Span(self._source, start, end - 1)), rest

    # ---- test cases

    def _access_case(self, tree: TokenTree) -> ast.AccessCase:
        access, place, *rest = tree.children
        parts = {_name(part): part for part in rest[:-1]}
        return ast.AccessCase(
            access=self._word(access),
            place=self._one_place(place),
            origin=self._one_place(_children(parts["case_origin"])[0]) if "case_origin" in parts else None,
            settings=self._settings(parts.get("settings")),
            expected=self._effect(rest[-1]),
            span=self._span(tree),
        )

    def _event_case(self, tree: TokenTree) -> ast.EventCase:
        event, *rest = tree.children
        return ast.EventCase(
            event=self._event(event),
            settings=self._settings(rest[0] if len(rest) > 1 else None),
            expected=self._effect(rest[-1]),
            span=self._span(tree),
        )

    def _settings(self, branch: Branch | None) -> tuple[ast.Setting, ...]:
        if branch is None:
            return ()
        return tuple(
            ast.Setting(self._word(name), self._expression(value), self._span(setting))
            for setting in _children(branch)
            for name, value in [_children(setting)]
        )

    # ---- parts of rules

    def _event(self, branch: Branch) -> ast.EventPattern:
        name, *arguments = _children(branch)
        return ast.EventPattern(self._word(name), tuple(map(self._event_argument, arguments)), self._span(branch))

    def _event_argument(self, branch: Branch) -> ast.Word | ast.Number | ast.Pair:
        if _name(branch) == "pair":
            first, second = _children(branch)
            return ast.Pair(self._number(first), self._number(second), self._span(branch))
        return self._word_or_number(branch)

    def _effect(self, branch: Branch, depth: int = 0) -> ast.Effect:
        span, kind = self._span(branch), _name(branch)
        keyword, *arguments = _children(branch)
        word = self._word(keyword)
        if kind == "inject_effect":
            return ast.InjectEffect(word, self._word_or_number(arguments[0]), span)
        if kind == "pin_effect":
            return ast.PinEffect(word, tuple(map(self._word, arguments)), span)
        if kind == "retry_effect" and self._deep(depth, span):
            return ast.PlainEffect(word, span)
        if kind == "retry_effect":
            return ast.RetryEffect(word, self._number(arguments[0]), self._effect(arguments[1], depth + 1), span)
        return ast.PlainEffect(word, span)

    def _clauses(self, branches: Sequence[Branch], sentence: Branch) -> ast.Clauses:
        """The clauses of a statement; `sentence` is the last branch before them."""
        trees = [branch for branch in branches if not isinstance(branch, str)]
        found = self._once(tree for tree in trees if str(tree.data) in CLAUSE_WORDS)
        condition, limit = found.get("condition"), found.get("limit")

        def word(kind: str) -> ast.Word | None:
            return self._word(found[kind].children[0]) if kind in found else None

        def text(kind: str) -> ast.Text | None:
            return self._text(found[kind].children[0]) if kind in found else None

        def texts(kind: str) -> tuple[ast.Text, ...]:
            return tuple(self._text(tree.children[0]) for tree in trees if tree.data == kind)

        end = self._place(sentence)[1]
        return ast.Clauses(
            span=self._span(trees[0]).to(self._span(trees[-1])) if trees else Span(self._source, end, end),
            origin=self._places(found["origin"].children[0]) if "origin" in found else (),
            guard=self._expression(condition.children[0]) if condition else None,
            mechanism=word("mechanism"),
            reason=text("reason"),
            owner=text("owner"),
            overriding=texts("overriding"),
            exemptions=tuple(self._exemption(tree) for tree in trees if tree.data == "exemption"),
            severity=word("severity"),
            tags=texts("tag"),
            limit=self._limit(limit) if limit else None,
            mode=word("mode"),
        )

    def _once(self, trees: Iterator[TokenTree]) -> Mapping[str, TokenTree]:
        """The trees by name; a second of one name is reported."""
        found: dict[str, TokenTree] = {}
        for tree in trees:
            name = str(tree.data)
            if name not in found:
                found[name] = tree
                continue
            self.diagnostics.append(
                Diagnostic(
                    "P109",
                    f"`{CLAUSE_WORDS[name]}` is given twice",
                    self._span(tree),
                    "keep one of the two",
                    ((self._span(found[name]), "the first is here"),),
                )
            )
        return found

    def _exemption(self, tree: TokenTree) -> ast.Exemption:
        parts = {_name(part): part for part in tree.children}

        def first(kind: str) -> Branch | None:
            return _children(parts[kind])[0] if kind in parts else None

        origin, guard, owner, until = first("origin"), first("condition"), first("owner"), first("until")
        return ast.Exemption(
            origin=self._places(origin) if origin is not None else (),
            guard=self._expression(guard) if guard is not None else None,
            reason=self._text(_children(parts["reason"])[0]),
            owner=self._text(owner) if owner is not None else None,
            until=self._date(until) if until is not None else None,
            span=self._span(tree),
        )

    def _limit(self, tree: TokenTree) -> ast.RateLimit:
        count, unit = tree.children
        return ast.RateLimit(self._number(count), self._word(unit), self._span(tree))

    # ---- places

    def _places(self, branch: Branch) -> tuple[ast.Place, ...]:
        return tuple(map(self._one_place, _children(branch)))

    def _one_place(self, branch: Branch) -> ast.Place:
        return _PLACES[_name(branch)](self, branch)

    def _section_place(self, branch: Branch) -> ast.SectionPlace:
        image, section = _children(branch)
        return ast.SectionPlace(self._word(image), self._word_or_text(section), self._span(branch))

    def _module_place(self, branch: Branch) -> ast.ModulePlace:
        module, section = _children(branch)
        return ast.ModulePlace(self._word_or_text(module), self._word_or_text(section), self._span(branch))

    def _symbol_place(self, branch: Branch) -> ast.SymbolPlace:
        token, *rest = _children(branch)
        parts = {_name(part): part for part in rest}
        start, end = self._place(token)
        image, _, symbol = str(token).partition(":")
        middle = start + len(image)
        return ast.SymbolPlace(
            image=ast.Word(image, Span(self._source, start, middle)),
            symbol=ast.Word(symbol, Span(self._source, middle + 1, end)),
            offset=self._offset(parts["offset"]) if "offset" in parts else None,
            size=self._number(_children(parts["size"])[0]) if "size" in parts else None,
            span=self._span(branch),
        )

    def _offset(self, branch: Branch) -> ast.Number:
        sign, number = _children(branch)
        size = self._number(number)
        return ast.Number(-size.value if sign == "-" else size.value, size.text, self._span(branch))

    def _physical_place(self, branch: Branch) -> ast.PhysicalPlace:
        return ast.PhysicalPlace(*self._extent(branch), self._span(branch))

    def _virtual_place(self, branch: Branch) -> ast.VirtualPlace:
        return ast.VirtualPlace(*self._extent(branch), self._span(branch))

    def _extent(self, branch: Branch) -> tuple[ast.Number, ast.Number | None, ast.Number | None]:
        """Start, end and size of a range; one of the last two is None."""
        start, bound = _children(branch)
        number = self._number(_children(bound)[0])
        return (
            self._number(start),
            (number if _name(bound) == "end" else None),
            (number if _name(bound) == "size" else None),
        )

    def _literal_place(self, branch: Branch) -> ast.LiteralPlace:
        return ast.LiteralPlace(self._number(_children(branch)[0]), self._span(branch))

    def _name_place(self, branch: Branch) -> ast.NamePlace:
        return ast.NamePlace(self._word(_children(branch)[0]), self._span(branch))

    # ---- expressions

    def _expression(self, branch: Branch, depth: int = 0) -> ast.Expression:
        kind, span = _name(branch), self._span(branch)
        if kind == "name":
            return self._word(branch)
        if kind == "number" or self._deep(depth, span):
            return self._number(_children(branch)[0]) if kind == "number" else ast.Word("", span)
        return _EXPRESSIONS[kind](self, _children(branch), span, depth + 1)

    def _operands(self, branches: Sequence[Branch], depth: int) -> tuple[ast.Expression, ...]:
        return tuple(self._expression(branch, depth) for branch in branches)

    def _or(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        return ast.Or(self._operands(branches, depth), span)

    def _and(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        return ast.And(self._operands(branches, depth), span)

    def _negation(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        return ast.Not(self._expression(branches[0], depth), span)

    def _compare(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        left, operator, right = branches
        return ast.Compare(self._expression(left, depth), self._word(operator), self._expression(right, depth), span)

    def _in_place(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        value, place = branches
        return ast.InPlace(self._expression(value, depth), self._one_place(place), span)

    def _bit_or(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        return ast.BitOp("|", self._operands(branches, depth), span)

    def _bit_and(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        return ast.BitOp("&", self._operands(branches, depth), span)

    def _complement(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        return ast.Complement(self._expression(branches[0], depth), span)

    def _call(self, branches: Sequence[Branch], span: Span, depth: int) -> ast.Expression:
        function, argument = branches
        return ast.Call(self._word(function), self._expression(argument, depth), span)

    def _deep(self, depth: int, span: Span) -> bool:
        """Whether a node lies too deep to follow; if so, it is reported."""
        if depth < MAX_DEPTH:
            return False
        self._report(
            "P124", f"this is nested more than {MAX_DEPTH} deep", Span(self._source, span.start, span.start + 1)
        )
        return True

    # ---- leaves

    def _word(self, branch: Branch) -> ast.Word:
        token = branch if isinstance(branch, str) else _children(branch)[0]
        return ast.Word(str(token), self._span(token))

    def _text(self, branch: Branch) -> ast.Text:
        return ast.Text(str(branch)[1:-1], self._span(branch))

    def _word_or_text(self, branch: Branch) -> ast.Word | ast.Text:
        return self._text(branch) if _name(branch) == "STRING" else self._word(branch)

    def _word_or_number(self, branch: Branch) -> ast.Word | ast.Number:
        return self._number(branch) if _name(branch) == "NUMBER" else self._word(branch)

    def _number(self, branch: Branch) -> ast.Number:
        text, span = str(branch), self._span(branch)
        value = number_value(text)
        if value is None:
            self._report("P112", f"`{_short(text)}` is larger than 2**64", span)
        return ast.Number(value or 0, text, span)

    def _duration(self, branch: Branch) -> ast.Duration:
        text, span = str(branch), self._span(branch)
        value = duration_value(text)
        if value is None:
            self._report("P112", f"`{_short(text)}` isn't a time between 1ms and a year", span)
        return ast.Duration(value or 1, text, span)

    def _date(self, branch: Branch) -> ast.Date:
        text, span = str(branch), self._span(branch)
        value = date_value(text)
        if value is None:
            self._report("P114", f"`{text}` is no day of the calendar", span, "a date is written YEAR-MONTH-DAY")
        return ast.Date(value or datetime.date.min, span)

    # ---- spans

    def _place(self, branch: Branch) -> tuple[int, int]:
        """The offsets of a branch in the source."""
        if isinstance(branch, str):
            return self._base + (branch.start_pos or 0), self._base + (branch.end_pos or 0)
        meta = branch.meta
        return (self._base, self._base) if meta.empty else (self._base + meta.start_pos, self._base + meta.end_pos)

    def _span(self, branch: Branch) -> Span:
        return Span(self._source, *self._place(branch))

    def _report(self, code: str, message: str, span: Span, help: str | None = None) -> None:
        self.diagnostics.append(Diagnostic(code, message, span, help))


def number_value(text: str) -> int | None:
    """The value of a number's spelling, or None if it is larger than 2**64."""
    digits, factor = (text[:-1], FACTORS[text[-1]]) if text[-1] in FACTORS else (text, 1)
    digits, base = (digits[2:], 16) if digits.startswith("0x") else (digits, 10)
    digits = digits.replace("_", "").lstrip("0") or "0"
    if len(digits) > MAX_DIGITS:
        return None
    value = int(digits, base) * factor
    return value if value <= MAX_NUMBER else None


def duration_value(text: str) -> int | None:
    """The milliseconds of a duration's spelling, or None if it is nothing or more than a year."""
    digits = text.rstrip("msh")
    unit = text[len(digits) :]
    digits = digits.lstrip("0")
    if not digits or len(digits) > MAX_DIGITS:
        return None
    value = int(digits) * MILLISECONDS[unit]
    return value if value <= MAX_DURATION_MS else None


def date_value(text: str) -> datetime.date | None:
    """The day of a date's spelling, or None if there is no such day."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def _name(branch: Branch) -> str:
    """The rule or terminal that a branch stands for."""
    return branch.type if isinstance(branch, str) else str(branch.data)


def _children(branch: Branch) -> list[Branch]:
    return [] if isinstance(branch, str) else branch.children


def _trees(tree: TokenTree) -> Iterator[TokenTree]:
    return (child for child in tree.children if not isinstance(child, str))


def _short(text: str) -> str:
    """A text fit for a message."""
    return text if len(text) <= 40 else text[:37] + "..."


_STATEMENTS: Final[Mapping[str, Callable[[Builder, TokenTree], ast.Statement]]] = {
    "import_statement": Builder._import,
    "let": Builder._let,
    "access_rule": Builder._access_rule,
    "event_rule": Builder._event_rule,
    "watch": Builder._watch,
    "test": Builder._test,
}

_CASES: Final[Mapping[str, Callable[[Builder, TokenTree], ast.Case]]] = {
    "access_case": Builder._access_case,
    "event_case": Builder._event_case,
}

_PLACES: Final[Mapping[str, Callable[[Builder, Branch], ast.Place]]] = {
    "section_place": Builder._section_place,
    "module_place": Builder._module_place,
    "symbol_place": Builder._symbol_place,
    "physical_place": Builder._physical_place,
    "virtual_place": Builder._virtual_place,
    "literal_place": Builder._literal_place,
    "name_place": Builder._name_place,
}

_EXPRESSIONS: Final[Mapping[str, Callable[[Builder, Sequence[Branch], Span, int], ast.Expression]]] = {
    "or": Builder._or,
    "and": Builder._and,
    "negation": Builder._negation,
    "compare": Builder._compare,
    "in_place": Builder._in_place,
    "bit_or": Builder._bit_or,
    "bit_and": Builder._bit_and,
    "complement": Builder._complement,
    "call": Builder._call,
}
