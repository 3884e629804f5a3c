"""The words of the language as one JSON document: what an editor's language server reads."""

from __future__ import annotations

import json

from policyc.analysis.vocabulary import (
    PHRASES,
    PINNABLE,
    RETRY_PHRASE,
    Fact,
    mechanism_name,
    mechanism_of,
    vocabulary,
    words_of,
)
from policyc.catalog import MSR_RANGES, TARGETS, Column, Mechanism

__all__ = ["WORDS_VERSION", "words_json"]

WORDS_VERSION = 1
"""Raised when a reader of an older document would misread a newer one; additions don't count."""


def words_json(carried_out: frozenset[Mechanism]) -> str:
    """The document; `carried_out` is what the runtime of this version can do."""
    document: dict[str, Fact] = {
        "format": "policyc-words",
        "version": WORDS_VERSION,
        "dialects": list(TARGETS),
        "columns": [
            {"column": column.name.lower(), "about": column.value, "words": list(words_of(column))} for column in Column
        ],
        "mechanisms": [
            {"mechanism": mechanism_name(how), "wire": how.value, "carried_out": how in carried_out}
            for how in Mechanism
        ],
        "legality": {phrase: _legal(phrase) for phrase in (*PHRASES.values(), RETRY_PHRASE)},
        "pinnable": list(PINNABLE),
        "msr_ranges": {
            dialect: [{"first": span.start, "last": span.stop - 1} for span in spans]
            for dialect, spans in MSR_RANGES.items()
        },
        "words": [{"word": word.word, "kind": word.kind.value, "doc": word.doc, **word.facts} for word in vocabulary()],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _legal(phrase: str) -> dict[str, Fact]:
    found = ((column, mechanism_of(phrase, column)) for column in Column)
    return {column.name.lower(): mechanism_name(how) for column, how in found if how is not None}
