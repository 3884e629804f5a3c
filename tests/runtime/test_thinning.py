"""Thinning of records: never more than a rule's limit in any stretch of time, and everything left out counted."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.catalog import RATE_SECONDS
from policyc.kvmi import V12, EventKind, PageAccess, PfData
from policyc.plan.model import Rate, Record, Rule
from policyc.runtime.records import VerdictRecord
from policyc.runtime.state import Phase
from policyc.runtime.thinning import Thinner
from tests.support.plans import LOG, rule
from tests.support.scripted_kernel import IMAGE_BASE, SLIDE, Conversation, ScriptedKernel, compile_plan, gpa_of


def limited(count: int, per: str = "second") -> Rule:
    return replace(rule(LOG, (0,)), record=Record(limit=Rate(count, per)))


FREE = rule(LOG, (0,))

times = st.lists(st.integers(0, 40).map(lambda tenths: tenths / 10), max_size=60).map(sorted)


@settings(deadline=None)
@given(times, st.integers(1, 4))
def test_admit__agrees_with_looking_back_over_all_that_was_written(moments: list[float], count: int) -> None:
    thinner, written = Thinner([limited(count)]), list[float]()
    for now in moments:
        room = sum(now - earlier < 1 for earlier in written) < count
        assert (thinner.admit([0], now) is not None) == room
        if room:
            written.append(now)
    assert len(written) + thinner.thinned.get(0, 0) == len(moments)


@settings(deadline=None)
@given(times, st.integers(1, 4))
def test_admit__tells_of_everything_that_it_left_out(moments: list[float], count: int) -> None:
    thinner = Thinner([limited(count)])
    told = [thinner.admit([0], now) for now in [*moments, 100.0]]
    assert sum(one for one in told if one is not None) == told.count(None) == sum(thinner.thinned.values())


def test_admit__a_rule_without_limit_writes_everything() -> None:
    thinner = Thinner([FREE, limited(1)])
    assert [thinner.admit([0], 0.0) for _ in range(5)] == [0] * 5
    assert [thinner.admit([1, 0], 0.0) for _ in range(5)] == [0] * 5
    assert thinner.admit([1], 0.0) is None


def test_admit__a_record_is_written_while_one_of_its_rules_has_room() -> None:
    thinner = Thinner([limited(1), limited(2)])
    assert [thinner.admit([0, 1], 0.0) for _ in range(4)] == [0, 0, None, None]
    assert thinner.thinned == {0: 2}
    assert thinner.admit([1], 0.5) is None
    assert thinner.admit([0, 1], 1.0) == 2
    assert thinner.admit([1], 1.0) == 1


def test_admit__each_unit_of_time() -> None:
    for per, seconds in RATE_SECONDS.items():
        thinner = Thinner([limited(2, per)])
        answers = [thinner.admit([0], now) for now in (0.0, 0.1, seconds - 0.1, float(seconds), seconds + 0.1)]
        assert answers == [0, 0, None, 1, 0]


def test_enforcer__thins_records_and_no_verdict() -> None:
    text = "deny write to kernel .text by fault at most 2 per minute log write to kernel .rodata at most 1 per hour"
    talk = Conversation(compile_plan(text), ScriptedKernel(V12))
    talk.connect()
    assert talk.state.phase is Phase.ARMED

    def write(address: int) -> None:
        data = PfData(address + SLIDE, gpa_of(address), PageAccess.W)  # type: ignore[arg-type]  # an address of the image
        talk.event(EventKind.PF, data, rip=IMAGE_BASE + SLIDE)

    for address in (0x1000, 0x4000):
        for _ in range(5):
            write(IMAGE_BASE + address)
    talk.now += 60
    write(IMAGE_BASE + 0x1000)
    written = [record for record in talk.records if isinstance(record, VerdictRecord)]
    assert [(record.done, record.thinned) for record in written] == [
        ("injected exception 13", 0),
        ("injected exception 13", 0),
        ("let through", 0),
        ("injected exception 13", 3),
    ]
    assert written[-1].to_json(talk.state.plan)["thinned"] == 3
    assert "thinned" not in written[0].to_json(talk.state.plan)
    assert talk.state.counters.acted == {"fault": 6, "log": 5}
    assert sum(talk.state.thinner.thinned.values()) == 7
