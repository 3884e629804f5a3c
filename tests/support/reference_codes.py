"""For each code of a diagnostic, policies that have the mistake, what to do about it, and the policies without it.

docs/reference/diagnostics.md is made of these, with what `policyc` really says about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["FILE_NAME", "CodeExample", "Files"]

FILE_NAME = "example.policy"
"""How an example of one file is called."""

MAX_SHOWN = 250
"""Characters of an example that is shown whole."""

Files: TypeAlias = "Mapping[str, str | bytes]"
"""Policy files by name."""


@dataclass(frozen=True, slots=True)
class CodeExample:
    """One code's mistake, before and after.

    Attributes:
        fix: what to do, in a sentence or two.
        wrong: the files with the mistake, a text alone under `FILE_NAME`; empty for a code that no file brings about.
        right: the same files without it; empty where there is nothing to show.
        named: the files that the command names, where that isn't all of them.
        instead: what stands in the document before the files, or in the place of files that are too long for it.
        command: the command that finds the mistake.
        wrong_options: what the command is given with the wrong files, where they are wrong only then.
        right_options: what the command is given with the right files, where the files are right already.
        symbols: lines of a System.map that the kernel has besides those of the small guest.
        sized: whether the profile is of the kind that has sizes, though none of these symbols'.
    """

    code: str
    fix: str
    wrong: str | bytes | Files = field(default_factory=dict)
    right: str | bytes | Files = field(default_factory=dict)
    named: tuple[str, ...] = ()
    instead: str | None = None
    command: str = "check"
    wrong_options: str = ""
    right_options: str = ""
    symbols: str = ""
    sized: bool = False

    @property
    def wrong_files(self) -> Files:
        """The files with the mistake, by name."""
        return _files(self.wrong)

    @property
    def right_files(self) -> Files:
        """The files without it, by name."""
        return _files(self.right)

    @property
    def shown(self) -> bool:
        """Whether the files have room in a document."""
        return sum(map(len, self.wrong_files.values())) < MAX_SHOWN


def _files(content: str | bytes | Files) -> Files:
    return {FILE_NAME: content} if isinstance(content, (str, bytes)) else content
