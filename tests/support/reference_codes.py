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
        instead: what stands in the document in the place of files that are too long for it.
        command: the command that finds the mistake.
        options: what else the command is given for the wrong files.
        right_options: what else it is given for the right ones.
        symbols: lines of a System.map that the kernel has besides those of the small guest.
    """

    code: str
    fix: str
    wrong: str | bytes | Files = field(default_factory=dict)
    right: str | bytes | Files = field(default_factory=dict)
    named: tuple[str, ...] = ()
    instead: str | None = None
    command: str = "check"
    options: tuple[str, ...] = ()
    right_options: tuple[str, ...] = ()
    symbols: str = ""

    @property
    def wrong_files(self) -> Files:
        """The files with the mistake, by name."""
        return _files(self.wrong)

    @property
    def right_files(self) -> Files:
        """The files without it, by name."""
        return _files(self.right)


def _files(content: str | bytes | Files) -> Files:
    return {FILE_NAME: content} if isinstance(content, (str, bytes)) else content
