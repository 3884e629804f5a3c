"""Everything that an examination has brought together, and the form of what is said about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from policyc.runtime.doctor_chart import Chart, Stage
from policyc.runtime.doctor_host import Host
from policyc.runtime.doctor_place import Place, Site
from policyc.runtime.doctor_processes import Process

__all__ = ["Case", "Finding", "Level"]


class Level(Enum):
    """How much a finding weighs.

    GOOD: as it should be. NOTE: worth knowing. WEAK: something that a policy may ask for can't be had, or isn't proven.
    BROKEN: nothing can be enforced, or not reliably, until it is repaired.
    """

    GOOD = "good"
    NOTE = "note"
    WEAK = "weak"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say: a stable code, a sentence of fact, and one of help where something can be done.

    Both are one line, in lower case and without a full stop. They may quote the guest and are safe to print.
    """

    code: str
    level: Level
    fact: str
    help: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """What is known after waiting, and talking to a guest if one came.

    Attributes:
        place: what was at the socket's path.
        site: the rights around it, once it was listened on where that was possible.
        host: this host.
        chart: of the guest, empty where nobody came.
        peer: who connected.
        listened: whether the socket could be made.
        problem, remedy: why it couldn't, and what would help.
        waited: seconds that were waited for a guest, at most.
        has_secret: whether we had a secret to prove.
        is_probed: whether the write test was asked for.
    """

    place: Place
    site: Site
    host: Host
    chart: Chart
    peer: Process | None = None
    listened: bool = True
    problem: str | None = None
    remedy: str | None = None
    waited: float = 0.0
    has_secret: bool = False
    is_probed: bool = False

    @property
    def came(self) -> bool:
        """Whether somebody connected."""
        return self.chart.stage is not Stage.NOBODY

    @property
    def was_examined(self) -> bool:
        """Whether a guest was there until everything was asked."""
        return self.chart.stage is Stage.EXAMINED
