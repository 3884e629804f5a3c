"""What every session of tests does."""

from __future__ import annotations

import pytest

from tests.support.outcomes import outcome_lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what became of the attacks that were tried."""
    lines = list(outcome_lines())
    if lines:
        terminalreporter.section("attacks")
        for line in lines:
            terminalreporter.write_line(line)
