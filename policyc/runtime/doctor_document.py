"""A case as machines read it: one JSON document, described by `policyc/runtime/schema/doctor-1.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from policyc.guest.linux_kernel import KernelFound, KernelNotReady
from policyc.runtime.doctor_case import Case, Finding
from policyc.runtime.doctor_chart import Chart
from policyc.runtime.doctor_host import Host
from policyc.runtime.doctor_invitation import libvirt_lines, qemu_arguments
from policyc.runtime.doctor_losses import command_name, event_name
from policyc.runtime.doctor_place import Rights
from policyc.runtime.doctor_processes import Process
from policyc.runtime.doctor_report import RECOGNISED_BY, feature_names, rights_held
from policyc.runtime.frame_trials import ProbeResult
from policyc.runtime.records import JsonObject

__all__ = ["FORMAT", "VERSION", "document_of"]

FORMAT = "policyc-doctor"
VERSION = 1


def document_of(case: Case, findings: Sequence[Finding], secret: Path | None) -> JsonObject:
    """The whole case as plain data; strings that the guest chose are in it as they came."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "stage": case.chart.stage.name.lower(),
        "socket": _socket(case, secret),
        "host": _host(case.host),
        "connection": _connection(case) if case.came else None,
        "guest": _guest(case.chart) if case.chart.negotiated is not None else None,
        "findings": [
            {"code": each.code, "level": each.level.value, "fact": each.fact, "help": each.help} for each in findings
        ],
    }


def _socket(case: Case, secret: Path | None) -> JsonObject:
    place = case.place
    return {
        "path": str(place.path),
        "found": None if place.occupant is None else place.occupant.name.lower(),
        "kind": place.kind,
        "holder": _process(place.holder),
        "listened": case.listened,
        "problem": case.problem or place.problem,
        "rights": _rights(case.site.socket),
        "directory": _rights(case.site.directory),
        "accounts": [{"name": account.name, "obstacle": account.obstacle} for account in case.site.accounts],
        "qemu": [word for pair in qemu_arguments(place.path, secret) for word in pair],
        "libvirt": "\n".join(libvirt_lines(place.path, secret)),
    }


def _rights(rights: Rights | None) -> JsonObject | None:
    return None if rights is None else {"mode": rights.mode, "owner": rights.owner, "group": rights.group}


def _process(process: Process | None) -> JsonObject | None:
    return None if process is None else {"pid": process.pid, "name": process.name}


def _host(host: Host) -> JsonObject:
    return {
        "kernel": host.release,
        "kvm": host.has_kvm,
        "introspection": host.introspection,
        "ksm": host.ksm,
        "huge_pages": host.huge_pages,
        "locks": list(host.locks),
        "vmms": [
            {
                **(_process(vmm.process) or {}),
                "introspected": vmm.is_introspected,
                "socket": vmm.socket,
                "reconnects": vmm.reconnects,
            }
            for vmm in host.vmms
        ],
    }


def _connection(case: Case) -> JsonObject:
    chart = case.chart
    hello, negotiated = chart.hello, chart.negotiated
    return {
        "peer": _process(case.peer),
        "ended": chart.ended,
        "hello": None
        if hello is None
        else {
            "form": hello.form.name.lower(),
            "name": hello.name,
            "uuid": str(UUID(bytes=hello.uuid)),
            "start_time": hello.start_time,
        },
        "dialect": None if negotiated is None else negotiated.dialect.name,
        "recognised_by": None if negotiated is None else RECOGNISED_BY[negotiated.dialect],
        "max_message_size": None if negotiated is None else negotiated.max_message_size,
        "features": [] if negotiated is None else list(feature_names(negotiated.features)),
    }


def _guest(chart: Chart) -> JsonObject:
    cpu, kernel = chart.cpu, chart.kernel
    return {
        "memory_end": None if chart.memory_end is None else hex(chart.memory_end),
        "vcpus": [
            {"index": vcpu.index, "started": vcpu.is_started, "tsc_hz": vcpu.tsc_hz or None} for vcpu in chart.vcpus
        ],
        "cpu": None
        if cpu is None
        else {
            "vendor": cpu.vendor,
            "family": cpu.family,
            "model": cpu.model,
            "stepping": cpu.stepping,
            "brand": cpu.brand,
            "page_rights": list(rights_held(cpu)),
        },
        "kernel": None
        if kernel is None
        else {"bits": kernel.mode * 8, "lstar": hex(kernel.registers.lstar), "runs": kernel.is_kernel},
        "profile": _profile(chart),
        "commands": {command_name(command): found.name.lower() for command, found in chart.commands.items()},
        "events": {event_name(kind): found.name.lower() for kind, found in chart.events.items()},
        "write_test": None if chart.probe is None else _probe(chart.probe),
        "unanswered": list(chart.silences),
    }


def _profile(chart: Chart) -> JsonObject | None:
    found = chart.search
    if found is None:
        return None if chart.search_problem is None else {"match": None, "reason": chart.search_problem}
    if isinstance(found, KernelFound):
        return {"match": True, "slide": hex(found.slide), "banner": found.banner, "boot": found.boot.name.lower()}
    # A kernel that doesn't run yet may still turn out to be the profile's.
    return {"match": None if isinstance(found, KernelNotReady) else False, "reason": found.reason}


def _probe(result: ProbeResult) -> JsonObject:
    return {
        "verdict": result.verdict.value,
        "reason": result.reason,
        "frames": [
            {
                "gfn": hex(trial.gfn),
                "bit_1": trial.has_deaf_bit,
                "outcome": trial.outcome.name.lower(),
                "events": trial.events,
            }
            for trial in result.trials
        ],
        "unrestored": list(result.unrestored),
    }
