"""The audit log's schema, for tests that make records of any kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import resources

from jsonschema import Draft202012Validator

__all__ = ["check_record", "check_records"]

_VALIDATOR = Draft202012Validator(
    json.loads(resources.files("policyc.runtime").joinpath("schema/audit-1.json").read_text())
)


def check_record(record: Mapping[str, object]) -> None:
    """Fail with what is wrong if a record, as the log has it, breaks the schema."""
    assert [error.message for error in _VALIDATOR.iter_errors(record)] == []


def check_records(records: Iterable[Mapping[str, object]]) -> None:
    """The same for records as the runtime makes them, before the log numbers them."""
    for record in records:
        check_record({"seq": 1, "previous": "0" * 64, "time": "2026-01-01T00:00:00+00:00", **record})
