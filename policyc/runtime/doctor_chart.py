"""What an examination of a guest has found out so far, as plain facts without judgement.

The chart is filled in as answers come, so that a guest which hangs up half-way leaves what it said before. Everything
in it is the peer's claim: strings are made safe when they are shown, not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from policyc.addresses import Gpa
from policyc.guest.linux_kernel import KernelSearch, VcpuRegisters
from policyc.kvmi import Command, CpuMode, ErrorCode, EventKind, Hello, Negotiated, Refused, RemoteProtocolError
from policyc.runtime.frame_trials import ProbeResult
from policyc.runtime.processor import MAKERS

__all__ = [
    "Chart",
    "Cpu",
    "KernelState",
    "Permission",
    "Stage",
    "VcpuFacts",
    "permission_of",
]


class Stage(Enum):
    """How far the conversation came."""

    NOBODY = "nobody came"
    CONNECTED = "somebody connected"
    GREETED = "the VMM said hello"
    NEGOTIATED = "the kernel's dialect is known"
    EXAMINED = "everything was asked"


class Permission(Enum):
    """What CHECK_COMMAND or CHECK_EVENT answered."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNKNOWN = "unknown to the kernel"


@dataclass(frozen=True, slots=True)
class VcpuFacts:
    """One vCPU: whether it has been started, and its TSC's frequency in Hz, 0 where the host doesn't say.

    `is_started` is None where the vCPU didn't answer.
    """

    index: int
    is_started: bool | None
    tsc_hz: int = 0


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor as CPUID shows it to the guest (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E)."""

    vendor: str
    family: int
    model: int
    stepping: int
    brand: str | None = None

    @property
    def is_intel(self) -> bool:
        """Whether it has Intel's virtualization: VMX and EPT."""
        return MAKERS.get(self.vendor) == "intel"

    @property
    def is_amd(self) -> bool:
        """Whether it has AMD's virtualization: SVM and nested page tables."""
        return MAKERS.get(self.vendor) == "amd"


@dataclass(frozen=True, slots=True)
class KernelState:
    """What a started vCPU's registers say about who runs: firmware leaves LSTAR at 0."""

    mode: CpuMode
    registers: VcpuRegisters

    @property
    def is_kernel(self) -> bool:
        """Whether a 64-bit kernel has set up its system calls."""
        return self.registers.lstar != 0


@dataclass(slots=True)
class Chart:
    """The findings on one connection.

    Attributes:
        stage: how far it came.
        ended: why the connection ended before everything was asked; None if it didn't.
        fault: how the peer broke the protocol, if that ended it.
        memory_end: one past the last byte of guest memory, where something tells it.
        are_vcpus_silent: whether the vCPUs were asked and didn't answer in time.
        silences: what else was asked and not answered in time, in words.
        kernel: of the first vCPU that has been started.
        search: what came of looking for the profile's kernel; None without a profile.
        search_problem: why that search couldn't be made, in a sentence.
    """

    stage: Stage = Stage.CONNECTED
    ended: str | None = None
    fault: RemoteProtocolError | None = None
    hello: Hello | None = None
    negotiated: Negotiated | None = None
    memory_end: Gpa | None = None
    commands: Mapping[type[Command], Permission] = field(default_factory=dict)
    events: Mapping[EventKind, Permission] = field(default_factory=dict)
    vcpus: Sequence[VcpuFacts] = ()
    are_vcpus_silent: bool = False
    cpu: Cpu | None = None
    kernel: KernelState | None = None
    search: KernelSearch | None = None
    search_problem: str | None = None
    probe: ProbeResult | None = None
    silences: list[str] = field(default_factory=list)

    @property
    def started(self) -> tuple[int, ...]:
        """The vCPUs that have been started."""
        return tuple(vcpu.index for vcpu in self.vcpus if vcpu.is_started)

    def may(self, *commands: type[Command]) -> bool:
        """Whether every one of these commands is allowed."""
        return all(self.commands.get(command) is Permission.ALLOWED for command in commands)


def permission_of(result: object) -> Permission:
    """What the answer to CHECK_COMMAND or CHECK_EVENT means.

    EPERM is a no. A number that means nothing gets ENOENT in v12, and EINVAL in v7 where it is beyond the table.
    """
    if not isinstance(result, Refused):
        return Permission.ALLOWED
    return Permission.DENIED if result.errno == ErrorCode.EPERM else Permission.UNKNOWN
