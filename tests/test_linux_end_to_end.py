"""A real Linux kernel, guarded by the real tool over real sockets, in both dialects.

The guest is a process of its own that continues the kernel and keeps its shell busy; the tool is the service that
`policyc run` runs. What became of the kernel's objects is read twice: by the tool over KVMI, and by the machine from
its own RAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest

from policyc.cli.demo_guest import GuestProcess
from policyc.cli.demo_tool import WatchedTool
from policyc.compiler.pipeline import compile_policies
from policyc.diagnostics import Source
from policyc.emulator.linux.attacks import ROUTINES
from policyc.emulator.linux.snapshot import SYMBOLS
from policyc.emulator.routines import Memory
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from tests.support.linux_guest import linux_folder
from tests.support.outcomes import note_outcome

EXCEPTION = 'except from kernel:__text_poke because "jump labels, ftrace and BPF patch code here"'
POLICY = f"""
policy "linux kernel integrity"
for linux x86_64

text: deny write to kernel .text {EXCEPTION}
rodata: deny write to kernel .rodata
gates: deny write to idt
table: on idtr write deny
bits: on cr4 pin smep | smap
entry: on msr lstar deny
helpers: deny write to kernel:core_pattern, kernel:modprobe_path
call: on hypercall 34/24 log
"""

STOPPED = {
    "inline-hook": ("text", "skipped the instruction"),
    "syscall-hook": ("rodata", "skipped the instruction"),
    "idt-entry": ("gates", "skipped the instruction"),
    "wp-clear": ("rodata", "skipped the instruction"),
    "smep-clear": ("bits", "kept the bits 0x300000"),
    "lstar": ("entry", "kept the old value"),
    "idtr": ("table", "skipped the instruction"),
    "core-pattern": ("helpers", "skipped the instruction"),
    "modprobe-path": ("helpers", "skipped the instruction"),
}
"""The rule that stops each attack, and how."""

WORKING = 2
"""Processes that the guest starts before it counts as working on."""

PATIENCE = 5000
"""Looks at the guest before it counts as standing still; each is a round trip to its process."""


@lru_cache(maxsize=1)
def linux_profile() -> Profile:
    return build_profile((linux_folder() / SYMBOLS).read_bytes())


@contextmanager
def guarded(text: str, dialect: str, folder: Path) -> Iterator[tuple[WatchedTool, GuestProcess]]:
    """A busy Linux guest with an armed tool."""
    profile = linux_profile()
    plan = compile_policies([Source("test.policy", text)], profile).plan
    assert plan is not None
    tool = WatchedTool(plan, profile, folder / "s", folder / "audit.ndjson")
    tool.start()
    guest = GuestProcess(folder / "s", dialect, str(linux_folder()), "--workload")
    try:
        tool.wait_until_armed()
        yield tool, guest
    finally:
        tool.stop()
        guest.stop()


@pytest.fixture(scope="module", params=["v7", "v12"])
def linux(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WatchedTool, GuestProcess]]:
    """One guest for all attacks: each must leave it as it was."""
    with guarded(POLICY, str(request.param), tmp_path_factory.mktemp("linux")) as both:
        yield both


@pytest.fixture(scope="module", params=["v7", "v12"])
def lenient(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WatchedTool, GuestProcess]]:
    """One guest for all attacks, of which nothing keeps it; the kernel lives with all of them."""
    with guarded("on hypercall 34/24 log", str(request.param), tmp_path_factory.mktemp("lenient")) as both:
        yield both


def dialect_of(request: pytest.FixtureRequest) -> str:
    """The one that the guest of a test speaks."""
    params = request.node.callspec.params
    found = params.get("linux") or params["lenient"]
    assert isinstance(found, str)
    return found


def works_on(tool: WatchedTool, guest: GuestProcess) -> None:
    """The guest's kernel goes on starting processes, and has nothing to complain of."""
    until = forks(tool) + WORKING
    for _ in range(PATIENCE):
        assert "panicked" not in str(guest.tell("status")["guest"])
        if forks(tool) >= until:
            break
    else:
        pytest.fail("the guest starts no processes")
    assert tool.read("tainted_mask", 0, 8) == bytes(8)


def forks(tool: WatchedTool) -> int:
    return int.from_bytes(tool.read("total_forks", 0, 8), "little")


def test_workload__raises_no_alarm(linux: tuple[WatchedTool, GuestProcess]) -> None:
    tool, guest = linux
    for _ in range(3):
        works_on(tool, guest)
    assert tool.verdict() is None


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_text_and_rodata__are_guarded_without_a_single_event(dialect: str, tmp_path: Path) -> None:
    text = f"deny write to kernel .text {EXCEPTION} deny write to kernel .rodata"
    with guarded(text, dialect, tmp_path) as (tool, guest):
        armed = tool.events
        for _ in range(3):
            works_on(tool, guest)
        assert tool.events == armed
        assert int(str(guest.tell("status")["restricted"])) == pages(".text") + pages(".rodata")


def pages(section: str) -> int:
    extent = linux_profile().kernel.sections[section]
    return -(-extent.end // 4096) - extent.start // 4096


@pytest.mark.parametrize("attack", STOPPED)
def test_attack__is_stopped_and_the_kernel_works_on(
    linux: tuple[WatchedTool, GuestProcess], attack: str, request: pytest.FixtureRequest
) -> None:
    tool, guest = linux
    target = ROUTINES[attack].target
    where = (target.symbol, target.offset, target.size) if isinstance(target, Memory) else ("linux_banner", 0, 8)
    before = tool.read(*where)
    said = guest.tell(f"attack {attack}")
    assert (said["outcome"], said["fault"]) == ("unchanged", None)
    assert tool.read(*where) == before
    record = tool.verdict()
    assert record is not None
    rule, done = STOPPED[attack]
    rules = record["rules"]
    assert isinstance(rules, list)
    assert [applied["rule"] for applied in rules] == [rule]
    assert record["done"] == done
    works_on(tool, guest)
    note_outcome(attack, "linux", dialect_of(request), "guarded", f"stopped: {done}")


@pytest.mark.parametrize("attack", STOPPED)
def test_attack__succeeds_without_its_rule(
    lenient: tuple[WatchedTool, GuestProcess], attack: str, request: pytest.FixtureRequest
) -> None:
    tool, guest = lenient
    said = guest.tell(f"attack {attack}")
    assert (said["outcome"], said["fault"], said["events"]) == ("changed", None, 0)
    assert tool.verdict() is None
    works_on(tool, guest)
    note_outcome(attack, "linux", dialect_of(request), "unprotected", "succeeds")


def test_patching_by_the_kernel__goes_through_the_exception(linux: tuple[WatchedTool, GuestProcess]) -> None:
    tool, guest = linux
    exempted = tool.exempted
    assert guest.tell("act patch")["outcome"] == "changed"
    assert tool.exempted == exempted + 5
    assert tool.verdict() is None
    works_on(tool, guest)


def test_hypercall__is_recorded(linux: tuple[WatchedTool, GuestProcess]) -> None:
    tool, guest = linux
    assert guest.tell("act hypercall")["fault"] is None
    record = tool.verdict()
    assert record is not None
    assert record["effect"] == "log"


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_patching_by_the_kernel__is_stopped_without_the_exception(dialect: str, tmp_path: Path) -> None:
    with guarded("deny write to kernel .text", dialect, tmp_path) as (tool, guest):
        assert guest.tell("act patch")["outcome"] == "unchanged"
        record = tool.verdict()
        assert record is not None
        assert record["effect"] == "deny"
        works_on(tool, guest)
