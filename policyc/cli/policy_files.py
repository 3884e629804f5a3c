"""Finds the policy files that a command names: files as they are, every `*.policy` in and below a folder, `-` once.

What those import is read when the compiler asks for it.

Names differ for two readers. A plan keeps paths relative to the folder of the first input, so that it is the same from
wherever it was compiled; the user reads the paths as they were typed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from policyc.cli.artifact_files import STDIN, read_file, shown_name
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.diagnostics import Diagnostic, Source, Span
from policyc.lang.limits import MAX_FILE_BYTES
from policyc.lang.read import decode_source

__all__ = ["MAX_POLICY_FILES", "POLICY_SUFFIX", "PolicyFiles", "read_policies"]

POLICY_SUFFIX = ".policy"

MAX_POLICY_FILES = 10_000
"""Files of one call; a folder that holds more was hardly meant."""


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """What was read.

    Attributes:
        sources: the files that are text, under the names that a plan keeps.
        unreadable: why the others aren't.
    """

    sources: tuple[Source, ...]
    unreadable: tuple[Diagnostic, ...]
    _home: Path
    _typed: dict[str, Source]

    def __len__(self) -> int:
        return len(self.sources) + len(self.unreadable)

    def load(self, importer: str, path: str) -> Source | Diagnostic:
        """The file that `path`, in the file called `importer`, means; or why it isn't text.

        Raises:
            OSError: it can't be read.
        """
        folder = Path.cwd() if importer == shown_name(STDIN) else (self._home / importer).parent
        kept = _kept(str(folder / path), self._home)
        if kept not in self._typed:
            shown = os.path.normpath(Path(self._typed[importer].name).parent / path)
            read = decode_source(shown, read_file(str(folder / path), limit=MAX_FILE_BYTES))
            if isinstance(read, Diagnostic):
                return read
            self._typed[kept] = read
        return Source(kept, self._typed[kept].text)

    def as_typed(self, diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
        """`diagnostics`, which point into `sources`, under the names that the user typed."""
        return [self._as_typed(diagnostic) for diagnostic in diagnostics]

    def _as_typed(self, diagnostic: Diagnostic) -> Diagnostic:
        notes = tuple((span and self.span_as_typed(span), text) for span, text in diagnostic.notes)
        return replace(diagnostic, span=diagnostic.span and self.span_as_typed(diagnostic.span), notes=notes)

    def span_as_typed(self, span: Span) -> Span:
        """`span`, which lies in one of `sources`, under the name that the user typed."""
        return replace(span, source=self._typed.get(span.source.name, span.source))


def read_policies(names: Sequence[str]) -> PolicyFiles:
    """Read every policy file that `names` mean, each once, in the order of `names` and of paths within a folder.

    Raises:
        OSError: a file can't be read.
        CommandError: a name is empty, a folder has no policy file, or there are too many.
    """
    first = Path(names[0])
    home = Path.cwd() if names[0] == STDIN else first if first.is_dir() else first.parent
    sources: list[Source] = []
    unreadable: list[Diagnostic] = []
    typed: dict[str, Source] = {}
    for name in _files(names):
        kept = shown_name(name) if name == STDIN else _kept(name, home)
        if kept in typed:
            continue
        read = decode_source(shown_name(name), read_file(name, limit=MAX_FILE_BYTES))
        if isinstance(read, Diagnostic):
            unreadable.append(read)
            continue
        typed[kept] = read
        sources.append(Source(kept, read.text))
    return PolicyFiles(tuple(sources), tuple(unreadable), home, typed)


def _kept(name: str, home: Path) -> str:
    """The name that a plan keeps: the same for every way to write the path."""
    return Path(os.path.relpath(name, home)).as_posix()


def _files(names: Sequence[str]) -> Iterator[str]:
    """Each of `names` with folders replaced by their policy files."""
    count = 0
    for name in names:
        if not name:
            # It would mean the current folder, which an unset variable of a shell script never does.
            raise CommandError(ExitCode.USAGE, "an empty text names no file")
        for file in _files_below(name) if name != STDIN and Path(name).is_dir() else [name]:
            count += 1
            if count > MAX_POLICY_FILES:
                raise CommandError(ExitCode.USAGE, f"there are more than {MAX_POLICY_FILES} policy files")
            yield file


def _files_below(folder: str) -> list[str]:
    found = sorted(str(path) for path in Path(folder).rglob(f"*{POLICY_SUFFIX}") if path.is_file())
    if not found:
        fact = f"`{shown_name(folder)}` has no file called *{POLICY_SUFFIX}"
        raise CommandError(ExitCode.USAGE, fact, help="files of another name can be given one by one")
    return found
