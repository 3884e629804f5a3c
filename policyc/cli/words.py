"""`policyc words`: says which words the language has, and what they mean."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from policyc.cli.color import wants_color
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from policyc.analysis.vocabulary import Word

__all__ = ["DOCUMENTS", "command", "words_document"]

DOCUMENTS = ("markdown", "json", "textmate")
"""The forms in which all words are written as one document."""


@click.command(
    "words",
    epilog=examples(
        "policyc words",
        "policyc words deny cr4 lstar P304",
        "policyc words --format textmate",
    ),
)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option(
    "--format",
    type=click.Choice(["text", *DOCUMENTS]),
    default="text",
    show_default=True,
    help="For people, as a document, for a language server, or for an editor's colours.",
)
def command(words: tuple[str, ...], format: str) -> ExitCode:
    """Say which words the language has, and what they mean.

    WORD is a word of the language or the code of a diagnostic, such as P304. Without one, all words are listed.

    The other formats hold all words at once: `markdown` is docs/reference/words.md, `json` is what a language server
    reads, `textmate` the TextMate grammar that editors colour policies by.
    """
    if format != "text":
        if words:
            raise click.UsageError(f"--format {format} is about all words: leave WORD out")
        click.echo(words_document(format), nl=False)
        return ExitCode.OK
    for line in _meanings(words) if words else _all_words():
        click.echo(line)
    return ExitCode.OK


def words_document(format: str) -> str:
    """All words in one of the forms in `DOCUMENTS`."""
    from policyc.cli.carried_out import carried_out
    from policyc.cli.words_json import words_json
    from policyc.cli.words_markdown import words_markdown
    from policyc.cli.words_textmate import words_textmate

    if format == "textmate":
        return words_textmate()
    return words_json(carried_out()) if format == "json" else words_markdown(carried_out())


def _all_words() -> Iterator[str]:
    """A line for each kind of word."""
    from policyc.analysis.vocabulary import vocabulary

    by_kind: dict[str, list[str]] = {}
    for word in vocabulary():
        by_kind.setdefault(word.kind.value, []).append(word.word)
    for kind, words in by_kind.items():
        yield f"{_bold(kind)}: {', '.join(words)}"


def _meanings(asked: tuple[str, ...]) -> Iterator[str]:
    """What each of the words means.

    Raises:
        CommandError: one of them is no word of the language.
    """
    from policyc.analysis.vocabulary import vocabulary
    from policyc.diagnostics import CODES, did_you_mean

    known: dict[str, list[Word]] = {}
    for word in vocabulary():
        known.setdefault(word.word, []).append(word)
    for text in asked:
        if text not in known and text not in CODES:
            near = did_you_mean(text, [*known, *CODES])
            help = f"did you mean `{near}`?" if near else "`policyc words` lists them all"
            raise CommandError(ExitCode.USAGE, f"the language has no word `{text}`", help=help)
    for text in asked:
        for word in known.get(text, []):
            yield f"{_bold(text)}, {word.kind.value}: {word.doc}"
            yield from _legality(word)
        if text in CODES:
            code = CODES[text]
            yield f"{_bold(text)}, {code.severity.value}: {code.title}. {code.explanation}"


def _legality(word: Word) -> Iterator[str]:
    """Which effects an event or access can have, and on what an effect can be."""
    from policyc.analysis.vocabulary import PHRASES, RETRY_PHRASE, Kind, effects_on, legal_on, mechanism_name
    from policyc.catalog import Column

    if word.kind in (Kind.EVENT, Kind.ACCESS):
        legal = effects_on(word.word, Column[str(word.facts["column"]).upper()])
    elif word.kind in (Kind.EFFECT, Kind.KEYWORD) and word.word in (*PHRASES.values(), RETRY_PHRASE):
        legal = legal_on(word.word)
    else:
        return
    for what, how in legal.items():
        yield f"  {what}: {mechanism_name(how)} ({how.value})"


def _bold(text: str) -> str:
    return click.style(text, bold=True) if wants_color(sys.stdout) else text
