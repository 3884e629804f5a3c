"""What `policyc demo` shows: what the guest is asked to do, and what has to be observed for it to count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from policyc.emulator.routines import ROUTINES, Memory

__all__ = ["SCENES", "Expected", "Observation", "Scene", "judge"]


class Expected(Enum):
    """How a scene has to end, in the words that are shown."""

    DENIED = "denied"
    PATCHED = "excepted"
    PASSED = "let through"
    LOGGED = "logged"


@dataclass(frozen=True, slots=True)
class Scene:
    """One thing that the guest does.

    Attributes:
        routine: what its console is told to do, by name; the bytes that it is about are the routine's target.
        title: what happens, for whoever watches.
        rule: the label of the rule that has to be recorded; None where nothing is.
    """

    routine: str
    title: str
    expected: Expected
    rule: str | None

    @property
    def line(self) -> str:
        """What the guest's console is told."""
        return f"{ROUTINES[self.routine].kind.value} {self.routine}"

    @property
    def target(self) -> Memory | None:
        """The bytes that it is about; None where it is about none."""
        target = ROUTINES[self.routine].target
        return target if isinstance(target, Memory) else None


SCENES: tuple[Scene, ...] = (
    Scene(
        "inline-hook",
        "a module overwrites the first bytes of schedule() with a jump of its own",
        Expected.DENIED,
        "kernel-text",
    ),
    Scene(
        "xchg",
        "a module exchanges fork's entry in the system call table, in one locked instruction",
        Expected.DENIED,
        "system-calls",
    ),
    Scene(
        "straddle",
        "a store begins four bytes before the guarded object and reaches into it",
        Expected.DENIED,
        "one-object",
    ),
    Scene("neighbour", "the kernel stores next to the object, on the same page", Expected.PASSED, None),
    Scene("patch", "the kernel patches a jump label: __text_poke stores through memcpy", Expected.PATCHED, None),
    Scene("hypercall", "an agent in the guest calls 34/24", Expected.LOGGED, "agent"),
)


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of a scene.

    Attributes:
        before, after: the scene's bytes, read from guest memory over KVMI.
        console: what the guest's machine said of it.
        record: the verdict record that came of it; None where none came.
        events: events that the tool answered meanwhile.
        exempted: accesses that an exception let through meanwhile.
    """

    before: bytes
    after: bytes
    console: Mapping[str, object]
    record: Mapping[str, object] | None
    events: int
    exempted: int


def judge(scene: Scene, seen: Observation) -> list[str]:
    """What is missing for the scene to have gone as it should; empty if nothing is."""
    missing = [] if seen.events else ["the tool saw no event"]
    unchanged = seen.before == seen.after
    if unchanged != (scene.expected in (Expected.DENIED, Expected.LOGGED)):
        missing.append("the bytes are unchanged" if unchanged else "the bytes changed")
    if (
        seen.console.get("outcome") != ("unchanged" if unchanged else "changed")
        and scene.expected is not Expected.LOGGED
    ):
        missing.append("the machine's own memory says otherwise")
    if bool(seen.exempted) != (scene.expected is Expected.PATCHED):
        missing.append(f"{seen.exempted} accesses were excepted")
    return [*missing, *_wrong_record(scene, seen.record)]


def _wrong_record(scene: Scene, record: Mapping[str, object] | None) -> list[str]:
    if scene.rule is None:
        return [] if record is None else ["a rule had a say"]
    if record is None:
        return ["nothing was recorded"]
    effect = "deny" if scene.expected is Expected.DENIED else "log"
    rules = record.get("rules")
    named = [rule.get("rule") for rule in rules if isinstance(rule, Mapping)] if isinstance(rules, list) else []
    found = [] if scene.rule in named else [f"rule `{scene.rule}` is not in the record"]
    return found if record.get("effect") == effect else [*found, f"the effect was {record.get('effect')}"]
