"""The files that are made from the project's own tables, and the command that makes them anew.

.venv/bin/python -m tests.support.reference_files
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from policyc.cli.words import words_document
from tests.support.reference_diagnostics import diagnostics_markdown

__all__ = ["FILES", "REFRESH", "ROOT"]

ROOT = Path(__file__).parent.parent.parent

REFRESH = ".venv/bin/python -m tests.support.reference_files"

FILES: Mapping[str, Callable[[], str]] = {
    "docs/reference/words.md": lambda: words_document("markdown"),
    "docs/reference/diagnostics.md": diagnostics_markdown,
    "editors/words.json": lambda: words_document("json"),
    "editors/policy.tmLanguage.json": lambda: words_document("textmate"),
}
"""Each file, by its path in the repository, with what makes its text."""


def main() -> None:
    """Write every file anew."""
    for name, make in FILES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make())
        print(name)  # noqa: T201 - a command says what it did


if __name__ == "__main__":
    main()
