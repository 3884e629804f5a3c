"""One way to write a policy: statements in the order written, clauses in a fixed one, comments where they were.

A statement with one clause at most stands on one line if it fits there; an exception never does. Otherwise each clause
has an indented line of its own, so that a change to one is a change to one line. Between statements one blank line is
kept where the author left any.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, TypeAlias

from policyc.lang import ast
from policyc.lang.layout import INDENT, attach, comments_of, fits_one_line, lay_out, one_line
from policyc.lang.statement_lines import lines_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policyc.lang.layout import Comment, Line

    Item: TypeAlias = ast.Header | ast.Statement | ast.Case

__all__ = ["format_policy", "format_statement"]


def format_policy(file: ast.PolicyFile) -> str:
    """The canonical text of a policy, with the comments of its source. Formatting it again changes nothing."""
    body = [*([file.header] if file.header else []), *file.statements]
    block = _Block(file.source.text, comments_of(file.source.text), depth=0, lines=[])
    return "".join(f"{line}\n" for line in block.write(body, 0, len(file.source.text)))


def format_statement(statement: ast.Statement) -> str:
    """The canonical text of one statement on one line, without comments.

    Statements that are equal give equal texts, but for the spelling of their numbers.
    """
    if isinstance(statement, ast.Test):
        cases = "".join(f"{one_line(lines_of(case))} " for case in statement.cases)
        return f'test "{statement.name.text}" {{ {cases}}}'
    return one_line(lines_of(statement))


class _Block:
    """Writes what stands below each other, statements or the cases of a test, with comments and blank lines."""

    def __init__(self, text: str, comments: list[Comment], depth: int, lines: list[str]) -> None:
        self._text = text
        self._comments = comments
        self._depth = depth
        self._lines = lines
        self._first = len(lines)
        self._blank_due = False

    def write(self, body: Sequence[Item], start: int, end: int) -> list[str]:
        """All lines, for the items that stand between two offsets of the text."""
        position = start
        for item in body:
            position = self._write_comments(position, item.span.start)
            self._write_blank(position, item.span.start)
            self._lines += self._item(item)
            self._blank_due = isinstance(item, ast.Header)
            position = item.span.end
        self._write_comments(position, end)
        return self._lines

    def _write_comments(self, start: int, end: int) -> int:
        """Write the comments between two offsets; returns the end of the last one, or `start`."""
        for comment in self._within(start, end):
            if comment.own_line or not self._lines:
                self._write_blank(start, comment.start)
                self._lines.append(INDENT * self._depth + comment.text)
            else:
                self._lines[-1] += f"  {comment.text}"
            start = comment.end
        return start

    def _write_blank(self, start: int, end: int) -> None:
        """Keep a blank line that stands between two offsets, but not as the first line of the block."""
        if len(self._lines) > self._first and (self._blank_due or self._text.count("\n", start, end) > 1):
            self._lines.append("")
        self._blank_due = False

    def _item(self, item: Item) -> list[str]:
        if isinstance(item, ast.Test):
            return self._test(item)
        lines = lines_of(item, self._depth)
        attach(lines, self._within(item.span.start, item.span.end))
        at_most_one_clause = len(lines) <= 2 and not _has_exceptions(item)
        if at_most_one_clause and not isinstance(item, ast.Header) and fits_one_line(lines):
            lines = [_merged(lines)]
        return lay_out(lines)

    def _test(self, test: ast.Test) -> list[str]:
        before = self._within(test.span.start, test.cases[0].span.start if test.cases else test.span.end)
        brace = self._text.index("{", test.name.span.end)
        for comment in before:
            if comment.start < brace < comment.end:
                brace = self._text.index("{", comment.end)
        head = "  ".join([f'test "{test.name.text}" {{', *(c.text for c in before if c.start < brace)])
        block = _Block(self._text, self._comments, self._depth + 1, [head])
        return [*block.write(test.cases, brace + 1, test.span.end - 1), "}"]

    def _within(self, start: int, end: int) -> list[Comment]:
        low = bisect_left(self._comments, start, key=_start)
        return self._comments[low : bisect_left(self._comments, end, lo=low, key=_start)]


def _start(comment: Comment) -> int:
    return comment.start


def _has_exceptions(item: Item) -> bool:
    return isinstance(item, (ast.AccessRule, ast.EventRule, ast.Watch)) and bool(item.clauses.exemptions)


def _merged(lines: Sequence[Line]) -> Line:
    """All lines as one."""
    first, *others = lines
    first.atoms.extend(atom for line in others for atom in line.atoms)
    return first
