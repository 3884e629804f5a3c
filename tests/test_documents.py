"""What README, docs and the examples show is run, the examples in a copy of their folder.

Files marked `<!-- file: NAME -->` are written, transcripts marked `<!-- run -->` are replayed, and the two commands of
one marked `<!-- together -->` run side by side, the first until the second has ended. In an expected output, a `…`
stands for any text within its line; alone on a line, for any lines.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.policyc_command import call_policyc

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *EXAMPLES]

BLOCK = re.compile(r"<!-- (?P<what>file: (?P<name>\S+)|run|together) -->\n```\w*\n(?P<body>.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A file to write, or commands with the output that is to come."""

    what: str
    name: str | None
    body: str


def steps(document: Path) -> list[Step]:
    return [Step(found["what"], found["name"], found["body"]) for found in BLOCK.finditer(document.read_text())]


def transcripts(body: str) -> list[tuple[str, str]]:
    """Each command after `$ `, with what follows it."""
    parts = re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def fits(expected: str, got: str) -> bool:
    lines = [
        "(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n"
        for line in expected.strip().splitlines()
    ]
    return re.fullmatch("".join(lines), got.strip() + "\n" if got.strip() else "") is not None


def run_together(body: str, folder: Path) -> list[tuple[str, str, str]]:
    """The two commands, what is expected of each, and what each said."""
    (first, expected_first), (second, expected_second) = transcripts(body)
    with started(first, folder) as waiting:
        assert waiting.stdout is not None
        said = waiting.stdout.readline()
        with started(second, folder) as other:
            other_said = other.communicate(timeout=60)[0]
        waiting.terminate()
        said += waiting.communicate(timeout=60)[0]
    return [(first, expected_first, said), (second, expected_second, other_said)]


def started(command: str, folder: Path) -> subprocess.Popen[str]:
    program, *arguments = shlex.split(command)
    assert program == "policyc"
    return subprocess.Popen(
        [sys.executable, "-m", "policyc", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_alone(body: str, folder: Path) -> list[tuple[str, str, str]]:
    """Each command, what is expected of it, and what it said."""
    said = []
    for command, expected in transcripts(body):
        program, *arguments = shlex.split(command)
        assert program == "policyc"
        ran = call_policyc(*arguments, cwd=folder)
        said.append((command, expected, ran.out + ran.err))
    return said


REPLAYS = {"run": run_alone, "together": run_together}


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if steps(d)], ids=lambda document: str(document.relative_to(ROOT))
)
def test_document__shows_what_happens(document: Path, tmp_path: Path) -> None:
    if document in EXAMPLES:
        for policy in document.parent.glob("*.policy"):
            shutil.copy(policy, tmp_path)
    for step in steps(document):
        if step.name is not None:
            (tmp_path / step.name).write_text(step.body)
            continue
        for command, expected, said in REPLAYS[step.what](step.body, tmp_path):
            assert fits(expected, said), f"{command}\n{said}"


def test_documents__the_readme_is_among_them() -> None:
    assert len(steps(ROOT / "README.md")) >= 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.parent.name)
def test_example__has_every_command_that_it_shows_run(example: Path) -> None:
    text = example.read_text()
    marked = [command for step in steps(example) for command, _ in transcripts(step.body)]
    assert re.findall(r"^\$ (policyc .*)$", text, re.MULTILINE) == marked != []


def links(document: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda document: document.name)
def test_document__links_lead_somewhere(document: Path) -> None:
    assert [target for target in links(document) if not (document.parent / target).exists()] == []
