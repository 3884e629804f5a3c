"""What this host says about itself that matters to introspection: its kernel's KVM, its memory management, its locks.

A guest that connects over a unix socket runs here, so this is its host; the files are those of sysfs and procfs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from policyc.runtime.doctor_processes import Vmm, running_vmms

__all__ = ["Host", "look_at_host"]

MAX_FILE = 4096

LOCKS = {
    "AppArmor": ("sys/module/apparmor/parameters/enabled", "Y"),
    "SELinux": ("sys/fs/selinux/enforce", "1"),
}
"""The file of each that says it is on, and what stands there then."""


@dataclass(frozen=True, slots=True)
class Host:
    """What was found; None where the host doesn't say.

    Attributes:
        release: the running kernel's version.
        has_kvm: whether KVM is loaded, or built in.
        introspection: KVM's parameter of that name; None where this KVM has none.
        ksm: whether pages of several guests are merged.
        huge_pages: when transparent huge pages are used, in the kernel's word: always, madvise or never.
        locks: the mandatory access control that is on, by its name.
        vmms: every QEMU that runs.
    """

    release: str | None = None
    has_kvm: bool = False
    introspection: bool | None = None
    ksm: bool | None = None
    huge_pages: str | None = None
    locks: tuple[str, ...] = ()
    vmms: tuple[Vmm, ...] = ()


def look_at_host(root: Path = Path("/")) -> Host:
    """Look at the host whose files are under `root`."""
    module = root / "sys/module/kvm"
    parameter = _word(module / "parameters/introspection")
    ksm = _word(root / "sys/kernel/mm/ksm/run")
    chosen = re.search(r"\[(\w+)\]", _word(root / "sys/kernel/mm/transparent_hugepage/enabled") or "")
    return Host(
        release=_word(root / "proc/sys/kernel/osrelease"),
        has_kvm=module.is_dir(),
        introspection=None if parameter is None else parameter in ("Y", "1"),
        ksm=None if ksm is None else ksm == "1",
        huge_pages=chosen.group(1) if chosen else None,
        locks=tuple(name for name, (file, on) in LOCKS.items() if _word(root / file) == on),
        vmms=running_vmms(root / "proc"),
    )


def _word(path: Path) -> str | None:
    """The one line of a small file, or None where it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode(errors="backslashreplace").strip()
    except OSError:
        return None
