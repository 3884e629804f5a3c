"""The fuzz target itself, on its seeds, so that it works on the day somebody fuzzes."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzz_kvmi import CHOICES, one_input, seeds


@pytest.mark.parametrize("choice", range(len(CHOICES)), ids=[f"{dialect}, {end}" for dialect, end in CHOICES])
def test_every_seed_at_every_end(choice: int) -> None:
    found = seeds()
    assert len(found) > 200
    for data in found.values():
        one_input(bytes([choice]) + data[1:3000])
