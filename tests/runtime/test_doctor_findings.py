"""What is said about every kind of case: each row is reached, all is safe to print, the document fits its schema."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from policyc.kvmi import V6, V7, V12, EventKind
from policyc.runtime.doctor_case import Case, Level
from policyc.runtime.doctor_document import document_of
from policyc.runtime.doctor_findings import ROWS, findings_of
from policyc.runtime.doctor_losses import LOST_WITH_COMMAND, LOST_WITH_EVENT, command_name, event_name
from policyc.runtime.doctor_report import sections_of
from policyc.runtime.needs import NEEDED_COMMANDS
from tests.support.doctor_cases import CASES, HOSTILE

HARMFUL = (Level.BROKEN, Level.WEAK)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


SCHEMA = json.loads(resources.files("policyc.runtime").joinpath("schema/doctor-1.json").read_text())


def codes(name: str, *levels: Level) -> list[str]:
    """The codes that a case is given, of these levels, in order and each once."""
    found = findings_of(CASES[name]())
    return list(dict.fromkeys(finding.code for finding in found if finding.level in levels))


# ---- all of them


def test_rows__each_is_reached_by_a_case_and_no_two_share_a_code() -> None:
    wanted = [row.code for row in ROWS]
    assert len(wanted) == len(set(wanted))
    said = {finding.code for make in CASES.values() for finding in findings_of(make())}
    assert set(wanted) - said == set()


def test_findings__the_heaviest_come_first(case: Case) -> None:
    order = [Level.BROKEN, Level.WEAK, Level.NOTE, Level.GOOD]
    weights = [order.index(finding.level) for finding in findings_of(case)]
    assert weights == sorted(weights)


def test_findings__are_safe_sentences(case: Case) -> None:
    """One line, printable, without a full stop."""
    for finding in findings_of(case):
        for text in (finding.fact, finding.help or "help"):
            assert text.isprintable()
            assert text == text.strip()
            assert not text.endswith(".")
            assert not re.search(r"\bNone\b|[{}]|  ", text)


def test_sections__are_safe_to_print(case: Case) -> None:
    for section in sections_of(case):
        assert section.lines
        for name, text in section.lines:
            assert (name + text).isprintable()
            assert len(name) <= 16


def test_document__fits_its_schema(case: Case) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    document = json.loads(json.dumps(document_of(case, findings_of(case), Path("/etc/policyc/cookie"))))
    assert list(Draft202012Validator(SCHEMA).iter_errors(document)) == []
    assert (document["format"], document["version"]) == ("policyc-doctor", 1)


def test_document__is_refused_where_something_is_missing(case: Case) -> None:
    """The schema can fail."""
    document = document_of(case, (), None)
    for name in list(document):
        rest = {key: value for key, value in document.items() if key != name}
        assert not Draft202012Validator(SCHEMA).is_valid(rest)


def test_document__keeps_what_the_guest_chose_as_it_came() -> None:
    case = CASES["without UUID"]()
    connection = document_of(case, findings_of(case), None)["connection"]
    assert isinstance(connection, dict)
    assert connection["hello"]["name"] == HOSTILE


# ---- who is well, and who isn't


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v12 on Intel", []),
        ("v7 on AMD", ["no-descriptor-events", "no-single-step"]),
        ("v12 on AMD", ["no-msr-events", "no-single-step"]),
        ("v6", ["dialect-v6"]),
        ("old series", ["dialect-refused"]),
        ("denied", ["denied", "denied-in-part", "no-single-step"]),
        ("a paused machine", ["vcpus-silent", "no-single-step"]),
        ("deaf", ["writes-pass", "no-single-step"]),
        ("mute", ["writes-pass-everywhere", "no-single-step"]),
        ("another kernel", ["foreign-kernel", "no-single-step"]),
        ("a hooked gate", ["kernel-changed", "no-single-step"]),
        ("gone after the hello", ["refused-after-hello"]),
        ("no hello", ["no-hello"]),
        ("in use", ["socket-in-use"]),
        ("nobody, waiting", ["nobody-came"]),
    ],
)
def test_findings__that_weaken_or_prevent(name: str, expected: list[str]) -> None:
    assert codes(name, *HARMFUL) == expected


@pytest.mark.parametrize("name", ["v7 on Intel", "v7 on AMD", "v12 on Intel", "v12 on AMD"])
def test_findings__what_confuses_people_is_said_of_every_guest(name: str) -> None:
    said = codes(name, Level.NOTE)
    assert {"rights-per-machine", "one-socket", "connection-guards", "answers-needed", "write-needs-read"} <= set(said)
    assert ("execute-only" in said) == name.endswith("Intel")
    assert ("no-execute-only" in said) == name.endswith("AMD")
    assert ("deaf-frames-possible" in said) == name.startswith("v7")
    assert codes(name, Level.GOOD) == ["ready"]


def test_findings__nothing_is_ready_where_something_necessary_is_denied() -> None:
    assert "ready" not in codes("denied", Level.GOOD)
    assert "ready" not in codes("v6", Level.GOOD)


def test_findings__after_the_hello_the_secret_is_among_the_reasons() -> None:
    assert codes("gone after the hello", Level.NOTE) == ["secret-unknown", "hook-refused"]
    assert codes("gone after the hello, with a secret", Level.NOTE) == ["secret-differs", "hook-refused"]


def test_findings__the_write_test_settles_what_was_possible() -> None:
    assert "deaf-frames-possible" not in codes("reported", Level.NOTE)
    assert codes("reported", Level.GOOD) == ["ready", "writes-reported"]


# ---- what is lost


def test_losses__what_arming_needs_is_what_nothing_works_without() -> None:
    needed = {command for command, loss in LOST_WITH_COMMAND.items() if loss.level is Level.BROKEN}
    assert needed == set(NEEDED_COMMANDS)


def test_losses__name_commands_and_events_that_exist() -> None:
    enforced = (V7, V12)
    assert all(any(command in dialect.commands for dialect in enforced) for command in LOST_WITH_COMMAND)
    assert all(any(kind in dialect.events for dialect in enforced) for kind in LOST_WITH_EVENT)


def test_names__are_kvmis_own() -> None:
    names = {command_name(command) for dialect in (V6, V7, V12) for command in dialect.commands}
    assert {"SET_PAGE_ACCESS", "GET_VERSION", "VCPU_GET_INFO", "TRANSLATE_GVA", "CONTROL_CR"} <= names
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)*", name) for name in names)
    assert event_name(EventKind.CREATE_VCPU) == "CREATE_VCPU"


def test_document__for_people_lists_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    table = page.partition("The codes are stable:")[2].partition("## What it can't tell")[0]
    assert sorted(re.findall(r"`([a-z0-9-]+)`", table)) == sorted(row.code for row in ROWS)
