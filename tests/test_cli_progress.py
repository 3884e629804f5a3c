"""Progress is seen on a terminal, and only where the work takes long."""

from __future__ import annotations

import io
from unittest.mock import patch

import pytest

from policyc.cli.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, patience: float) -> str:
    """What three steps of work write."""
    monkeypatch.setattr("policyc.cli.progress.PATIENCE_SECONDS", patience)
    monkeypatch.setenv("TERM", "xterm")
    with patch("sys.stderr", stream), progress("compiling", 3) as tick:
        for _ in range(3):
            tick()
    return stream.getvalue()


def test_progress__long_work_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compiling" in shown_on(Terminal(), monkeypatch, patience=0.0)


def test_progress__short_work_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compiling" not in shown_on(Terminal(), monkeypatch, patience=3600.0)


def test_progress__in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_on(io.StringIO(), monkeypatch, patience=0.0) == ""


def test_progress__ends_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policyc.cli.progress.PATIENCE_SECONDS", 0.0)

    def work() -> None:
        with progress("compiling", 3) as tick:
            tick()
            raise ZeroDivisionError

    with patch("sys.stderr", Terminal()), pytest.raises(ZeroDivisionError):
        work()
