"""What a kernel must offer before anything is asked of it."""

from __future__ import annotations

import pytest

from policyc.kvmi import V6, EventKind
from policyc.runtime.needs import Needs, check_permissions


@pytest.mark.parametrize(
    ("kinds", "lacking"),
    [
        ((), ("kvmi-v6 has no command TranslateGva",)),
        (
            (EventKind.CPUID,),
            ("kvmi-v6 has no event cpuid", "kvmi-v6 has no command TranslateGva"),
        ),
    ],
)
def test_a_generation_without_a_needed_message_is_refused_by_its_name(
    kinds: tuple[EventKind, ...], lacking: tuple[str, ...]
) -> None:
    procedure = check_permissions(V6, Needs(kinds=kinds, crs=(), msrs=()))
    with pytest.raises(StopIteration) as stopped:
        next(procedure)
    assert stopped.value.value == lacking
