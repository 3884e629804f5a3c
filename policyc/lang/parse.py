"""From text to the syntax tree: the one function that the rest of the tool calls to read a policy."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, TypeAlias

from policyc.diagnostics import Diagnostic, Source, Span, has_errors
from policyc.lang import ast
from policyc.lang.collector import collector_paused
from policyc.lang.limits import JOINED_PIECES, MAX_ERRORS, MAX_STATEMENT_LENGTH, MAX_STATEMENTS
from policyc.lang.mistakes import explain
from policyc.lang.pieces import Splitter
from policyc.lang.read import check_text
from policyc.lang.surroundings import Surroundings
from policyc.lang.text_to_tree import Failure, load_parser
from policyc.lang.tree_to_ast import tree_to_case, tree_to_statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    ReadPiece: TypeAlias = Callable[[int, int], Failure | None]
    """Reads the text between two offsets; a failure's own offsets count from the first."""

__all__ = ["parse"]


def parse(source: Source, effect_words: tuple[str, ...]) -> tuple[ast.PolicyFile | None, list[Diagnostic]]:
    """Read a policy, with these words as the effects without argument.

    All mistakes of the text are reported together, in the order of their places. The file is None if one of them is an
    error. No text makes this function raise.
    """
    diagnostics = check_text(source)
    reader = _Reader(source, effect_words, diagnostics)
    if not any(diagnostic.code == "P123" for diagnostic in diagnostics):
        with collector_paused():
            reader.read_file()
    diagnostics.sort(key=_offset)
    if len(diagnostics) > MAX_ERRORS:
        last = diagnostics[MAX_ERRORS].span
        message = f"more than {MAX_ERRORS} errors; those from here on aren't shown"
        diagnostics[MAX_ERRORS:] = [Diagnostic("P127", message, last)]
    if has_errors(diagnostics):
        return None, diagnostics
    whole = Span(source, 0, len(source.text))
    return ast.PolicyFile(source, reader.header, tuple(reader.statements), whole), diagnostics


class _Reader:
    """Reads one source piece by piece, and adds what is wrong with it to `diagnostics`."""

    def __init__(self, source: Source, effect_words: tuple[str, ...], diagnostics: list[Diagnostic]) -> None:
        self._source = source
        self._text = source.text
        self._diagnostics = diagnostics
        self._reported = {diagnostic.span.start for diagnostic in diagnostics if diagnostic.span}
        self._parser = load_parser(effect_words)
        self._splitter = Splitter(self._parser)
        self._errors = 0
        self.header: ast.Header | None = None
        self.statements: list[ast.Statement] = []

    def read_file(self) -> None:
        """Read the whole source."""
        self._read_pieces(self._splitter.starts(self._text), len(self._text), self._read_statements)
        if not self.statements and not self._errors and not has_errors(self._diagnostics):
            help = "a first rule might be `deny write to kernel .text`"
            self._diagnostics.append(Diagnostic("P126", "the policy is empty", Span(self._source, 0, 0), help))

    # ---- pieces

    def _read_pieces(self, starts: list[int], end: int, read: ReadPiece) -> None:
        """Read the text from the first start to `end`, one piece from each start to the next, and report failures."""
        position = starts[0] if starts else end
        while position < end and self._errors <= MAX_ERRORS:
            index = bisect.bisect_right(starts, position)
            first = starts[index] if index < len(starts) else end
            failure = read(position, first)
            if failure is None:
                position = first
                continue
            limits = [starts[index + n] if index + n < len(starts) else end for n in JOINED_PIECES]
            position = self._read_longer(position, limits, failure, read)

    def _read_longer(self, start: int, limits: list[int], failure: Failure, read: ReadPiece) -> int:
        """The piece from `start` to the first of `limits` failed: if it is unfinished, read up to a later one.

        Returns where to go on.
        """
        latest = failure
        reached = tried = limits[0]
        may_go_on = True
        for limit in limits[1:]:
            if not latest.at_end or limit == tried:
                break
            # A line that goes on is indented; an unindented one is the next statement, and not to blame.
            may_go_on = may_go_on and self._source.position(tried)[1] > 1
            longer = read(start, limit)
            if longer is None:
                return limit
            latest, tried = longer, limit
            if may_go_on:
                failure, reached = latest, tried
        self._report(failure, start, reached, read)
        return self._splitter.resume(self._text, start + failure.start, reached)

    def _read_statements(self, start: int, end: int) -> Failure | None:
        """Read a piece as whole statements; nothing of it is kept if it fails."""
        known = self._parser.shapes.build(self._source, start, end)
        if known is not None:
            self._add_statements(known, start)
            return None
        too_long = end - start > MAX_STATEMENT_LENGTH
        tree = self._parser.to_tree(self._text[start : min(end, start + MAX_STATEMENT_LENGTH)])
        if isinstance(tree, Failure) and not (too_long and tree.at_end):
            return tree
        if isinstance(tree, Failure) or too_long:
            self._errors += 1
            self._report_start("P128", f"the statement is longer than {MAX_STATEMENT_LENGTH} characters", start)
            return None
        before = len(self._diagnostics)
        header, statements = tree_to_statements(tree, self._source, start, self._diagnostics)
        if header:
            self._check_header(header)
        elif len(self._diagnostics) == before:
            self._parser.shapes.learn(self._source, start, end, statements)
        self._add_statements(statements, start)
        return None

    def _read_case(self, start: int, end: int) -> Failure | None:
        """Read a piece as a case of a test block, for its mistakes alone."""
        tree = self._parser.to_tree(self._text[start:end], self._splitter.kind_of_case(self._text, start))
        if isinstance(tree, Failure):
            return tree
        tree_to_case(tree, self._source, start, self._diagnostics)
        return None

    # ---- reports

    def _add_statements(self, statements: Iterable[ast.Statement], start: int) -> None:
        self.statements += statements
        if len(self.statements) > MAX_STATEMENTS:
            self._errors = MAX_ERRORS + 1
            self._report_start("P125", f"the file has more than {MAX_STATEMENTS} statements", start)

    def _check_header(self, header: ast.Header) -> None:
        if self.header or self.statements:
            message = "the header stands once, before every other statement"
            help = "keep one header" if self.header else "move it to the top"
            self._diagnostics.append(Diagnostic("P111", message, header.span, help))
        self.header = self.header or header

    def _report(self, failure: Failure, start: int, end: int, read: ReadPiece) -> None:
        """Report a failure of the piece from `start` to `end`, and in a test block those of its other cases."""
        errors = self._errors
        block = self._splitter.test_block(self._text, start, end)
        if read == self._read_statements and block and block[0] <= start + failure.start < block[1]:
            self._read_pieces(self._splitter.starts_of_cases(self._text, *block), block[1], self._read_case)
        if self._errors == errors:
            self._errors += 1
            # A character that can't be seen has been reported as what it is.
            if start + failure.start not in self._reported:
                self._diagnostics.append(explain(Surroundings(self._source, self._parser, start, end, failure)))

    def _report_start(self, code: str, message: str, offset: int) -> None:
        self._diagnostics.append(Diagnostic(code, message, Span(self._source, offset, offset + 1)))


def _offset(diagnostic: Diagnostic) -> int:
    return diagnostic.span.start if diagnostic.span else -1
