"""Diagnostics in the four forms that people and machines read: text, JSON, SARIF and GitHub annotations.

Sources: SARIF 2.1.0 (OASIS standard), sections 3.19 to 3.54; GitHub Docs, "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from policyc import __version__
from policyc.diagnostics import CODES, Diagnostic, Severity, Span, printable, render_text, sort_diagnostics

__all__ = ["FORMATS", "render"]

Renderer = Callable[[Sequence[Diagnostic], bool], str]


def render(diagnostics: Sequence[Diagnostic], *, format: str, color: bool = False) -> str:
    """All of `diagnostics`, by file and place, in the form called `format` (a key of `FORMATS`)."""
    return FORMATS[format](sort_diagnostics(diagnostics), color)


def _json(diagnostics: Sequence[Diagnostic], color: bool) -> str:
    document = {"version": 1, "diagnostics": [diagnostic.to_json() for diagnostic in diagnostics]}
    return json.dumps(document, indent=2) + "\n"


def _sarif(diagnostics: Sequence[Diagnostic], color: bool) -> str:
    used = sorted({diagnostic.code for diagnostic in diagnostics})
    run = {
        "tool": {"driver": {"name": "policyc", "version": __version__, "rules": [_sarif_rule(code) for code in used]}},
        # Columns are counted in characters; left unsaid, readers count UTF-16 units.
        "columnKind": "unicodeCodePoints",
        "results": [_sarif_result(diagnostic, used) for diagnostic in diagnostics],
    }
    document = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2) + "\n"


def _sarif_rule(name: str) -> dict[str, object]:
    code = CODES[name]
    return {
        "id": code.name,
        "shortDescription": {"text": code.title},
        "fullDescription": {"text": code.explanation},
        "defaultConfiguration": {"level": code.severity.value},
    }


def _sarif_result(diagnostic: Diagnostic, rules: Sequence[str]) -> dict[str, object]:
    result: dict[str, object] = {
        "ruleId": diagnostic.code,
        "ruleIndex": rules.index(diagnostic.code),
        "level": diagnostic.severity.value,
        "message": {"text": _message(diagnostic)},
    }
    if diagnostic.span:
        result["locations"] = [_sarif_location(diagnostic.span)]
    related = [_sarif_location(span) | {"message": {"text": text}} for span, text in diagnostic.notes if span]
    if related:
        result["relatedLocations"] = related
    return result


def _sarif_location(span: Span) -> dict[str, object]:
    line, column = span.source.position(span.start)
    end_line, end_column = span.source.position(span.end)
    region = {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}
    return {"physicalLocation": {"artifactLocation": {"uri": _uri(span.source.name)}, "region": region}}


def _uri(name: str) -> str:
    """A file's name as SARIF wants it: absolute ones with their scheme, relative ones relative to where one stands."""
    return Path(name).as_uri() if Path(name).is_absolute() else quote(os.fsencode(name))


def _github(diagnostics: Sequence[Diagnostic], color: bool) -> str:
    return "".join(_github_line(diagnostic) for diagnostic in diagnostics)


def _github_line(diagnostic: Diagnostic) -> str:
    properties: dict[str, object] = {}
    if diagnostic.span:
        span = diagnostic.span
        line, column = span.source.position(span.start)
        end_line, end_column = span.source.position(span.end)
        properties = {"file": printable(span.source.name), "line": line, "col": column, "endLine": end_line}
        # A column range across lines is refused by GitHub; the lines alone are shown then.
        properties |= {"endColumn": end_column} if end_line == line else {}
    properties["title"] = f"{diagnostic.code}: {CODES[diagnostic.code].title}"
    listed = ",".join(f"{name}={_github_escaped(str(value), ',:')}" for name, value in properties.items())
    return f"::{GITHUB_COMMANDS[diagnostic.severity]} {listed}::{_github_escaped(_message(diagnostic))}\n"


def _github_escaped(text: str, special: str = "") -> str:
    return "".join(f"%{ord(char):02X}" if char in f"%\r\n{special}" else char for char in text)


def _message(diagnostic: Diagnostic) -> str:
    """Fact, notes without a place, and help, for readers that have no field for the last two."""
    notes = [f"note: {text}" for span, text in diagnostic.notes if span is None]
    help = [f"help: {diagnostic.help}"] if diagnostic.help else []
    return "\n".join([diagnostic.message, *notes, *help])


SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

GITHUB_COMMANDS: Mapping[Severity, str] = MappingProxyType(
    {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
)

FORMATS: Mapping[str, Renderer] = MappingProxyType(
    {"text": render_text, "json": _json, "sarif": _sarif, "github": _github}
)
"""Each form by the name that `--format` takes; the renderers get sorted diagnostics and whether to colour."""
