"""What `policyc guest` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GuestOptions"]

_DEFAULT_UUID: Final = UUID("6f6c6963-7963-4d61-9e67-756573740001")


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """A guest and how it is connected.

    Attributes:
        socket: where the tool listens; None runs the guest without one.
        dialect: "kvmi-v7" or "kvmi-v12".
        uuid, name: how the machine introduces itself.
        cookie_file: secret that the tool must know; None lets any tool in.
        reconnect: seconds between attempts to connect.
        snapshot: folder of the Linux machine to continue; None runs the small guest.
        workload: keep the Linux guest's shell busy.
        slide: kernel slide in bytes, a multiple of 2 MiB; None draws one.
        ram_mib: RAM in MiB.
        cpu: "intel" or "amd".
        tick: seconds between timer interrupts.
        firmware: seconds that the machine spends before its kernel starts; 0 boots the kernel before connecting.
        attacks: names to run once the tool has armed; none of them is a tour of everything.
        settle: seconds after which they run without a tool, or with one that arms nothing.
        once: end when they have been run.
        json: one JSON object a line instead of sentences.
        deaf_frames: behave as deployed v7 kernels do (see `Behaviour`).
        crash_ignored: go on after an event was answered CRASH.
    """

    socket: Path | None = None
    dialect: str = "kvmi-v7"
    uuid: UUID = _DEFAULT_UUID
    name: str = "small"
    cookie_file: Path | None = None
    reconnect: float = 10.0
    snapshot: Path | None = None
    workload: bool = False
    slide: int | None = 0
    ram_mib: int = 64
    cpu: str = "intel"
    tick: float = 0.01
    firmware: float = 0.0
    attacks: tuple[str, ...] = ()
    settle: float = 3.0
    once: bool = False
    json: bool = False
    deaf_frames: bool = False
    crash_ignored: bool = False
