"""Reads policy files and what they import: each file once, cycles and runaway chains refused.

The compiler opens no file. Whoever calls it says what an import's path leads to, by a `Loader`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.diagnostics import Diagnostic, Source, Span
from policyc.lang import ast
from policyc.lang.parse import parse

__all__ = ["MAX_IMPORTED_FILES", "MAX_IMPORT_DEPTH", "Loader", "read_files"]

MAX_IMPORT_DEPTH = 32
"""How many files may import each other in a chain."""

MAX_IMPORTED_FILES = 1000
"""Files that may be read because others import them."""

Loader: TypeAlias = Callable[[str, str], "Source | Diagnostic"]
"""Reads an import: given the name of the file that imports and the path as written, the file, or why it is no text.

Two paths to one file must give sources of one name. It is asked for every import statement, so it had better remember.
Raises OSError where the file can't be read.
"""


def read_files(sources: Sequence[Source], load: Loader | None) -> tuple[list[ast.PolicyFile], list[Diagnostic]]:
    """Parse the sources and everything that they import.

    Returns:
        The files without a syntax error, the given ones first; and everything found.
    """
    reader = _Reader(load)
    for source in sources:
        reader.parse(source)
    for source in sources:
        reader.follow(source.name)
    return [file for file in reader.files.values() if file is not None], reader.diagnostics


class _Reader:
    """The files read so far, by name; None stands for one that has syntax errors."""

    def __init__(self, load: Loader | None) -> None:
        self.files: dict[str, ast.PolicyFile | None] = {}
        self.diagnostics: list[Diagnostic] = []
        self._load = load
        self._imported = 0
        self._followed: set[str] = set()
        self._chain: list[ast.Import] = []

    def parse(self, source: Source) -> None:
        """Parse a file that hasn't been read yet."""
        file, found = parse(source, PLAIN_EFFECT_WORDS)
        self.files[source.name] = file
        self.diagnostics.extend(found)

    def follow(self, name: str) -> None:
        """Read what the file imports, unless that has been done."""
        file = self.files[name]
        if file is None or name in self._followed:
            return
        self._followed.add(name)
        for statement in file.imports:
            target = self._target(name, statement)
            if target is None:
                continue
            self._chain.append(statement)
            if any(link.span.source.name == target for link in self._chain):
                self._report_cycle(target)
            else:
                self.follow(target)
            self._chain.pop()

    def _target(self, name: str, statement: ast.Import) -> str | None:
        """The name of the imported file, which has been read then; None where it can't be."""
        source = self._source(name, statement.path)
        if source is None:
            return None
        if source.name not in self.files:
            if len(self._chain) >= MAX_IMPORT_DEPTH:
                fact = f"files import each other in a chain of more than {MAX_IMPORT_DEPTH}"
                self._report("P217", fact, statement.path.span, "import it from a file nearer to the first")
                return None
            if self._imported >= MAX_IMPORTED_FILES:
                fact = f"more than {MAX_IMPORTED_FILES} files are imported"
                self._report("P217", fact, statement.path.span, "name the files when compiling, or put them together")
                return None
            self._imported += 1
            self.parse(source)
        return source.name

    def _source(self, name: str, path: ast.Text) -> Source | None:
        if not path.text or path.text.startswith("/"):
            fact = f"`{path.text}` is no relative path" if path.text else "an empty text names no file"
            help = "write the path from the folder of this file, such as `common/kernel.policy`"
            self._report("P215", fact, path.span, help)
            return None
        if self._load is None:
            self._report("P215", f"`{path.text}` can't be read from here", path.span)
            return None
        try:
            found = self._load(name, path.text)
        except OSError as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
            help = "paths are relative to the folder of the file that imports"
            self._report("P215", f"`{path.text}` can't be imported: {reason}", path.span, help)
            return None
        if isinstance(found, Source):
            return found
        self.diagnostics.append(replace(found, notes=(*found.notes, (path.span, "it is imported here"))))
        return None

    def _report_cycle(self, target: str) -> None:
        """The last link of the chain closes it."""
        first = next(n for n, link in enumerate(self._chain) if link.span.source.name == target)
        *links, last = self._chain[first:]
        names = [link.span.source.name for link in (*links, last)]
        self._report(
            "P216",
            f"files import each other in a circle: {' -> '.join([*names, target])}"
            if links
            else "the file imports itself",
            last.path.span,
            "leave one of the imports out: what a file imports is in force as well, wherever it is imported",
            notes=tuple((link.path.span, "which is imported here") for link in reversed(links)),
        )

    def _report(
        self,
        code: str,
        message: str,
        span: Span,
        help: str | None = None,
        notes: tuple[tuple[Span | None, str], ...] = (),
    ) -> None:
        self.diagnostics.append(Diagnostic(code, message, span, help, notes))
