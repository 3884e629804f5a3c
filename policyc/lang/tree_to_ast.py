"""From the parser's tree to the syntax tree.

The step is total: whatever Lark accepts becomes a node. What the grammar can't say, such as a clause given twice or a
day that doesn't exist, is collected as a diagnostic on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from policyc.diagnostics import Diagnostic, Span
from policyc.lang import ast
from policyc.lang.leaves import Leaves, children, kind
from policyc.lang.tree_to_parts import effect, event, expression, place, places, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from policyc.diagnostics import Source
    from policyc.lang.leaves import Branch, TokenTree

    ReadStatement: TypeAlias = Callable[[Leaves, TokenTree], ast.Statement]
    ReadCase: TypeAlias = Callable[[Leaves, TokenTree], ast.Case]

__all__ = ["CASES", "STATEMENTS", "tree_to_case", "tree_to_statements"]

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


def tree_to_statements(
    tree: TokenTree, source: Source, base: int, diagnostics: list[Diagnostic]
) -> tuple[ast.Header | None, list[ast.Statement]]:
    """The header, if any, and the statements of a piece of the source that begins at offset `base`.

    What is wrong with them is added to `diagnostics`.
    """
    leaves = Leaves(source, base, diagnostics)
    header: ast.Header | None = None
    statements: list[ast.Statement] = []
    for child in _trees(tree.children):
        if child.data == "header":
            header = _header(leaves, child)
        else:
            statements.append(STATEMENTS[str(child.data)](leaves, child))
    return header, statements


def tree_to_case(tree: TokenTree, source: Source, base: int, diagnostics: list[Diagnostic]) -> ast.Case:
    """The case of a test block in a piece of the source that begins at offset `base`."""
    return CASES[str(tree.data)](Leaves(source, base, diagnostics), tree)


# ---- statements


def _header(leaves: Leaves, tree: TokenTree) -> ast.Header:
    name, *parts = tree.children
    found = _once(leaves, _trees(parts))
    version, platform, mode = found.get("version"), found.get("platform"), found.get("mode")
    return ast.Header(
        name=leaves.text(name),
        version=leaves.number(version.children[0]) if version else None,
        platform=_platform(leaves, platform) if platform else None,
        mode=leaves.word(mode.children[0]) if mode else None,
        span=leaves.span(tree),
    )


def _platform(leaves: Leaves, tree: TokenTree) -> ast.Platform:
    os, arch = tree.children
    return ast.Platform(leaves.word(os), leaves.word(arch), leaves.span(tree))


def _import(leaves: Leaves, tree: TokenTree) -> ast.Import:
    return ast.Import(leaves.text(tree.children[0]), leaves.span(tree))


def _let(leaves: Leaves, tree: TokenTree) -> ast.Let:
    name, places_ = tree.children
    return ast.Let(leaves.word(name), places(leaves, places_), leaves.span(tree))


def _access_rule(leaves: Leaves, tree: TokenTree) -> ast.AccessRule:
    label, (verdict, accesses, places_, *clauses) = _label(leaves, tree)
    return ast.AccessRule(
        label=label,
        effect=effect(leaves, verdict),
        accesses=tuple(leaves.word(access) for access in children(accesses)),
        places=places(leaves, places_),
        clauses=_clauses(leaves, clauses, places_),
        span=leaves.span(tree),
    )


def _event_rule(leaves: Leaves, tree: TokenTree) -> ast.EventRule:
    label, (pattern, *rest) = _label(leaves, tree)
    before = [rest.pop(0)] if kind(rest[0]) == "condition" else []
    verdict, *clauses = rest
    for clause in clauses:
        if kind(clause) == "condition":
            message, help = (
                "the `when` of an event rule stands before its effect",
                "write `on EVENT when CONDITION EFFECT`",
            )
            leaves.report("P107", message, leaves.span(clause), help)
    return ast.EventRule(
        label=label,
        event=event(leaves, pattern),
        effect=effect(leaves, verdict),
        clauses=_clauses(leaves, [*before, *(c for c in clauses if kind(c) != "condition")], verdict),
        span=leaves.span(tree),
    )


def _watch(leaves: Leaves, tree: TokenTree) -> ast.Watch:
    label, (places_, period, *clauses) = _label(leaves, tree)
    restore = clauses.pop(0) if clauses and kind(clauses[0]) == "RESTORE" else None
    return ast.Watch(
        label=label,
        places=places(leaves, places_),
        period=leaves.duration(period),
        restore=None if restore is None else leaves.word(restore),
        clauses=_clauses(leaves, clauses, period if restore is None else restore),
        span=leaves.span(tree),
    )


def _test(leaves: Leaves, tree: TokenTree) -> ast.Test:
    name, *cases = tree.children
    return ast.Test(
        name=leaves.text(name),
        cases=tuple(CASES[str(case.data)](leaves, case) for case in _trees(cases)),
        span=leaves.span(tree),
    )


def _label(leaves: Leaves, tree: TokenTree) -> tuple[ast.Word | None, list[Branch]]:
    """The label of a statement, without its colon, and the other branches."""
    first, *rest = tree.children
    if kind(first) != "LABEL":
        return None, tree.children
    start, end = leaves.place(first)
    return ast.Word(str(first)[:-1], Span(leaves.source, start, end - 1)), rest


STATEMENTS: Final[Mapping[str, ReadStatement]] = {
    "import_statement": _import,
    "let": _let,
    "access_rule": _access_rule,
    "event_rule": _event_rule,
    "watch": _watch,
    "test": _test,
}


# ---- test cases


def _access_case(leaves: Leaves, tree: TokenTree) -> ast.AccessCase:
    access, target, *rest = tree.children
    parts = {kind(part): part for part in rest[:-1]}
    origin = parts.get("case_origin")
    return ast.AccessCase(
        access=leaves.word(access),
        place=place(leaves, target),
        origin=None if origin is None else place(leaves, children(origin)[0]),
        settings=settings(leaves, parts.get("settings")),
        expected=effect(leaves, rest[-1]),
        span=leaves.span(tree),
    )


def _event_case(leaves: Leaves, tree: TokenTree) -> ast.EventCase:
    pattern, *rest = tree.children
    return ast.EventCase(
        event=event(leaves, pattern),
        settings=settings(leaves, rest[0] if len(rest) > 1 else None),
        expected=effect(leaves, rest[-1]),
        span=leaves.span(tree),
    )


CASES: Final[Mapping[str, ReadCase]] = {"access_case": _access_case, "event_case": _event_case}


# ---- clauses


def _clauses(leaves: Leaves, branches: Sequence[Branch], sentence: Branch) -> ast.Clauses:
    """The clauses of a statement; `sentence` is the last branch before them."""
    trees = _trees(branches)
    found = _once(leaves, (tree for tree in trees if str(tree.data) in CLAUSE_WORDS))
    origin, condition, limit = found.get("origin"), found.get("condition"), found.get("limit")

    def word(name: str) -> ast.Word | None:
        return leaves.word(found[name].children[0]) if name in found else None

    def text(name: str) -> ast.Text | None:
        return leaves.text(found[name].children[0]) if name in found else None

    def texts(name: str) -> tuple[ast.Text, ...]:
        return tuple(leaves.text(tree.children[0]) for tree in trees if tree.data == name)

    end = leaves.place(sentence)[1]
    return ast.Clauses(
        span=leaves.span(trees[0]).to(leaves.span(trees[-1])) if trees else Span(leaves.source, end, end),
        origin=places(leaves, origin.children[0]) if origin else (),
        guard=expression(leaves, condition.children[0]) if condition else None,
        mechanism=word("mechanism"),
        reason=text("reason"),
        owner=text("owner"),
        overriding=texts("overriding"),
        exemptions=tuple(_exemption(leaves, tree) for tree in trees if tree.data == "exemption"),
        severity=word("severity"),
        tags=texts("tag"),
        limit=_limit(leaves, limit) if limit else None,
        mode=word("mode"),
    )


def _once(leaves: Leaves, trees: Iterable[TokenTree]) -> Mapping[str, TokenTree]:
    """The trees by name; a second of one name is reported."""
    found: dict[str, TokenTree] = {}
    for tree in trees:
        name = str(tree.data)
        if name not in found:
            found[name] = tree
            continue
        message, note = f"`{CLAUSE_WORDS[name]}` is given twice", (leaves.span(found[name]), "the first is here")
        leaves.diagnostics.append(Diagnostic("P109", message, leaves.span(tree), "keep one of the two", (note,)))
    return found


def _exemption(leaves: Leaves, tree: TokenTree) -> ast.Exemption:
    parts = {str(part.data): part.children[0] for part in _trees(tree.children)}
    return ast.Exemption(
        origin=places(leaves, parts["origin"]) if "origin" in parts else (),
        guard=expression(leaves, parts["condition"]) if "condition" in parts else None,
        reason=leaves.text(parts["reason"]),
        owner=leaves.text(parts["owner"]) if "owner" in parts else None,
        until=leaves.date(parts["until"]) if "until" in parts else None,
        span=leaves.span(tree),
    )


def _limit(leaves: Leaves, tree: TokenTree) -> ast.RateLimit:
    count, unit = tree.children
    return ast.RateLimit(leaves.number(count), leaves.word(unit), leaves.span(tree))


def _trees(branches: Sequence[Branch]) -> list[TokenTree]:
    """The branches that are rules."""
    return [branch for branch in branches if not isinstance(branch, str)]
