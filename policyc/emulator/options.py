"""What `policyc guest` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

if TYPE_CHECKING:
    from pathlib import Path

    from policyc.emulator.defects import Quirk

__all__ = ["GuestOptions"]

_DEFAULT_UUID: Final = UUID("6f6c6963-7963-4d61-9e67-756573740001")


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """A guest and how it is connected.

    Attributes:
        socket: where the tool listens; None runs the guest without one.
        dialect: "kvmi-v7" or "kvmi-v12".
        hello: how the VMM introduces the machine, a name of `HELLOS`; None for the way that goes with the dialect.
        uuid, name: how the machine introduces itself.
        cookie_file: secret that the tool must know; None lets any tool in.
        reconnect: seconds between attempts to connect.
        handshake_timeout: seconds for the tool to answer the hello.
        unhook_timeout: seconds for the tool to leave when it is asked to.
        allow_commands, allow_events: what the VMM lets the tool use, by number or name; none of them is everything.
        snapshot: folder of the Linux machine to continue; None runs the small guest.
        workload: keep the Linux guest's shell busy.
        slide: kernel slide in bytes, a multiple of 2 MiB; None draws one.
        ram_mib: RAM in MiB.
        cpu: "intel" or "amd".
        vcpus: how many there are.
        online: how many of them the guest starts as it boots; None is all.
        seed: of the order in which they take their turns.
        kpti: whether the guest's user mode has page tables of its own.
        tick: seconds between timer interrupts.
        boot: seconds from power-on until the kernel is loaded; 0 boots it before connecting.
        attacks: names to run once the tool has armed; none of them is a tour of everything.
        settle: seconds after which they run without a tool, or with one that arms nothing.
        once: end when they have been run.
        json: one JSON object a line instead of sentences.
        record: file to keep the conversations in, see `recording`.
        views: EPT views can be switched, on Intel in kvmi-v7.
        quirks: defects of deployed hosts to have.
    """

    socket: Path | None = None
    dialect: str = "kvmi-v7"
    hello: str | None = None
    uuid: UUID = _DEFAULT_UUID
    name: str = "small"
    cookie_file: Path | None = None
    reconnect: float = 10.0
    handshake_timeout: float = 10.0
    unhook_timeout: float = 60.0
    allow_commands: tuple[str, ...] = ()
    allow_events: tuple[str, ...] = ()
    snapshot: Path | None = None
    workload: bool = False
    slide: int | None = 0
    ram_mib: int = 64
    cpu: str = "intel"
    vcpus: int = 1
    online: int | None = None
    seed: int = 0
    kpti: bool = False
    tick: float = 0.01
    boot: float = 0.0
    attacks: tuple[str, ...] = ()
    settle: float = 3.0
    once: bool = False
    json: bool = False
    record: Path | None = None
    views: bool = False
    quirks: frozenset[Quirk] = frozenset()
