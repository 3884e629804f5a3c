"""A case as people read it: sections of facts, each a name and what is known under it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from policyc.diagnostics import printable
from policyc.guest.linux_kernel import KernelFound
from policyc.kvmi import V6, V7, V12, CpuMode, Dialect, Features, Hello, HelloForm
from policyc.runtime.doctor_case import Case
from policyc.runtime.doctor_chart import Chart, Cpu, KernelState, Permission, VcpuFacts
from policyc.runtime.doctor_host import Host
from policyc.runtime.doctor_losses import command_name, event_name
from policyc.runtime.doctor_place import Place
from policyc.runtime.transport import Occupant

__all__ = ["HELLO_FORMS", "RECOGNISED_BY", "Section", "feature_names", "rights_held", "sections_of"]

FOUND: Mapping[Occupant | None, str] = {
    Occupant.NOTHING: "nothing",
    Occupant.LEFT_BEHIND: "a socket that nobody uses any more",
    Occupant.IN_USE: "a socket that is in use",
    None: "can't be found out",
}

HELLO_FORMS: Mapping[HelloForm, str] = {
    HelloForm.V7: "96 bytes, as QEMU of branches kvmi-v5 to kvmi-v7 sends",
    HelloForm.V12: "104 bytes with the end of memory, as QEMU of branch kvmi-v12 sends",
    HelloForm.E820: "with a memory map, as QEMU of branch kvmi-v7-2.11.93 sends",
}

RECOGNISED_BY: Mapping[Dialect, str] = {
    V6: "GET_VERSION was answered without features",
    V7: "GET_VERSION was answered with features and no message size",
    V12: "GET_VERSION announced a message size, and there is no command 22",
}
"""What told the dialect: the version number is 1 in every generation."""

MODES: Mapping[CpuMode, str] = {CpuMode.REAL: "16-bit", CpuMode.PROTECTED: "32-bit", CpuMode.LONG: "64-bit"}


@dataclass(frozen=True, slots=True)
class Section:
    """Facts under one heading: pairs of a name and a text, both safe to print."""

    title: str
    lines: tuple[tuple[str, str], ...]


def sections_of(case: Case) -> tuple[Section, ...]:
    """Everything that is known, in the order of the way to a guest."""
    chart = case.chart
    sections = [("Socket", _socket(case)), ("This host", _host(case.host))]
    if case.came:
        sections.append(("Connection", _connection(case)))
    if chart.negotiated is not None:
        sections.append(("Guest", _guest(chart)))
        named = {command_name(command): found for command, found in chart.commands.items()}
        sections.append(("Commands", _permissions(named)))
        sections.append(("Events", _permissions({event_name(kind): found for kind, found in chart.events.items()})))
    if chart.probe is not None:
        sections.append(("Write test", _probe(chart)))
    return tuple(
        Section(title, tuple((name, printable(text)) for name, text in lines))
        for title, lines in ((title, list(lines)) for title, lines in sections)
        if lines
    )


def rights_held(cpu: Cpu) -> tuple[str, ...]:
    """The page rights that this processor's nested paging holds."""
    return ("rwx", "rw-", "r-x", "r--", "---", *(("--x",) if cpu.is_intel else ()))


def feature_names(features: Features) -> tuple[str, ...]:
    """What the kernel offers besides its commands."""
    names = {"singlestep": "single-step", "spp": "sub-page rights", "vmfunc": "VMFUNC", "eptp": "views", "ve": "#VE"}
    return tuple(text for name, text in names.items() if getattr(features, name))


def _socket(case: Case) -> Iterator[tuple[str, str]]:
    site = case.site
    yield "path", str(case.place.path)
    yield "found there", _found(case.place)
    if site.socket is not None:
        yield "rights", str(site.socket)
    yield "directory", f"{case.place.path.parent} {site.directory or 'does not exist'}"
    if site.accounts:
        yield (
            "may connect",
            "; ".join(
                account.name if account.obstacle is None else f"not {account.name}, which {account.obstacle}"
                for account in site.accounts
            ),
        )


def _found(place: Place) -> str:
    holder = f", by {place.holder}" if place.holder is not None else ""
    problem = f": {place.problem}" if place.problem is not None else ""
    return (place.kind or FOUND[place.occupant]) + holder + problem


def _host(host: Host) -> Iterator[tuple[str, str]]:
    if host.release is not None:
        yield "kernel", f"Linux {host.release}"
    introspection = {True: "on", False: "off", None: "not built in"}[host.introspection]
    yield "KVM", f"introspection is {introspection}" if host.has_kvm else "not loaded"
    for vmm in host.vmms:
        socket = f" to {vmm.socket}" if vmm.socket is not None else ""
        yield "QEMU", f"{vmm.process}, {f'introspected{socket}' if vmm.is_introspected else 'not introspected'}"
    if host.ksm is not None:
        yield "KSM", "on" if host.ksm else "off"
    if host.huge_pages is not None:
        yield "huge pages", host.huge_pages


def _connection(case: Case) -> Iterator[tuple[str, str]]:
    chart = case.chart
    if case.peer is not None:
        yield "peer", str(case.peer)
    if chart.hello is not None:
        yield from _hello(chart.hello)
    if chart.negotiated is not None:
        dialect = chart.negotiated.dialect
        yield "dialect", f"{dialect.name}: {RECOGNISED_BY[dialect]}"
        yield "longest message", f"{chart.negotiated.max_message_size} bytes"
        yield "features", ", ".join(feature_names(chart.negotiated.features)) or "none"
    if chart.ended is not None:
        yield "ended", chart.ended


def _hello(hello: Hello) -> Iterator[tuple[str, str]]:
    yield "hello", HELLO_FORMS[hello.form]
    yield "VM", hello.name or "no name"
    yield "UUID", str(UUID(bytes=hello.uuid))


def _guest(chart: Chart) -> Iterator[tuple[str, str]]:
    if chart.memory_end is not None:
        yield "memory ends at", f"{chart.memory_end:#x} ({chart.memory_end >> 20} MiB)"
    if chart.vcpus:
        yield "vCPUs", _vcpus(chart.vcpus)
        speeds = sorted({vcpu.tsc_hz for vcpu in chart.vcpus if vcpu.tsc_hz})
        yield "TSC", ", ".join(f"{hz / 1e6:.0f} MHz" for hz in speeds) or "frequency unknown: the host can't scale it"
    if chart.cpu is not None:
        yield "processor", _cpu(chart.cpu)
        yield "page rights", " ".join(rights_held(chart.cpu))
    if chart.kernel is not None:
        yield "runs", _kernel(chart.kernel)
    if isinstance(chart.search, KernelFound):
        yield "profile", f"found, slid by {chart.search.slide:#x}, {chart.search.boot.value}"


def _vcpus(vcpus: Iterable[VcpuFacts]) -> str:
    words = {True: "started", False: "not started", None: "no answer"}
    parts = []
    for state, word in words.items():
        indexes = [vcpu.index for vcpu in vcpus if vcpu.is_started is state]
        if indexes:
            parts.append(f"{len(indexes)} {word} ({_runs(indexes)})")
    return ", ".join(parts)


def _runs(numbers: list[int]) -> str:
    """Ascending numbers with neighbours joined: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _cpu(cpu: Cpu) -> str:
    brand = f", {cpu.brand}" if cpu.brand else ""
    return f"{cpu.vendor} family {cpu.family:#x} model {cpu.model:#x} stepping {cpu.stepping}{brand}"


def _kernel(kernel: KernelState) -> str:
    if not kernel.is_kernel:
        return f"{MODES[kernel.mode]} code, no kernel yet: LSTAR is 0"
    return f"a kernel, {MODES[kernel.mode]} at this moment, LSTAR {kernel.registers.lstar:#x}"


def _permissions(found: Mapping[str, Permission]) -> Iterator[tuple[str, str]]:
    for permission in Permission:
        names = [name for name, each in found.items() if each is permission]
        if names:
            yield permission.value, " ".join(names)


def _probe(chart: Chart) -> Iterator[tuple[str, str]]:
    assert chart.probe is not None
    for trial in chart.probe.trials:
        bit = "bit 1 set" if trial.has_deaf_bit else "bit 1 clear"
        events = f" ({trial.events} event{'' if trial.events == 1 else 's'})" if trial.events else ""
        yield f"frame {trial.gfn:#x}", f"{bit}: {trial.outcome.value}{events}"
    if chart.probe.reason is not None:
        yield "not made" if not chart.probe.trials else "cut short", chart.probe.reason
