"""The table of states, and the diagram in the documentation that is drawn from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from policyc.kvmi import Side, State
from policyc.kvmi.state import TRANSITIONS, Trigger, diagram

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "kvmi.md"


@pytest.mark.parametrize("side", Side, ids=lambda side: side.value)
def test_the_diagram_in_the_documentation_is_this_table(side: Side) -> None:
    section = DOCUMENT.read_text().partition(f"### States of the {side.value}'s end\n")[2]
    drawn = re.search(r"```mermaid\n(.*?)```", section, re.DOTALL)
    assert drawn, f"docs/kvmi.md has no diagram for the {side.value}'s end"
    assert drawn[1] == diagram(side)


@pytest.mark.parametrize("side", Side, ids=lambda side: side.value)
def test_every_state_is_reached_and_nothing_leads_out_of_the_ends(side: Side) -> None:
    reached = {State.HANDSHAKE}
    for _ in State:
        reached |= {target for state in reached for target in TRANSITIONS[side][state].values()}
    assert reached == TRANSITIONS[side].keys()
    for end in (State.CLOSED, State.ERROR):
        assert set(TRANSITIONS[side][end].values()) == {end}
    for state in reached - {State.CLOSED}:
        assert TRANSITIONS[side][state][Trigger.FAULT] is State.ERROR


def test_the_diagram() -> None:
    assert diagram(Side.KERNEL) == (
        "stateDiagram-v2\n"
        "    [*] --> HANDSHAKE\n"
        "    HANDSHAKE --> OPEN: hello answered\n"
        "    HANDSHAKE --> CLOSED: end of stream\n"
        "    HANDSHAKE --> ERROR: protocol broken by the peer\n"
        "    OPEN --> UNHOOKING: UNHOOK event\n"
        "    OPEN --> CLOSED: end of stream\n"
        "    OPEN --> ERROR: protocol broken by the peer\n"
        "    UNHOOKING --> CLOSED: end of stream\n"
        "    UNHOOKING --> ERROR: protocol broken by the peer\n"
    )
