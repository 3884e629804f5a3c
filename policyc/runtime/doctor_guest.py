"""What there is to say about a guest that was examined: what its kernel and processor can do, and what they can't.

What a generation of KVMI takes away on one processor or the other was seen on running v7 and v12 kernels; what page
rights a processor holds is in the Intel SDM, volume 3, 29.3.3 (EPT), and the AMD APM, volume 2, 15.25 (nested paging).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from policyc.guest.linux_kernel import KernelFound, KernelNotReady, WrongKernel
from policyc.kvmi import V6, V7, V12, Dialect, SetPageWriteBitmap
from policyc.runtime.doctor_case import Case, Level
from policyc.runtime.doctor_chart import Permission
from policyc.runtime.doctor_losses import LOST_WITH_COMMAND, LOST_WITH_EVENT, command_name, event_name
from policyc.runtime.doctor_rows import Row, each, when

__all__ = ["ROWS"]

MAX_DISAGREEMENTS = 3
"""Places of a kernel that contradict the profile and are named; the others are counted."""


def _dialect(case: Case) -> Dialect | None:
    return case.chart.negotiated.dialect if case.chart.negotiated is not None else None


def _speaks(*dialects: Dialect) -> Callable[[Case], bool]:
    return lambda case: case.was_examined and _dialect(case) in dialects


def _is_amd(case: Case) -> bool:
    return case.chart.cpu is not None and case.chart.cpu.is_amd


def _may_all(case: Case) -> bool:
    """Whether everything is allowed that enforcement can't be without, in a dialect in which there is enforcement."""
    chart = case.chart
    return (
        _speaks(V7, V12)(case)
        and all(chart.may(command) for command, loss in LOST_WITH_COMMAND.items() if loss.level is Level.BROKEN)
        and all(
            chart.events.get(kind) is Permission.ALLOWED
            for kind, loss in LOST_WITH_EVENT.items()
            if loss.level is Level.BROKEN
        )
    )


def _denied(level: Level) -> Callable[[Case], Iterator[str]]:
    """What isn't allowed and would weigh so much."""

    def facts(case: Case) -> Iterator[str]:
        for command, permission in case.chart.commands.items():
            loss = LOST_WITH_COMMAND.get(command)
            if permission is not Permission.ALLOWED and loss is not None and loss.level is level:
                yield f"{command_name(command)} is {_said(permission)}: {loss.what}"
        for kind, allowed in case.chart.events.items():
            loss = LOST_WITH_EVENT.get(kind)
            if allowed is not Permission.ALLOWED and loss is not None and loss.level is level:
                yield f"{event_name(kind)} events are {_said(allowed)}: {loss.what}"

    return facts


def _said(permission: Permission) -> str:
    return "denied by the VMM" if permission is Permission.DENIED else "unknown to the kernel"


def _unstarted(case: Case) -> Iterator[str]:
    waiting = [str(vcpu.index) for vcpu in case.chart.vcpus if vcpu.is_started is False]
    if waiting:
        plural = "s" if len(waiting) > 1 else ""
        yield f"vCPU{plural} {', '.join(waiting)} {'have' if plural else 'has'}n't been started by the guest yet"


def _unanswered(case: Case) -> Iterator[str]:
    if case.was_examined:
        yield from (f"no answer about {what}" for what in case.chart.silences)


def _cannot_step(case: Case) -> Iterator[str]:
    negotiated = case.chart.negotiated
    if _speaks(V7, V12)(case) and negotiated is not None and not negotiated.features.singlestep:
        why = "an AMD processor has no monitor trap" if _is_amd(case) else "the kernel doesn't offer it"
        yield f"no single-stepping, {why}: an instruction that KVM can't emulate can't be stepped over"


def _kernel_found(case: Case) -> Iterator[str]:
    found = case.chart.search
    if isinstance(found, KernelFound):
        named = f": {found.banner}" if found.banner else ""
        yield f"the profile's kernel runs here, slid by {found.slide:#x}{named}"


def _wrong_kernel(case: Case) -> Iterator[str]:
    found = case.chart.search
    if isinstance(found, WrongKernel) and found.whole:
        yield f"this isn't the profile's kernel: {found.reason}"
        yield from map(str, found.disagreements[:MAX_DISAGREEMENTS])


def _changed_kernel(case: Case) -> Iterator[str]:
    found = case.chart.search
    if isinstance(found, WrongKernel) and not found.whole:
        yield f"this is the profile's kernel, and not as it was built: {found.reason}"
        yield from map(str, found.disagreements[:MAX_DISAGREEMENTS])


def _kernel_not_ready(case: Case) -> Iterator[str]:
    found = case.chart.search
    if isinstance(found, KernelNotReady):
        yield f"the profile's kernel doesn't run yet: {found.reason}"


def _unsearchable(case: Case) -> Iterator[str]:
    if case.chart.search_problem is not None:
        yield f"the profile's kernel can't be looked for: {case.chart.search_problem}"


def _huge_pages(case: Case) -> Iterator[str]:
    if case.was_examined and case.host.huge_pages not in (None, "never"):
        yield f"transparent huge pages are in use on this host ({case.host.huge_pages}): protecting a page splits one"


MORE = "see `-object introspection,command=…,event=…` of QEMU: without these two, everything is allowed"
NO_TRIAL = "run `policyc doctor --probe`, which takes evidence"

ROWS: tuple[Row, ...] = (
    when(
        "ready",
        Level.GOOD,
        _may_all,
        "policyc speaks this kernel's dialect, and everything that enforcement can't be without is allowed",
    ),
    when(
        "dialect-v6",
        Level.BROKEN,
        _speaks(V6),
        "kvmi-v6 is understood here, but nothing is enforced in it: it can't translate addresses, and drops registers "
        "that are set outside of an event while it says success",
        "use a kernel of branch kvmi-v7 or kvmi-v12",
    ),
    when(
        "vcpus-silent",
        Level.BROKEN,
        lambda case: case.was_examined and case.chart.are_vcpus_silent,
        "the vCPUs don't answer: the VMM doesn't run them, as while a machine is paused",
        "let the machine run: `virsh resume`, or `cont` in QEMU's monitor",
    ),
    each("denied", Level.BROKEN, _denied(Level.BROKEN), MORE),
    each("denied-in-part", Level.WEAK, _denied(Level.WEAK), MORE),
    each("unanswered", Level.WEAK, _unanswered),
    when(
        "no-msr-events",
        Level.WEAK,
        lambda case: _speaks(V12)(case) and _is_amd(case),
        "no MSR event comes from a kvmi-v12 kernel on AMD, although every command succeeds: rules on MSRs see changes "
        "late or never",
    ),
    when(
        "no-descriptor-events",
        Level.WEAK,
        lambda case: _speaks(V7)(case) and _is_amd(case),
        "a kvmi-v7 kernel can't intercept descriptor tables on AMD: rules on idtr, gdtr, ldtr and tr can't be armed",
    ),
    each("no-single-step", Level.WEAK, _cannot_step),
    when(
        "no-uuid",
        Level.WEAK,
        lambda case: case.was_examined and case.chart.hello is not None and not any(case.chart.hello.uuid),
        "the guest has no UUID, so it can't be told from others without one",
        "start QEMU with `-uuid`; libvirt does it by itself",
    ),
    each(
        "foreign-kernel",
        Level.BROKEN,
        _wrong_kernel,
        "make a profile of the kernel that runs here: `policyc profile build`",
    ),
    each(
        "kernel-changed",
        Level.BROKEN,
        _changed_kernel,
        "look at what is there before you guard it: a rootkit leads entry points to code of its own",
    ),
    each("profile-unusable", Level.BROKEN, _unsearchable),
    each("kernel-not-ready", Level.NOTE, _kernel_not_ready),
    each("kernel-found", Level.GOOD, _kernel_found),
    when(
        "no-kernel",
        Level.NOTE,
        lambda case: case.was_examined and case.chart.kernel is not None and not case.chart.kernel.is_kernel,
        "no kernel runs yet, since LSTAR is 0: `policyc run` waits until one does",
    ),
    each("vcpu-not-started", Level.NOTE, _unstarted, "it is given its events before its first instruction"),
    when(
        "execute-only",
        Level.NOTE,
        lambda case: case.was_examined and case.chart.cpu is not None and case.chart.cpu.is_intel,
        "this processor holds pages that may be executed and not read: `compile --cpu intel` allows it",
    ),
    when(
        "no-execute-only",
        Level.NOTE,
        lambda case: case.was_examined and case.chart.cpu is not None and not case.chart.cpu.is_intel,
        "this processor holds no page that may be executed and not read: who denies reads denies execution as well",
    ),
    when(
        "write-needs-read",
        Level.NOTE,
        lambda case: case.was_examined,
        "no processor holds a page that may be written and not read: who denies reads denies writes as well",
    ),
    when(
        "rights-unverified",
        Level.NOTE,
        _speaks(V7, V12),
        "this kernel doesn't let page rights be read back: what it accepts can't be verified",
    ),
    when(
        "deaf-frames-possible",
        Level.NOTE,
        lambda case: _speaks(V7)(case) and not case.is_probed,
        "some kvmi-v7 kernels let writes to half of all protected frames pass, those whose number has bit 1 set, and "
        "no reply shows it",
        NO_TRIAL,
    ),
    when(
        "rights-per-machine",
        Level.NOTE,
        lambda case: case.was_examined,
        "page rights are per VM, never per vCPU; events are per vCPU, and one without them passes everything silently",
    ),
    when(
        "answers-needed",
        Level.NOTE,
        lambda case: case.was_examined,
        "a vCPU stands still until its event is answered, and there is no time limit: a tool that sets rights has to "
        "answer as long as it is connected",
    ),
    when(
        "late-vcpus",
        Level.NOTE,
        _speaks(V12),
        "kvmi-v12 doesn't announce new vCPUs: one that is plugged in later is noticed by asking",
    ),
    when(
        "one-socket",
        Level.NOTE,
        lambda case: case.was_examined,
        "several VMs may share one socket: each has a connection of its own, and is told from the others by its UUID",
    ),
    when(
        "never-allowed",
        Level.NOTE,
        lambda case: _speaks(V7)(case) and case.chart.commands.get(SetPageWriteBitmap) is Permission.DENIED,
        "no VMM can allow SET_PAGE_WRITE_BITMAP in a kvmi-v7 kernel; nothing here needs it",
    ),
    when(
        "connection-guards",
        Level.NOTE,
        lambda case: case.was_examined,
        "everything is lifted when the connection ends, and when the guest is reset, migrated or saved",
    ),
    when(
        "merged-pages",
        Level.NOTE,
        lambda case: case.was_examined and case.host.ksm is True,
        "KSM merges pages on this host, and should be off for guests that are introspected",
        "write 2 to /sys/kernel/mm/ksm/run",
    ),
    each(
        "huge-pages",
        Level.NOTE,
        _huge_pages,
        "KVM-VMI's guide turns them off: write never to /sys/kernel/mm/transparent_hugepage/enabled",
    ),
)
"""Everything about a guest but the write test, in the order in which it is said."""
