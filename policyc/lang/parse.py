"""From text to the syntax tree: the one function that the rest of the tool calls to read a policy."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, TypeAlias

from policyc.diagnostics import Diagnostic, Source, Span, has_errors
from policyc.lang import ast
from policyc.lang.limits import JOINED_PIECES, MAX_ERRORS, MAX_STATEMENT_LENGTH, MAX_STATEMENTS
from policyc.lang.mistakes import explain
from policyc.lang.pieces import Splitter
from policyc.lang.read import check_text
from policyc.lang.surroundings import Surroundings
from policyc.lang.text_to_tree import Failure, load_parser
from policyc.lang.tree_to_ast import Builder

if TYPE_CHECKING:
    from collections.abc import Callable

    ReadPiece: TypeAlias = Callable[[int, int], Failure | None]
    """Reads the text between two offsets; a failure's own offsets count from the first."""

__all__ = ["parse"]


def parse(source: Source, effect_words: tuple[str, ...]) -> tuple[ast.PolicyFile | None, list[Diagnostic]]:
    """Read a policy, with these words as the effects without argument.

    All mistakes of the text are reported together, in the order of their places. The file is None if one of them is an
    error. No text makes this function raise.
    """
    diagnostics = check_text(source)
    if not any(diagnostic.code == "P123" for diagnostic in diagnostics):
        reader = _Reader(source, effect_words, {d.span.start for d in diagnostics if d.span})
        reader.read_file()
        diagnostics += reader.diagnostics
    diagnostics.sort(key=_offset)
    if len(diagnostics) > MAX_ERRORS:
        last = diagnostics[MAX_ERRORS].span
        diagnostics[MAX_ERRORS:] = [
            Diagnostic("P127", f"more than {MAX_ERRORS} errors; those from here on aren't shown", last)
        ]
    if has_errors(diagnostics):
        return None, diagnostics
    return ast.PolicyFile(
        source, reader.header, tuple(reader.statements), Span(source, 0, len(source.text))
    ), diagnostics


class _Reader:
    """Reads one source piece by piece. A mistake at one of the places `known` has been reported already."""

    def __init__(self, source: Source, effect_words: tuple[str, ...], known: set[int]) -> None:
        self._source = source
        self._text = source.text
        self._known = known
        self._parser = load_parser(effect_words)
        self._splitter = Splitter(self._parser)
        self._builder = Builder(source)
        self._errors = 0
        self.header: ast.Header | None = None
        self.statements: list[ast.Statement] = []

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """What was found, in the order in which it was found."""
        return self._builder.diagnostics

    def read_file(self) -> None:
        """Read the whole source."""
        self._read_pieces(self._splitter.starts(self._text), len(self._text), self._read_statements)
        if not self.statements and not self._errors and not has_errors(self.diagnostics):
            help = "a first rule might be `deny write to kernel .text`"
            self.diagnostics.append(Diagnostic("P126", "the policy is empty", Span(self._source, 0, 0), help))

    # ---- pieces

    def _read_pieces(self, starts: list[int], end: int, read: ReadPiece) -> None:
        """Read the text from the first start to `end`, one piece from each start to the next, and report failures."""
        position = starts[0] if starts else end
        while position < end:
            if self._errors > MAX_ERRORS:
                return
            index = bisect.bisect_right(starts, position)
            limits = [starts[index + n] if index + n < len(starts) else end for n in JOINED_PIECES]
            position = self._read_piece(position, limits, read)

    def _read_piece(self, start: int, limits: list[int], read: ReadPiece) -> int:
        """Read the piece from `start` to the first of `limits`, or, as long as it is unfinished, to a later one.

        Returns where to go on.
        """
        failure, reached = read(start, limits[0]), limits[0]
        latest, tried, may_go_on = failure, reached, True
        for limit in limits[1:]:
            if latest is None or not latest.at_end or limit == tried:
                break
            # A line that goes on is indented; an unindented one is the next statement, and not to blame.
            may_go_on = may_go_on and self._source.position(tried)[1] > 1
            latest, tried = read(start, limit), limit
            if may_go_on or latest is None:
                failure, reached = latest, tried
        if failure is None:
            return reached
        self._report(failure, start, reached, read)
        return self._splitter.resume(self._text, start + failure.start, reached)

    def _read_statements(self, start: int, end: int) -> Failure | None:
        """Read a piece as whole statements; nothing of it is kept if it fails."""
        tree = self._parser.to_tree(self._text[start : min(end, start + MAX_STATEMENT_LENGTH)])
        too_long = end - start > MAX_STATEMENT_LENGTH
        if isinstance(tree, Failure) and not (too_long and tree.at_end):
            return tree
        if isinstance(tree, Failure) or too_long:
            self._errors += 1
            self._add("P128", f"the statement is longer than {MAX_STATEMENT_LENGTH} characters", start)
            return None
        header, statements = self._builder.file(tree, start)
        if header and (self.header or self.statements):
            help = "move it to the top" if self.header is None else "keep one header"
            message = "the header stands once, before every other statement"
            self.diagnostics.append(Diagnostic("P111", message, header.span, help))
        self.header = self.header or header
        self.statements += statements
        if len(self.statements) > MAX_STATEMENTS:
            self._errors = MAX_ERRORS + 1
            self._add("P125", f"the file has more than {MAX_STATEMENTS} statements", start)
        return None

    def _read_case(self, start: int, end: int) -> Failure | None:
        """Read a piece as a case of a test block, for its mistakes alone."""
        tree = self._parser.to_tree(self._text[start:end], self._splitter.kind_of_case(self._text, start))
        if isinstance(tree, Failure):
            return tree
        self._builder.case(tree, start)
        return None

    # ---- reports

    def _report(self, failure: Failure, start: int, end: int, read: ReadPiece) -> None:
        """Report a failure of the piece from `start` to `end`, and in a test block those of its other cases."""
        errors = self._errors
        block = self._splitter.test_block(self._text, start, end)
        if read == self._read_statements and block and block[0] <= start + failure.start < block[1]:
            self._read_pieces(self._splitter.starts_of_cases(self._text, *block), block[1], self._read_case)
        if self._errors == errors:
            self._errors += 1
            if start + failure.start not in self._known:
                self.diagnostics.append(explain(Surroundings(self._source, self._parser, start, end, failure)))

    def _add(self, code: str, message: str, offset: int) -> None:
        self.diagnostics.append(Diagnostic(code, message, Span(self._source, offset, offset + 1)))


def _offset(diagnostic: Diagnostic) -> int:
    return diagnostic.span.start if diagnostic.span else -1
