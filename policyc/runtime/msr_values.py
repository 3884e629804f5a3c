"""What MSRs hold, asked of the vCPUs themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from policyc.kvmi import GetRegisters, GetRegistersReply, Refused
from policyc.runtime.procedure import Procedure, ask_each

__all__ = ["read_msrs"]


def read_msrs(vcpus: Collection[int], msrs: Sequence[int]) -> Procedure[list[tuple[int, int, int | Refused]]]:
    """(vCPU, MSR, value or refusal) of every vCPU that answers. Outside KVM_RUN none does, nor changes any."""
    # One MSR a command: kernels of v12 refuse the whole command for one that can't be read.
    asked = [GetRegisters(vcpu, (msr,)) for msr in msrs for vcpu in vcpus]
    found: list[tuple[int, int, int | Refused]] = []
    for command, result in zip(asked, (yield from ask_each(asked)), strict=True):
        (msr,) = command.msrs
        if isinstance(result, GetRegistersReply):
            found.append((command.vcpu, msr, result.msrs[0].data))
        elif isinstance(result, Refused):
            found.append((command.vcpu, msr, result))
    return found
