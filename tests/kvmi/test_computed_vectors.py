"""Messages computed from the kernel headers, byte for byte, in both directions."""

from __future__ import annotations

import pytest

from policyc.kvmi import DIALECTS
from tests.support.kvmi_items import ITEMS
from tests.support.kvmi_vectors import Computed, computed
from tests.support.kvmi_wire import seq_of

ELSEWHERE = {
    # Answers to ids that no dialect names are made by the kernel's end: see test_kernel.py.
    "unknown message id 0xffff, reply -95",
    "unknown message id 0xffff, reply -1000",
}
VECTORS = [vector for vector in computed() if vector.generation.startswith("v") and vector.label not in ELSEWHERE]


def test_every_vector_has_its_item_and_every_item_its_vector() -> None:
    assert {vector.label for vector in VECTORS} == ITEMS.keys()
    assert {vector.generation for vector in VECTORS} == {name.removeprefix("kvmi-") for name in DIALECTS}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector.generation}: {vector.label}")
def test_computed_vector(vector: Computed) -> None:
    dialect = DIALECTS[f"kvmi-{vector.generation}"]
    item = ITEMS[vector.label]
    assert item.encode(dialect, seq_of(vector.data)).hex() == vector.data.hex()
    assert item.decode(dialect, vector.data) == item
