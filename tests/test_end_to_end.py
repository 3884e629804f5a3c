"""Attacks by real machine code, over real sockets, in both dialects: stopped with the rule, successful without it.

The guest is a process of its own; what became of its memory is read twice, by the tool over KVMI and by the machine
from its own RAM. The tool is the service that `policyc run` runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from time import monotonic

import pytest

from policyc.addresses import PAGE_SIZE
from policyc.cli.demo_guest import GuestProcess
from policyc.cli.demo_tool import WatchedTool
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.image import small_image, small_system_map
from policyc.emulator.routines import ROUTINES, Kind, Memory
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.plan.model import Plan
from policyc.runtime.locate import ArmingOptions
from tests.support.audit_schema import check_record
from tests.support.outcomes import note_outcome

PATIENCE = 20.0
"""Seconds that a guest's clock may stand still."""

HARMLESS = "on hypercall 34/24 log"

SKIPPED, FAULTED = "skipped the instruction", "injected exception 13"
TEXT = "deny write to kernel .text"
EXCEPTED_TEXT = f'{TEXT} except from kernel:__text_poke because "the kernel patches itself"'
TABLE = "deny write to kernel:sys_call_table"
OBJECT = "deny write to kernel:guarded_object"

ATTACKS = {
    "inline-hook": (TEXT, SKIPPED),
    "rep-movs": (TEXT, FAULTED),
    "own-page": (TEXT, FAULTED),
    "syscall-hook": (TABLE, SKIPPED),
    "xchg": (TABLE, FAULTED),
    "wp-clear": (TABLE, SKIPPED),
    "straddle": (OBJECT, SKIPPED),
    "cmpxchg16b": (OBJECT, FAULTED),
    "pop": (OBJECT, FAULTED),
    "second-mapping": (OBJECT, SKIPPED),
    "user-store": (OBJECT, SKIPPED),
    "user-push": (OBJECT, FAULTED),
    "user-call": (OBJECT, FAULTED),
    "user-enter": (OBJECT, FAULTED),
    "user32-store": (OBJECT, SKIPPED),
    "user32-push": (OBJECT, FAULTED),
    "fxsave": (OBJECT, SKIPPED),
    "xsave": (OBJECT, FAULTED),
    "movnti": (OBJECT, SKIPPED),
    "movaps": (OBJECT, SKIPPED),
    "maskmov": (OBJECT, FAULTED),
    "fistp": (OBJECT, FAULTED),
    "cmpxchg": (OBJECT, FAULTED),
    "bit-string": (OBJECT, FAULTED),
    "self-modifying": (OBJECT, SKIPPED),
    "page-straddle": ("deny write to kernel:guarded_head", SKIPPED),
    "page-straddle-tail": ("deny write to kernel:guarded_tail", SKIPPED),
    "exchanged-frame": (EXCEPTED_TEXT, SKIPPED),
    "exchanged-caller": (EXCEPTED_TEXT, FAULTED),
    "idt-entry": ("deny write to idt", SKIPPED),
    "read": ("deny read of kernel:guarded_object", FAULTED),
    "execute": ("deny execute of kernel:data_code", FAULTED),
    "smep-clear": ("on cr4 pin smep | smap", "kept the bits 0x300000"),
    "lstar": ("on msr lstar deny", "kept the old value"),
    "idtr": ("on idtr write deny", SKIPPED),
}
"""What stops each attack, and how; those with the same rule stand together, since they share a guest."""

HELD = ("push", "interrupt-frame")
"""Stacks of the kernel's own in the guarded page: no exception can be delivered onto them, so the vCPU stays there."""

REPORTED = ("dma",)
"""What raises no event: it's found when guarded bytes are read again."""


@pytest.fixture(scope="module")
def profile() -> Profile:
    return build_profile(small_system_map().encode())


DIALECTS = ("v7", "v12")

FUTILE = 16
"""Denials that change nothing before the tool slows down."""


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def compile_text(profile: Profile, text: str) -> Plan:
    plan = compile_policies([Source("test.policy", text)], profile).plan
    assert plan is not None
    return plan


@contextmanager
def guarded(
    profile: Profile, text: str, dialect: str, folder: Path, verify: float = 0.0
) -> Iterator[tuple[WatchedTool, GuestProcess]]:
    """A guest with an armed tool."""
    arming = ArmingOptions(self_test=False, verify=verify)
    tool = WatchedTool(compile_text(profile, text), profile, folder / "s", folder / "audit.ndjson", arming)
    tool.start()
    guest = GuestProcess(folder / "s", dialect)
    try:
        tool.wait_until_armed()
        yield tool, guest
    finally:
        tool.stop()
        guest.stop()
    lines = (folder / "audit.ndjson").read_text().splitlines()
    assert lines
    for line in lines:
        check_record(json.loads(line))


class Guests:
    """Guests with an armed tool, one at a time: the last one stays for as long as it's asked for again."""

    def __init__(self, profile: Profile, folder: Path) -> None:
        self._profile = profile
        self._folder = folder
        self._opened = ExitStack()
        self._key: tuple[str, str] | None = None
        self._pair: tuple[WatchedTool, GuestProcess] | None = None

    def having(self, text: str, dialect: str) -> tuple[WatchedTool, GuestProcess]:
        """A guest of that dialect under that policy."""
        if self._pair is None or self._key != (text, dialect):
            self.close()
            folder = self._folder / "guest"
            folder.mkdir()
            self._opened.callback(shutil.rmtree, folder)
            self._pair = self._opened.enter_context(guarded(self._profile, text, dialect, folder))
            self._key = text, dialect
        return self._pair

    def close(self) -> None:
        """End the one that is there."""
        self._pair = None
        self._opened.close()


@pytest.fixture(scope="module")
def guests(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    made = Guests(profile, tmp_path_factory.mktemp("guests"))
    yield made
    made.close()


def test_every_attack_is_tried() -> None:
    attacks = {name for name, routine in ROUTINES.items() if routine.kind is Kind.ATTACK}
    assert attacks == {*ATTACKS, *HELD, *REPORTED}


@pytest.mark.parametrize(("dialect", "attack"), list(product(DIALECTS, ATTACKS)))
def test_attack__is_stopped_by_the_rule_that_names_it(guests: Guests, dialect: str, attack: str) -> None:
    rule, done = ATTACKS[attack]
    tool, guest = guests.having(f"rule: {rule}", dialect)
    said = guest.tell(f"attack {attack}")
    assert said["outcome"] == "unchanged"
    assert said["before"] == said["after"]
    target = ROUTINES[attack].target
    if isinstance(target, Memory) and not target.symbol.startswith("evil_"):
        assert read_target(tool, target).hex() == said["before"]
    record = tool.verdict()
    assert record is not None
    assert record["done"] == done
    assert record["rules"] == [
        {
            "policy": "test.policy",
            "rule": "rule",
            "mode": "enforce",
            "severity": "medium",
            "file": "test.policy",
            "line": 1,
        }
    ]
    assert goes_on(guest, said)
    note_outcome(attack, "small", dialect, "guarded", f"stopped: {done}")


@pytest.mark.parametrize(("dialect", "attack"), list(product(DIALECTS, HELD)))
def test_attack__that_no_fault_can_end_holds_its_vcpu_and_writes_nothing(
    profile: Profile, dialect: str, attack: str, tmp_path: Path
) -> None:
    target = ROUTINES[attack].target
    assert isinstance(target, Memory)
    with guarded(profile, "deny write to kernel:guarded_object", dialect, tmp_path) as (tool, guest):
        before = read_target(tool, target)
        guest.say(f"attack {attack}")
        deadline = monotonic() + PATIENCE
        while tool.events < 2 * FUTILE and monotonic() < deadline:
            record = tool.verdict()
            assert record is None or str(record["done"]).startswith(
                ("injected exception 13", "had the guest try again")
            )
        assert tool.events >= 2 * FUTILE
        assert read_target(tool, target) == before
    note_outcome(attack, "small", dialect, "guarded", "held: nothing is written, and the vCPU doesn't go on")


@pytest.mark.parametrize(("dialect", "attack"), list(product(DIALECTS, REPORTED)))
def test_attack__without_an_event_is_reported(profile: Profile, dialect: str, attack: str, tmp_path: Path) -> None:
    text = "table: deny write to kernel:sys_call_table"
    with guarded(profile, text, dialect, tmp_path, verify=0.5) as (tool, guest):
        said = guest.tell("act neighbour")
        assert goes_on(guest, said)
        assert guest.tell(f"attack {attack}")["outcome"] == "changed"
        record = tool.wait_for("guarded bytes in")
        assert (record["state"], record["severity"], record["rules"]) == ("DEGRADED", "critical", ["table"])
    note_outcome(attack, "small", dialect, "guarded", "reported: found when the bytes are read again")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_freed_frame__belongs_to_whoever_has_it_next(profile: Profile, dialect: str, tmp_path: Path) -> None:
    init = small_image().symbols["evil_init"]
    text = f"module: deny write to virtual {init:#x} size 4K"
    with guarded(profile, text, dialect, tmp_path) as (tool, guest):
        assert guest.tell("act module-free")["outcome"] == "changed"
        record = tool.wait_for("the guest has mapped guarded addresses elsewhere")
        assert record["severity"] == "critical"
        assert record["unmapped"] == [f"virtual {init:#x}..{init + PAGE_SIZE:#x}"]
    note_outcome("module-free", "small", dialect, "unprotected", "succeeds, as it may")
    note_outcome("module-free", "small", dialect, "guarded", "let through and reported: the frame was freed")


def read_target(tool: WatchedTool, target: Memory) -> bytes:
    """What an attack is after, read by the tool over KVMI, page by page."""
    start = small_image().symbols[target.symbol] + target.offset
    first = min(target.size, PAGE_SIZE - start % PAGE_SIZE)
    found = tool.read(target.symbol, target.offset, first)
    return found + (
        tool.read(target.symbol, target.offset + first, target.size - first) if first < target.size else b""
    )


def goes_on(guest: GuestProcess, since: Mapping[str, object]) -> bool:
    """Whether the guest still does what it's asked for, and its clock goes on from what an answer said."""
    earlier = since["jiffies"]
    assert isinstance(earlier, list)
    deadline = monotonic() + PATIENCE
    while monotonic() < deadline:
        said = guest.tell("act neighbour")
        now = said["jiffies"]
        assert isinstance(now, list)
        assert said["outcome"] == "changed"
        if now[1] > earlier[1]:
            return True
    return False


@pytest.mark.parametrize(
    ("dialect", "attack"),
    [(dialect, name) for dialect in DIALECTS for name in (*ATTACKS, *HELD, *REPORTED)],
)
def test_attack__succeeds_without_the_rule(guests: Guests, dialect: str, attack: str) -> None:
    tool, guest = guests.having(HARMLESS, dialect)
    events = tool.events
    said = guest.tell(f"attack {attack}")
    assert (said["outcome"], said["events"]) == ("changed", 0)
    assert tool.events == events
    assert goes_on(guest, said)
    note_outcome(attack, "small", dialect, "unprotected", "succeeds")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_hypercall_flood__is_answered_to_the_last(guests: Guests, dialect: str) -> None:
    tool, guest = guests.having(HARMLESS, dialect)
    before = tool.events
    said = guest.tell("act hypercall-flood")
    assert (said["outcome"], said["events"], said["returned"]) == ("changed", 256, 0)
    assert tool.verdict() is not None
    assert tool.events == before + 256
    note_outcome("hypercall-flood", "small", dialect, "guarded", "256 events answered")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_write_storm_beside_a_guarded_object__passes_without_a_record(guests: Guests, dialect: str) -> None:
    tool, guest = guests.having(f"rule: {OBJECT}", dialect)
    start = int.from_bytes(tool.read("neighbour_after", 0, 8), "little")
    tool.verdict()
    said = guest.tell("act write-storm")
    assert (said["outcome"], said["fault"]) == ("changed", None)
    assert int.from_bytes(tool.read("neighbour_after", 0, 8), "little") == start + 256
    assert tool.verdict() is None
    note_outcome("write-storm", "small", dialect, "guarded", f"passes: {said['events']} events")


def test_monitor_mode__lets_the_attack_succeed_and_records_it(profile: Profile, dialect: str, tmp_path: Path) -> None:
    text = "deny write to kernel .text mode monitor"
    with guarded(profile, text, dialect, tmp_path) as (tool, guest):
        assert guest.tell("attack inline-hook")["outcome"] == "changed"
        record = tool.verdict()
        assert record is not None
        assert (record["effect"], record["would"], record["done"]) == ("allow", "deny", "let through")


def test_patching__needs_its_exception(profile: Profile, dialect: str, tmp_path: Path) -> None:
    rule = "deny write to kernel .text"
    excepted = rule + ' except from kernel:__text_poke because "the kernel patches itself"'
    with guarded(profile, rule, dialect, tmp_path) as (_, guest):
        assert guest.tell("act patch")["outcome"] == "unchanged"
    with guarded(profile, excepted, dialect, tmp_path) as (tool, guest):
        assert guest.tell("act patch")["outcome"] == "changed"
        assert tool.exempted == 6


def test_leaving__gives_the_guest_its_rights_back(profile: Profile, dialect: str, tmp_path: Path) -> None:
    with guarded(profile, "deny write to kernel .text", dialect, tmp_path) as (tool, guest):
        assert guest.tell("attack inline-hook")["outcome"] == "unchanged"
        end = tool.stop()
        assert end is not None
        assert end.reason == "the guest has been let go"
        assert guest.tell("attack inline-hook")["outcome"] == "changed"


def test_guest_whose_entry_points_are_elsewhere__is_refused(profile: Profile, dialect: str, tmp_path: Path) -> None:
    entry = f"{small_image().symbols['entry_SYSCALL_64']:x} T entry_SYSCALL_64"
    moved = small_system_map().replace(entry, entry.replace("0 T", "8 T"))
    assert moved != small_system_map()
    other = build_profile(moved.encode())
    tool = WatchedTool(compile_text(other, "deny write to kernel .text"), other, tmp_path / "s", tmp_path / "a")
    tool.start()
    guest = GuestProcess(tmp_path / "s", dialect)
    try:
        from policyc.cli.exit_codes import CommandError

        with pytest.raises(CommandError, match="its entry points were changed"):
            tool.wait_until_armed()
        assert guest.tell("attack inline-hook")["outcome"] == "changed"
    finally:
        tool.stop()
        guest.stop()
