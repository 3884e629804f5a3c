"""The tables of docs/kvmi.md that follow from the dialects."""

from __future__ import annotations

from dataclasses import fields

from policyc.kvmi import DIALECTS, Action, EventKind
from policyc.kvmi.dialects import RunsOn
from policyc.kvmi.messages import Command, Done

_LETTERS = {Action.CONTINUE: "C", Action.RETRY: "R", Action.CRASH: "X"}


def command_table() -> str:
    """Every command: its number in each dialect, its fields, its reply, and who executes it."""
    commands = {cls: None for dialect in DIALECTS.values() for cls in dialect.commands}
    rows = [_command_row(cls) for cls in sorted(commands, key=lambda cls: cls.__name__)]
    head = "| Command | " + " | ".join(name.removeprefix("kvmi-") for name in DIALECTS) + " | Reply | Executed by |"
    return "\n".join([head, "| --- | " + "--- | " * len(DIALECTS) + "--- | --- |", *rows]) + "\n"


def event_table() -> str:
    """Every event: number and supported actions in each dialect, and its data."""
    head = "| Event | " + " | ".join(name.removeprefix("kvmi-") for name in DIALECTS) + " | Data |"
    rows = [_event_row(kind) for kind in EventKind]
    return "\n".join([head, "| --- | " + "--- | " * len(DIALECTS) + "--- |", *rows]) + "\n"


def _command_row(cls: type[Command]) -> str:
    found = [dialect.commands.get(cls) for dialect in DIALECTS.values()]
    numbers = [str(row.id) if row else "" for row in found]
    arguments = ", ".join(field.name for field in fields(cls))
    reply = "" if cls.reply_type is Done else ", ".join(field.name for field in fields(cls.reply_type))
    runs_on = {row.runs_on for row in found if row}
    assert len(runs_on) == 1
    where = {RunsOn.RECEIVER: "receiver", RunsOn.VCPU: "vCPU"}[runs_on.pop()]
    return f"| `{cls.__name__}({arguments})` | {' | '.join(numbers)} | {reply} | {where} |"


def _event_row(kind: EventKind) -> str:
    cells = []
    data = ""
    for dialect in DIALECTS.values():
        row = dialect.events.get(kind)
        cells.append(f"{row.id} {''.join(_LETTERS[action] for action in row.actions)}".strip() if row else "")
        if row and row.data_type:
            data = ", ".join(field.name for field in fields(row.data_type))
    return f"| `{kind.name}` | {' | '.join(cells)} | {data} |"
