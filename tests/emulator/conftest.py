"""Fixtures of the emulator's tests."""

from __future__ import annotations

import pytest

from policyc.kvmi import V7, V12, Dialect


@pytest.fixture(params=[V7, V12], ids=["v7", "v12"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Either generation that the emulator speaks."""
    assert isinstance(request.param, Dialect)
    return request.param
