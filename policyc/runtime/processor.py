"""Whose processor a guest has, where that decides what can be enforced on it.

The answer is the CPUID leaf that KVM shows the guest. A VMM may show the leaf of another maker's processor; no KVMI
command tells what the host has.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from policyc.catalog import HOST_LIMITS, HostLimit
from policyc.kvmi import Dialect, GetCpuid, GetCpuidReply
from policyc.plan.model import Plan
from policyc.runtime.needs import Needs
from policyc.runtime.procedure import Procedure, ask

__all__ = ["MAKERS", "limits_of", "maker_of", "needs_maker"]

MAKERS: Mapping[str, str] = {
    "GenuineIntel": "intel",
    "AuthenticAMD": "amd",
    "HygonGenuine": "amd",
}
"""CPUID leaf 0 (EBX, EDX, ECX): who makes processors with VMX, and who with SVM."""


def needs_maker(plan: Plan, dialect: Dialect, needs: Needs) -> bool:
    """Whether anything that the plan needs turns on the processor's maker."""
    return plan.cpu == "intel" or any(limit.dialect == dialect.name for limit in _limits_on(needs))


def maker_of(vcpu: int) -> Procedure[str | None]:
    """`intel`, `amd`, or None where the kernel doesn't say, or says something else."""
    reply = yield from ask(GetCpuid(vcpu, 0))
    if not isinstance(reply, GetCpuidReply):
        return None
    return MAKERS.get(struct.pack("<3I", reply.ebx, reply.edx, reply.ecx).decode("latin-1"))


def limits_of(dialect: Dialect, maker: str | None, needs: Needs) -> tuple[HostLimit, ...]:
    """What the plan needs and such a host doesn't report."""
    return tuple(limit for limit in _limits_on(needs) if (limit.dialect, limit.cpu) == (dialect.name, maker))


def _limits_on(needs: Needs) -> list[HostLimit]:
    kinds = {kind.name for kind in needs.kinds}
    return [limit for limit in HOST_LIMITS if limit.kvmi in kinds]
