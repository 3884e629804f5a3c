"""What there is to say about the way to a guest: the socket, this host, the VMM that should connect, its hello.

The reasons that people run into were gathered from the issue trackers of KVM-VMI and LibVMI.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from policyc.kvmi import UnsupportedDialectError
from policyc.runtime.doctor_case import Case, Level
from policyc.runtime.doctor_chart import Stage
from policyc.runtime.doctor_processes import Vmm
from policyc.runtime.doctor_rows import Row, each, when
from policyc.runtime.transport import Occupant

__all__ = ["ROWS"]

OTHERS_MAY_WRITE = 8
"""Where the mode as `ls` shows it has the right of others to write."""


def _nobody(case: Case) -> bool:
    return case.listened and not case.came


def _in_use(case: Case) -> Iterator[str]:
    if not case.listened and case.place.occupant is Occupant.IN_USE:
        holder = str(case.place.holder) if case.place.holder is not None else "somebody"
        yield f"{holder} listens on `{case.place.path}` already"


def _taken(case: Case) -> Iterator[str]:
    if case.place.occupant is Occupant.OTHER:
        yield f"`{case.place.path}` is {case.place.kind}"


def _unmakeable(case: Case) -> Iterator[str]:
    if not case.listened and case.place.occupant not in (Occupant.IN_USE, Occupant.OTHER):
        problem = case.problem or f"`{case.place.path}` can't be listened on"
        yield f"{problem}: {case.remedy}" if case.remedy is not None else problem


def _left_behind(case: Case) -> Iterator[str]:
    if case.listened and case.place.occupant is Occupant.LEFT_BEHIND:
        yield f"`{case.place.path}` was left behind by a process that has ended, and was replaced"


def _open_directory(case: Case) -> Iterator[str]:
    directory = case.site.directory
    if directory is not None and directory.mode[OTHERS_MAY_WRITE] == "w":
        yield f"everybody may write to `{case.place.path.parent}`, and put a socket of their own there"


def _locked_out(case: Case) -> Iterator[str]:
    if _nobody(case):
        for account in case.site.accounts:
            if account.obstacle is not None:
                yield f"`{account.name}` can't connect: it {account.obstacle}"


def _nobody_came(case: Case) -> Iterator[str]:
    if _nobody(case):
        yield f"nobody connected within {case.waited:g} second{'' if case.waited == 1 else 's'}"


def _without_introspection(case: Case) -> Iterator[str]:
    host = case.host
    if _unexplained(case) and host.has_kvm and host.introspection is None:
        release = f" {host.release}" if host.release is not None else ""
        yield f"this host's kernel{release} was built without introspection: its KVM has no parameter of that name"


def _about_vmms(says: Callable[[Case, Vmm], str | None]) -> Callable[[Case], Iterator[str]]:
    def facts(case: Case) -> Iterator[str]:
        if _nobody(case):
            for vmm in case.host.vmms:
                fact = says(case, vmm)
                if fact is not None:
                    yield fact

    return facts


def _plain(case: Case, vmm: Vmm) -> str | None:
    return None if vmm.is_introspected else f"{vmm.process} is a QEMU without an introspection object"


def _elsewhere(case: Case, vmm: Vmm) -> str | None:
    if not vmm.is_introspected or _is_same(vmm.socket, case):
        return None
    where = f"`{vmm.socket}`" if vmm.socket is not None else "something that is no unix socket"
    return f"{vmm.process} connects to {where}, not to `{case.place.path}`"


def _tries_once(case: Case, vmm: Vmm) -> str | None:
    if not vmm.is_introspected or vmm.reconnects:
        return None
    return f"{vmm.process} has a chardev without `reconnect`: it doesn't try again"


def _waits(case: Case, vmm: Vmm) -> str | None:
    if not _is_same(vmm.socket, case) or not vmm.reconnects:
        return None
    return f"{vmm.process} connects to this socket, and hasn't in this time"


def _is_same(socket: str | None, case: Case) -> bool:
    return socket is not None and os.path.realpath(socket) == os.path.realpath(case.place.path)


def _locks(case: Case) -> Iterator[str]:
    if _nobody(case) and case.host.locks:
        yield f"{' and '.join(case.host.locks)} is on here, and may keep QEMU from its binary or from the socket"


def _unexplained(case: Case) -> bool:
    return _nobody(case) or _after_hello(case)


def _no_hello(case: Case) -> Iterator[str]:
    if case.chart.stage is Stage.CONNECTED:
        yield f"{case.peer or 'somebody'} connected and didn't introduce a guest: {case.chart.ended}"


def _after_hello(case: Case) -> bool:
    return case.chart.stage is Stage.GREETED and case.chart.fault is None


def _hung_up(case: Case) -> Iterator[str]:
    if _after_hello(case):
        yield f"the VMM introduced its guest, was answered, and that was all: {case.chart.ended}"


def _broken_protocol(case: Case) -> Iterator[str]:
    fault = case.chart.fault
    if case.chart.stage is Stage.CONNECTED or fault is None or isinstance(fault, UnsupportedDialectError):
        return
    yield f"the kernel speaks no KVMI that is known here: expected {fault.expected}, got {fault.got}"


def _refused_dialect(case: Case) -> Iterator[str]:
    if isinstance(case.chart.fault, UnsupportedDialectError):
        yield f"the kernel speaks {case.chart.fault.got}, in which nothing is enforced"


def _lost(case: Case) -> Iterator[str]:
    if case.chart.stage is Stage.NEGOTIATED and case.chart.fault is None:
        yield f"the examination wasn't finished: {case.chart.ended}"


PATCHED = "start a QEMU of the KVM-VMI tree with the options above; under libvirt, `<emulator>` names its binary"
LOG = "look for denials in the kernel's log, as with `journalctl -k --grep DENIED`, and permit the socket's path"

ROWS: tuple[Row, ...] = (
    each("socket-in-use", Level.BROKEN, _in_use, "a socket has one listener: end that process, or name another path"),
    each("socket-taken", Level.BROKEN, _taken, "name another path, or move it away"),
    each("socket-impossible", Level.BROKEN, _unmakeable),
    each("socket-left-behind", Level.NOTE, _left_behind),
    each(
        "directory-open",
        Level.NOTE,
        _open_directory,
        "give the socket a directory of its own, with QEMU's group and mode 0770",
    ),
    each(
        "nobody-came",
        Level.BROKEN,
        _nobody_came,
        "QEMU connects to the socket, and tries every `reconnect` seconds: --wait longer than that",
    ),
    each(
        "account-locked-out",
        Level.WEAK,
        _locked_out,
        "put that account into the socket's group and let the group search the directory",
    ),
    when(
        "kvm-missing",
        Level.WEAK,
        lambda case: _nobody(case) and not case.host.has_kvm,
        "KVM isn't loaded on this host, so no guest runs here",
        "a unix socket reaches only guests on the same host: run this command there",
    ),
    each(
        "kvm-without-introspection",
        Level.WEAK,
        _without_introspection,
        "boot a kernel of the KVM-VMI tree with CONFIG_KVM_INTROSPECTION, Linux 5.4 for kvmi-v7 or 5.15 for kvmi-v12: "
        "no distribution ships one",
    ),
    when(
        "introspection-off",
        Level.WEAK,
        lambda case: _unexplained(case) and case.host.introspection is False,
        "KVM's parameter `introspection` is off: the kernel refuses what QEMU hands over",
        "boot with `kvm.introspection=1`",
    ),
    when(
        "qemu-missing",
        Level.WEAK,
        lambda case: _nobody(case) and not case.host.vmms,
        "no QEMU runs on this host that can be seen",
        PATCHED,
    ),
    each("qemu-plain", Level.WEAK, _about_vmms(_plain), PATCHED),
    each("qemu-elsewhere", Level.WEAK, _about_vmms(_elsewhere), "name that path with --socket, or change QEMU's"),
    each("qemu-tries-once", Level.WEAK, _about_vmms(_tries_once), "add `reconnect=10` to the chardev"),
    each("qemu-waits", Level.NOTE, _about_vmms(_waits), "wait longer; or it is refused before it comes so far"),
    each("access-control", Level.NOTE, _locks, LOG),
    when(
        "qemu-unpatched",
        Level.NOTE,
        _nobody,
        "a QEMU that says `invalid object type: introspection` isn't the patched one",
        "under libvirt, set `<emulator>` to the patched binary",
    ),
    when(
        "qemu-reconnect",
        Level.NOTE,
        _nobody,
        "a QEMU that says `missing reconnect` wants `reconnect=10` on the chardev",
    ),
    when(
        "start-order",
        Level.NOTE,
        _nobody,
        "the tool listens and QEMU connects; either may start first",
    ),
    when(
        "handshake-timeout",
        Level.NOTE,
        _nobody,
        "QEMU waits 10 seconds for the answer to its hello, then hangs up and tries again after `reconnect` seconds",
    ),
    each(
        "no-hello",
        Level.BROKEN,
        _no_hello,
        "QEMU's introspection object introduces its guest at once: something else connected, or another kind of QEMU",
    ),
    each("refused-after-hello", Level.BROKEN, _hung_up, "the notes below are the usual reasons, and nobody says which"),
    when(
        "secret-unknown",
        Level.NOTE,
        lambda case: _after_hello(case) and not case.has_secret,
        "a QEMU that was given a `key` hangs up on a tool that doesn't prove the secret, without a word",
        "name the file with that secret by --cookie-file",
    ),
    when(
        "secret-differs",
        Level.NOTE,
        lambda case: _after_hello(case) and case.has_secret,
        "a QEMU whose `key` is another secret hangs up without a word; a line end at the end of the file counts",
        "give QEMU and --cookie-file the same file",
    ),
    when(
        "hook-refused",
        Level.NOTE,
        _after_hello,
        "a kernel that refuses what QEMU hands over makes it hang up too: `kvm.introspection` is off, or the last "
        "connection isn't cleaned up yet because a vCPU sleeps",
        "look into the kernel's log and QEMU's",
    ),
    each(
        "dialect-refused",
        Level.BROKEN,
        _refused_dialect,
        "use a kernel of branch kvmi-v7 or kvmi-v12: v10 and v11 take v12's SET_PAGE_ACCESS for another command, say "
        "success and protect nothing",
    ),
    each("protocol-broken", Level.BROKEN, _broken_protocol, "use a kernel of branch kvmi-v7 or kvmi-v12"),
    each("guest-lost", Level.BROKEN, _lost),
)
"""Everything about the way to a guest, in the order in which it is said."""
