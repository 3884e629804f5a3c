"""docs/kvmi.md: its tables are the dialects' own, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.kvmi_tables import command_table, event_table

TEXT = (Path(__file__).parent.parent.parent / "docs" / "kvmi.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("table", [command_table, event_table])
def test_the_tables_are_those_of_the_dialects(table: object) -> None:
    assert callable(table)
    assert table() in TEXT


def test_the_examples_run() -> None:
    """In order, in one namespace, as a reader would type them; each holds its own assertions."""
    namespace: dict[str, object] = {}
    for number, example in enumerate(EXAMPLES, 1):
        exec(compile(example, f"docs/kvmi.md, example {number}", "exec"), namespace)
    assert len(EXAMPLES) >= 3
    assert all("assert" in example for example in EXAMPLES)
