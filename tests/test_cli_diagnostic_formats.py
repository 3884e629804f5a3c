"""Diagnostics as text, JSON, SARIF and GitHub annotations: the same two, in each form, whole."""

from __future__ import annotations

import json

import pytest

from policyc.cli.diagnostic_formats import FORMATS, render
from policyc.diagnostics import CODES, Diagnostic, Source, Span

SOURCE = Source("kernel rules.policy", "deny write\nto kärnel .text\n")


def span_of(text: str, source: Source = SOURCE) -> Span:
    start = source.text.index(text)
    return Span(source, start, start + len(text))


LATER = Diagnostic(
    "P101",
    "no image is called `kärnel`: 100%",
    span_of("kärnel"),
    help="did you mean `kernel`?",
    notes=((span_of("deny write"), "the rule begins here"), (None, "images have names")),
)
EARLIER = Diagnostic("P127", "1 more error isn't shown", span_of("write\nto"))
PLACELESS = Diagnostic("P100", "`a.policy`: no such file or directory")

BOTH = [LATER, EARLIER]


def test_text() -> None:
    assert (
        render(BOTH, format="text")
        == """\
note[P127]: 1 more error isn't shown
 --> kernel rules.policy:1:6
  |
1 | deny write
  |      ^^^^^
2 | to kärnel .text
  | ^^

error[P101]: no image is called `kärnel`: 100%
 --> kernel rules.policy:2:4
  |
2 | to kärnel .text
  |    ^^^^^^
  = note: the rule begins here
 --> kernel rules.policy:1:1
  |
1 | deny write
  | ^^^^^^^^^^
  = note: images have names
  = help: did you mean `kernel`?

1 error, 1 note
"""
    )


def test_text__in_colour_says_the_same() -> None:
    assert "\x1b[1;31merror[P101]\x1b[0m" in render(BOTH, format="text", color=True)


def test_json() -> None:
    document = json.loads(render(BOTH, format="json"))
    assert document == {"version": 1, "diagnostics": [EARLIER.to_json(), LATER.to_json()]}


def test_sarif() -> None:
    def location(start: tuple[int, int], end: tuple[int, int]) -> dict[str, object]:
        names = ("startLine", "startColumn", "endLine", "endColumn")
        region = dict(zip(names, (*start, *end), strict=True))
        return {"physicalLocation": {"artifactLocation": {"uri": "kernel%20rules.policy"}, "region": region}}

    def rule(name: str, level: str) -> dict[str, object]:
        code = CODES[name]
        return {
            "id": name,
            "shortDescription": {"text": code.title},
            "fullDescription": {"text": code.explanation},
            "defaultConfiguration": {"level": level},
        }

    assert json.loads(render(BOTH, format="sarif")) == {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "policyc",
                        "version": "0.1.0",
                        "rules": [rule("P101", "error"), rule("P127", "note")],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [
                    {
                        "ruleId": "P127",
                        "ruleIndex": 1,
                        "level": "note",
                        "message": {"text": "1 more error isn't shown"},
                        "locations": [location((1, 6), (2, 3))],
                    },
                    {
                        "ruleId": "P101",
                        "ruleIndex": 0,
                        "level": "error",
                        "message": {
                            "text": "no image is called `kärnel`: 100%\n"
                            "note: images have names\nhelp: did you mean `kernel`?"
                        },
                        "locations": [location((2, 4), (2, 10))],
                        "relatedLocations": [location((1, 1), (1, 11)) | {"message": {"text": "the rule begins here"}}],
                    },
                ],
            }
        ],
    }


def test_github() -> None:
    assert render(BOTH, format="github") == (
        "::notice file=kernel rules.policy,line=1,col=6,endLine=2,title=P127%3A more errors::1 more error isn't shown\n"
        "::error file=kernel rules.policy,line=2,col=4,endLine=2,endColumn=10,title=P101%3A unexpected text::"
        "no image is called `kärnel`: 100%25%0Anote: images have names%0Ahelp: did you mean `kernel`?\n"
    )


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("/etc/policies/a b.policy", "file:///etc/policies/a%20b.policy"),
        ("<stdin>", "%3Cstdin%3E"),
        ("sub/\udcff.policy", "sub/%FF.policy"),
    ],
)
def test_sarif__names_of_files_are_uris(name: str, uri: str) -> None:
    source = Source(name, "x")
    document = json.loads(render([Diagnostic("P101", "no", Span(source, 0, 1))], format="sarif"))
    (result,) = document["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": uri}


@pytest.mark.parametrize("format", FORMATS)
def test_place_is_optional(format: str) -> None:
    assert "no such file or directory" in render([PLACELESS], format=format)


@pytest.mark.parametrize("format", FORMATS)
def test_name_of_a_file__never_breaks_the_output(format: str) -> None:
    """A file may be called anything; what is written can be encoded and has no control character but line ends."""
    source = Source("\x1b[2J\udcff,:\n.policy", "x")
    written = render([Diagnostic("P101", "no", Span(source, 0, 1))], format=format)
    assert written.encode()
    assert all(char.isprintable() for char in written.replace("\n", ""))


@pytest.mark.parametrize(
    ("format", "nothing"), [("text", ""), ("json", '{\n  "version": 1,\n  "diagnostics": []\n}\n'), ("github", "")]
)
def test_nothing(format: str, nothing: str) -> None:
    assert render([], format=format) == nothing
