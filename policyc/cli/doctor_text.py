"""What `policyc doctor` prints for people: facts in columns, what has to be typed elsewhere, and what follows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from policyc.diagnostics import printable
from policyc.runtime.doctor_case import Case, Finding, Level
from policyc.runtime.doctor_invitation import libvirt_lines, qemu_lines
from policyc.runtime.doctor_report import Section, sections_of

__all__ = ["report_lines"]

STYLES: Mapping[Level, tuple[str, bool]] = {
    Level.BROKEN: ("red", True),
    Level.WEAK: ("yellow", False),
    Level.NOTE: ("cyan", False),
    Level.GOOD: ("green", False),
}
"""The colour of each level's word, and whether it is bold."""

MARGIN = 2
LABEL_WIDTH = 16
LEVEL_WIDTH = 8


def report_lines(case: Case, findings: Sequence[Finding], secret: Path | None, width: int) -> Iterator[str]:
    """Everything, line by line, folded to `width` columns; coloured, so print it through click."""
    for section in sections_of(case):
        yield from _section(section, width)
    if not case.was_examined:
        yield from _invitation(case, secret)
    yield _heading("What follows")
    for finding in findings:
        yield from _finding(finding, width)
    yield ""
    yield _summary(case, findings)


def _section(section: Section, width: int) -> Iterator[str]:
    yield _heading(section.title)
    for name, text in section.lines:
        yield from _folded(f"{'':{MARGIN}}{name:{LABEL_WIDTH}}", text, width)
    yield ""


def _invitation(case: Case, secret: Path | None) -> Iterator[str]:
    """Lines to copy, never folded."""
    for title, lines in (
        ("QEMU's options", qemu_lines(case.place.path, secret)),
        ("The same in libvirt's XML, with QEMU's patched binary as <emulator>", libvirt_lines(case.place.path, secret)),
    ):
        yield _heading(title)
        yield from (f"{'':{MARGIN}}{printable(line)}" for line in lines)
        yield ""


def _finding(finding: Finding, width: int) -> Iterator[str]:
    color, bold = STYLES[finding.level]
    word = finding.level.value
    first, *others = _folded(f"{'':{MARGIN}}{word:{LEVEL_WIDTH}}", finding.fact, width)
    yield first.replace(word, click.style(word, fg=color, bold=bold or None), 1)
    yield from others
    if finding.help is not None:
        yield from _folded(f"{'':{MARGIN + LEVEL_WIDTH}}help: ", finding.help, width)


def _folded(lead: str, text: str, width: int) -> Iterator[str]:
    """The text behind `lead`, its further lines below its first."""
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=lead,
        subsequent_indent=" " * len(lead),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [lead.rstrip()]


def _heading(title: str) -> str:
    return click.style(title, bold=True)


def _summary(case: Case, findings: Sequence[Finding]) -> str:
    counts = {level: sum(finding.level is level for finding in findings) for level in (Level.BROKEN, Level.WEAK)}
    if not any(counts.values()):
        return "Nothing was found that weakens enforcement."
    said = [f"{count} {level.value}" for level, count in counts.items() if count]
    return f"{'No guest was examined' if not case.was_examined else 'Findings'}: {', '.join(said)}."
