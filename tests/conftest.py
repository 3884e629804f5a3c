"""What every session of tests does, and the fixture that most of them need."""

from __future__ import annotations

import pytest

from policyc.kvmi import V7, V12, Dialect
from tests.support.outcomes import outcome_lines


@pytest.fixture(params=[V7, V12], ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Either generation in which plans are enforced, and that the emulator speaks."""
    found: Dialect = request.param
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what became of the attacks that were tried."""
    lines = list(outcome_lines())
    if lines:
        terminalreporter.section("attacks")
        for line in lines:
            terminalreporter.write_line(line)
