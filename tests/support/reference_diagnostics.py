"""docs/reference/diagnostics.md: every code with its meaning, a policy that has the mistake, and what to do."""

from __future__ import annotations

import datetime
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from policyc.analysis.cases import unit_of
from policyc.analysis.report import Report, run_unit
from policyc.compiler.checks import CheckOptions
from policyc.compiler.imports import Loader
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import CODES, Code, Diagnostic, Source, printable, render_text
from policyc.emulator.image import small_system_map
from policyc.guest.profile import KERNEL, Profile
from policyc.guest.readers import build_profile
from policyc.lang.read import decode_source
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

TODAY = datetime.date(2026, 7, 1)
"""The day on which the examples are compiled."""

OPTIONS: Mapping[str, CheckOptions] = MappingProxyType(
    {
        "": CheckOptions(today=TODAY),
        "--target kvmi-v7": CheckOptions(today=TODAY, target="kvmi-v7"),
        "--cpu intel": CheckOptions(today=TODAY, cpu="intel"),
        "--cpu amd --target kvmi-v12": CheckOptions(today=TODAY, cpu="amd", target="kvmi-v12"),
        "--accept-hot-pages": CheckOptions(today=TODAY, accept_hot_pages=True),
    }
)
"""What the options of `policyc check` in the examples mean."""

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
    """What is found in an example's wrong and right files."""

    wrong: tuple[Diagnostic, ...]
    right: tuple[Diagnostic, ...]


@cache
def outcome_of(code: str) -> Outcome:
    """What the compiler, and where there are tests the test runner, find in the example of this code."""
    example = CODE_EXAMPLES[code]
    profile = build_profile((small_system_map() + example.symbols).encode())
    profile = _with_sizes(profile) if example.sized else profile
    return Outcome(
        wrong=_findings(example, example.wrong_files, profile, OPTIONS[example.wrong_options]),
        right=_findings(example, example.right_files, profile, OPTIONS[example.right_options]),
    )


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


def _findings(example: CodeExample, files: Files, profile: Profile, options: CheckOptions) -> tuple[Diagnostic, ...]:
    read = [decode_source(name, data if isinstance(data, bytes) else data.encode()) for name, data in files.items()]
    refused = tuple(found for found in read if isinstance(found, Diagnostic))
    if refused:
        return refused
    sources = {source.name: source for source in read if isinstance(source, Source)}
    given = [sources[name] for name in example.named or files if name in sources]
    result = compile_policies(given, profile, options, _loader(sources))
    failures: list[Diagnostic] = []
    if result.plan is not None:
        for policy in result.policies:
            unit = unit_of(policy.source, result.plan, policy.tests, sources)
            failures += Report((run_unit(unit, profile, lambda _: True),)).failures
    return (*result.diagnostics, *failures)


def _with_sizes(profile: Profile) -> Profile:
    """The profile as it would be if its source had sizes, and none for these symbols."""
    symbols = replace(profile.kernel.symbols, sizes=array("Q", bytes(8 * len(profile.kernel.symbols))))
    return replace(profile, images={**profile.images, KERNEL: replace(profile.kernel, symbols=symbols)})


def _loader(sources: Mapping[str, Source]) -> Loader:
    def load(_: str, path: str) -> Source:
        if path not in sources:
            raise FileNotFoundError(path)
        return sources[path]

    return load


def _index(code: Code) -> Iterator[str]:
    if code is next(iter(CODES.values())):
        yield from ("| Code | | Title | Meaning |", "| --- | --- | --- | --- |")
    yield f"| [{code.name}](#{code.name.lower()}) | {code.severity.value} | {code.title} | {code.explanation} |"


def _section(code: Code, example: CodeExample) -> Iterator[str]:
    yield from (f"### {code.name}", "", f"**{code.severity.value.capitalize()}: {code.title}.** {code.explanation}")
    if example.wrong_files:
        outcome = outcome_of(code.name)
        yield from (
            "",
            *_example(example),
            *_options(example, example.wrong_options),
            "",
            "```text",
            *_said(code, outcome.wrong),
            "```",
        )
    yield from ("", f"**Fix.** {example.fix}")
    if example.right_files:
        yield from ("", *_listing(example.right_files), *_options(example, example.right_options))


def _example(example: CodeExample) -> Iterator[str]:
    if example.instead is not None:
        yield f"For example, {example.instead}{':' if example.shown else '.'}"
    if example.shown:
        yield from ([""] if example.instead else [])
        yield from _listing(example.wrong_files)


def _listing(files: Files) -> Iterator[str]:
    """The files, named where there are several; what can't be seen is shown as signs."""
    for number, (name, content) in enumerate(files.items()):
        text = content if isinstance(content, str) else content.decode(errors="backslashreplace")
        yield from ([""] if number else [])
        yield from ([f"`{name}`:", ""] if len(files) > 1 else [])
        yield from ("```policy", *map(printable, text.removesuffix("\n").split("\n")), "```")


def _options(example: CodeExample, options: str) -> Iterator[str]:
    if options:
        yield from ("", f"with `policyc {example.command} {options}`.")


def _said(code: Code, found: Sequence[Diagnostic]) -> Iterator[str]:
    """The first diagnostic of this code, as it is drawn."""
    first = next(diagnostic for diagnostic in found if diagnostic.code == code.name)
    blocks = render_text([first]).rstrip("\n").split("\n")
    yield from blocks[:-2]  # without the count
