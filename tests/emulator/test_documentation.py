"""What the documentation lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from policyc.emulator.console import COMMANDS
from policyc.emulator.defects import QUIRKS
from policyc.emulator.linux import attacks as linux_attacks
from policyc.emulator.routines import ROUTINES

TEXT = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text("utf-8")


def test_every_routine_has_its_row() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (attack|act) \| (.*?) \| `?(.*?)`? ?\|$", TEXT, re.MULTILINE)
    assert rows == [
        (routine.name, routine.kind.value, routine.what, str(routine.target or ""))
        for routine in (*ROUTINES.values(), *linux_attacks.ROUTINES.values())
    ]


def test_every_quirk_has_its_row() -> None:
    table = TEXT.split("| Quirk |")[1].split("A report")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]*?) \|$", table, re.MULTILINE))
    assert rows == {quirk.value: what for quirk, what in QUIRKS.items()}


def test_every_command_is_named() -> None:
    assert set(
        re.findall(
            r"`(\w+)(?: NAME| N| SYMBOL\+OFFSET HEX)?`(?=[^|]*\|)",
            TEXT.split("Lines on standard input")[1].split("A line waits")[0],
        )
    ) == set(COMMANDS)
