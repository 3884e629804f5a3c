"""The guarded pages of a plan, and what else lies on them."""

from __future__ import annotations

from policyc.analysis.page_map import MAX_NEIGHBOURS, GuardedPages, Neighbour, page_map
from policyc.guest.readers import build_profile
from policyc.plan.places import Base
from tests.support.decided import plan_of, small_profile
from tests.support.small_kernel import SYSTEM_MAP

BASE = 0xFFFFFFFF81000000


def shown(run: GuardedPages) -> tuple[str, int, int, str, int, int]:
    return run.span.base.word, run.span.start, run.span.end, run.run.allowed.rwx, run.run.guarded, run.run.collateral


def test_page_map__rights_and_bytes_at_slide_0() -> None:
    rules = ("write to kernel:schedule", "execute of virtual 0x1000..0x3000", "read, execute of physical 0x10..0x20")
    plan = plan_of("\n".join(f"deny {rule}" for rule in rules))
    assert [shown(run) for run in page_map(plan)] == [
        ("virtual", BASE + 0x1000, BASE + 0x2000, "r-x", 0x800, 0x800),
        ("virtual", 0x1000, 0x3000, "rw-", 0x2000, 0),
        ("physical", 0, 0x1000, "---", 0x10, 0xFF0),
    ]


def test_page_map__names_what_no_rule_is_about() -> None:
    (run,) = page_map(plan_of("deny write to kernel:text_poke_memcpy"), small_profile())
    assert run.neighbours == (
        Neighbour("kernel:schedule", BASE + 0x1000, 0x800),
        Neighbour("kernel:memcpy", BASE + 0x1880, 0x780),
    )
    assert run.more_neighbours == 0


def test_page_map__names_a_symbol_that_is_guarded_in_part() -> None:
    (run,) = page_map(plan_of("deny write to kernel:schedule size 8"), small_profile())
    assert [neighbour.name for neighbour in run.neighbours] == [
        "kernel:schedule",
        "kernel:text_poke_memcpy",
        "kernel:memcpy",
    ]


def test_page_map__without_profile_names_nothing() -> None:
    (run,) = page_map(plan_of("deny write to kernel:text_poke_memcpy"))
    assert (run.neighbours, run.more_neighbours) == ((), 0)


def test_page_map__counts_what_it_does_not_name() -> None:
    crowd = "".join(f"ffffffff8100{0x1900 + 16 * number:x} t static_{number}\n" for number in range(20))
    profile = build_profile((SYSTEM_MAP + crowd).encode())
    (run,) = page_map(plan_of("deny write to kernel:text_poke_memcpy"), profile)
    assert len(run.neighbours) == MAX_NEIGHBOURS
    assert run.more_neighbours == 2 + 20 - MAX_NEIGHBOURS


def test_page_map__of_events_alone_is_empty() -> None:
    assert page_map(plan_of("on cr4 deny")) == ()


def test_holds__the_bytes_of_its_own_space() -> None:
    (run,) = page_map(plan_of("deny write to 0x1234"))
    held = [(base, address) for base in Base for address in (0xFFF, 0x1000, 0x1FFF, 0x2000) if run.holds(base, address)]
    assert held == [(Base.VIRTUAL, 0x1000), (Base.VIRTUAL, 0x1FFF)]
