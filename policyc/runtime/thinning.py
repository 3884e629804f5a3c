"""Thins records as `at most N per second` asks, and counts what is left out; verdicts don't come by here."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from policyc.catalog import RATE_SECONDS
from policyc.plan.model import Rule

__all__ = ["Thinner"]


class Thinner:
    """Says of each record whether it is to be written.

    A record is written for the sake of every rule in it that has no limit, or hasn't reached it: in any stretch of
    time as long as the limit's, no more records than it says are written for the rule alone.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._limits = {index: _Limit(rule) for index, rule in enumerate(rules) if rule.record.limit is not None}
        self._thinned: dict[int, int] = {}
        self._untold: dict[int, int] = {}

    @property
    def thinned(self) -> Mapping[int, int]:
        """Records left out, by the first rule in them."""
        return self._thinned

    def admit(self, rules: Sequence[int], now: float) -> int | None:
        """Whether to write a record that these rules, the winner first, are in.

        Args:
            now: seconds on a clock that never runs back.

        Returns:
            None to leave it out; else how many that began with the same rule were left out since the last one.
        """
        if not self._limits:
            return 0
        wanted = False
        for index in rules:
            limit = self._limits.get(index)
            # A rule without room still goes with a record that another one wants.
            wanted |= limit is None or limit.take(now)
        first = rules[0]
        if wanted:
            return self._untold.pop(first, 0)
        self._thinned[first] = self._thinned.get(first, 0) + 1
        self._untold[first] = self._untold.get(first, 0) + 1
        return None


class _Limit:
    """When the last records were written for one rule's sake."""

    __slots__ = ("_period", "_times")

    def __init__(self, rule: Rule) -> None:
        rate = rule.record.limit
        assert rate is not None, "a rule without limit isn't limited"
        self._period = RATE_SECONDS[rate.per]
        self._times: deque[float] = deque(maxlen=rate.count)

    def take(self, now: float) -> bool:
        """Whether there is room for one more; it is taken then."""
        times = self._times
        if len(times) == times.maxlen and now - times[0] < self._period:
            return False
        times.append(now)
        return True
