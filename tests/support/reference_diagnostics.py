"""docs/reference/diagnostics.md: every code with its meaning, a policy that has the mistake, and what to do."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from policyc.diagnostics import CODES, Code, printable
from policyc.emulator.image import small_system_map
from tests.support.policyc_command import Ran, call_policyc
from tests.support.reference_codes import CodeExample, Files
from tests.support.reference_codes_meaning import MEANING_EXAMPLES
from tests.support.reference_codes_text import TEXT_EXAMPLES

__all__ = ["CODE_EXAMPLES", "Outcome", "diagnostics_markdown", "outcome_of"]

CODE_EXAMPLES: Mapping[str, CodeExample] = MappingProxyType(
    {example.code: example for example in (*TEXT_EXAMPLES, *MEANING_EXAMPLES)}
)

STAGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "1": ("The text", "The file can't be read as a policy."),
        "2": ("Names", "A name stands for nothing, or for something else than was meant."),
        "3": ("What a rule asks for", "No reply to the event brings it about, or the event doesn't tell enough."),
        "4": ("Rules that do less than they seem to", "The policy means something, but hardly what its author wanted."),
        "5": ("Pages", "No hardware can hold what the rules need."),
        "8": ("Tests", "Said by `policyc test`."),
    }
)
"""The first digit of a code: what the code is about."""

HEAD = """\
# Diagnostics

Every code that `policyc` says, with a policy that brings it about. A code keeps its meaning for ever; an error stops
the work, a warning fails the command under `--deny warnings`, a note only informs.

The examples are compiled for the small guest, `policyc guest profile -o guest.profile`, and what is shown is what was
said; where an example brings about more than its code, the rest is left out. The words are in [words.md](words.md), the
language by example in [language.md](../language.md).
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the command said about an example's wrong and right files; `right` is None where there are none."""

    wrong: Ran
    right: Ran | None


@cache
def outcome_of(code: str) -> Outcome:
    """What `policyc` says about the example of this code."""
    example = CODE_EXAMPLES[code]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "System.map").write_text(small_system_map() + example.symbols)
        call_policyc("profile", "build", "System.map", "-o", "guest.profile", cwd=folder)
        wrong = _run(example, example.wrong_files, example.options, folder)
        right = _run(example, example.right_files, example.right_options, folder) if example.right_files else None
    return Outcome(wrong, right)


def diagnostics_markdown() -> str:
    """The document."""
    parts = [HEAD, *(line for code in CODES.values() for line in _index(code))]
    stage = ""
    for name, code in CODES.items():
        if name[1] != stage:
            stage = name[1]
            title, about = STAGES[stage]
            parts += ["", f"## {title}", "", about]
        parts += ["", *_section(code, CODE_EXAMPLES[name])]
    return "\n".join(parts) + "\n"


def _run(example: CodeExample, files: Files, options: tuple[str, ...], folder: Path) -> Ran:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    named = example.named or tuple(files)
    return call_policyc(example.command, *named, "--profile", "guest.profile", *options, cwd=folder)


def _index(code: Code) -> Iterator[str]:
    if code is next(iter(CODES.values())):
        yield from ("| Code | | Title | Meaning |", "| --- | --- | --- | --- |")
    yield f"| [{code.name}](#{code.name.lower()}) | {code.severity.value} | {code.title} | {code.explanation} |"


def _section(code: Code, example: CodeExample) -> Iterator[str]:
    yield from (f"### {code.name}", "", f"**{code.severity.value.capitalize()}: {code.title}.** {code.explanation}")
    if example.wrong_files:
        outcome = outcome_of(code.name)
        yield from ("", *_example(example), "", "```text", *_said(code, outcome.wrong), "```")
    yield from ("", f"**Fix.** {example.fix}")
    if example.right_files:
        yield from ("", *_listing(example.right_files), *_options(example))


def _example(example: CodeExample) -> Iterator[str]:
    if example.instead is not None:
        yield f"For example, {example.instead}{':' if example.symbols else '.'}"
    if example.instead is None or example.symbols:
        yield from ([""] if example.instead else [])
        yield from _listing(example.wrong_files)


def _listing(files: Files) -> Iterator[str]:
    """The files, named where there are several; what can't be seen is shown as signs."""
    for number, (name, content) in enumerate(files.items()):
        text = content if isinstance(content, str) else content.decode(errors="backslashreplace")
        yield from ([""] if number else [])
        yield from ([f"`{name}`:", ""] if len(files) > 1 else [])
        yield from ("```policy", *map(printable, text.removesuffix("\n").split("\n")), "```")


def _options(example: CodeExample) -> Iterator[str]:
    if example.right_options:
        yield from ("", f"with `policyc {example.command} {' '.join(example.right_options)}`.")


def _said(code: Code, ran: Ran) -> Iterator[str]:
    """The first diagnostic of this code; a sign stands for others."""
    blocks = re.split(r"\n\n", (ran.out + ran.err).strip("\n"))
    found = [number for number, block in enumerate(blocks) if f"[{code.name}]" in block.partition("\n")[0]]
    assert found, f"the example of {code.name} doesn't bring it about:\n{ran.out}{ran.err}"
    yield from blocks[found[0]].split("\n")
