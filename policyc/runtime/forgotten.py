"""Commands whose answers nobody waits for any more, and the vCPUs that owe them.

A vCPU that isn't in KVM_RUN, or waits for its start-up interrupt, answers nothing until it runs. Whoever asked gives up
after a while, but the connection goes on expecting the answer: were such a vCPU asked again and again, the number of
unanswered commands would grow for as long as the guest likes.
"""

from __future__ import annotations

from policyc.kvmi import Command, PauseVcpu

__all__ = ["Forgotten", "executor_of"]


def executor_of(command: Command) -> int | None:
    """The vCPU whose thread carries a command out; None where the kernel's receiver does, as it does for PAUSE."""
    if isinstance(command, PauseVcpu):
        return None
    vcpu: int | None = getattr(command, "vcpu", None)
    return vcpu


class Forgotten:
    """The commands that were given up on and may still be answered.

    Attributes:
        silent: vCPUs that owe an answer and haven't been heard of since.
    """

    def __init__(self) -> None:
        self.silent: set[int] = set()
        self._tickets: dict[int, int | None] = {}

    def __len__(self) -> int:
        """How many are still unanswered."""
        return len(self._tickets)

    def add(self, ticket: int, vcpu: int | None) -> None:
        """A command has been given up on; `vcpu` is its executor."""
        self._tickets[ticket] = vcpu
        if vcpu is not None:
            self.silent.add(vcpu)

    def answered(self, ticket: int) -> None:
        """Its answer has come after all: a vCPU carries out what it was asked in one go, so the others follow."""
        vcpu = self._tickets.pop(ticket, None)
        if vcpu is not None:
            self.silent.discard(vcpu)

    def heard(self, vcpu: int) -> None:
        """An event has come of a vCPU, which carries out commands while it waits for the answer."""
        self.silent.discard(vcpu)

    def clear(self) -> None:
        """The connection is gone."""
        self._tickets.clear()
        self.silent.clear()
