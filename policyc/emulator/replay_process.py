"""A recorded conversation held with a tool over its socket, as QEMU connects to it."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from policyc.emulator.link import Link

if TYPE_CHECKING:
    from pathlib import Path

    from policyc.emulator.replay import Replay

__all__ = ["replay_to"]

_RETRY: Final = 0.1
_SETTLED: Final = 0.5
"""Seconds of the tool's silence after which what it asks once more is answered as before."""


def replay_to(path: Path, replay: Replay, deadline: float) -> None:
    """Play a conversation to its end; what was otherwise stands in `replay.differences` then.

    Args:
        deadline: seconds that the tool may take to listen, and for each thing that it has to do next.

    Raises:
        OSError: nobody listened in time; its `filename` is the path.
    """
    link = Link(path, _RETRY)
    ends = time.monotonic() + deadline
    while not link.connect(time.monotonic()):
        if time.monotonic() >= ends:
            raise TimeoutError(110, f"nobody listened for {deadline:g} seconds", str(path))
        time.sleep(_RETRY)
    assert link.socket is not None
    try:
        _converse(link.socket, replay, deadline)
    finally:
        link.close(time.monotonic())


def _converse(peer: socket.socket, replay: Replay, deadline: float) -> None:
    ends = time.monotonic() + deadline
    played = -1
    while True:
        peer.settimeout(deadline)
        try:
            peer.sendall(replay.outgoing())
        except TimeoutError:
            replay.give_up(f"the tool took nothing for {deadline:g} seconds")
        except OSError:
            replay.receive(b"")
        if replay.over:
            return
        if replay.played != played:
            played = replay.played
            ends = time.monotonic() + deadline
        left = ends - time.monotonic()
        if left <= 0:
            replay.give_up(f"the tool did nothing that was recorded for {deadline:g} seconds")
            return
        peer.settimeout(min(left, _SETTLED))
        try:
            replay.receive(peer.recv(65536))
        except TimeoutError:
            replay.repeat()
        except ConnectionError:
            replay.receive(b"")
