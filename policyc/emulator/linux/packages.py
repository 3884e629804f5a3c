"""Debian packages without root: fetched by apt into a folder of the caller's, and unpacked there.

apt is told to keep its state in that folder (apt.conf(5), `Dir`), so nothing of the machine changes and no lock is
needed. What is installed already counts as installed: only the rest of a package's dependencies is fetched. apt checks
the signatures and digests, as always.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.emulator.linux.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["Package", "Packages", "check_kernel_name"]

DPKG_STATUS: Final = "/var/lib/dpkg/status"
FETCH_SECONDS: Final = 600
"""Longest that apt or dpkg may take for one call."""

_KERNEL: Final = re.compile(r"^\s*Depends: (linux-image-[0-9][a-z0-9.+-]*-cloud-amd64)\s*$", re.MULTILINE)
_KERNEL_NAME: Final = re.compile(r"linux-image-[a-z0-9][a-z0-9.+-]*(?<!-dbg)")
_KERNELS_HELP: Final = "`apt-cache search --names-only '^linux-image-'` lists Debian's kernels"
_UNKNOWN: Final = "No packages found"
_TOOLS: Final = ("apt-get", "apt-cache", "dpkg", "dpkg-deb")


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was fetched.

    Attributes:
        sha256: digest of its file, in hexadecimal.
    """

    name: str
    version: str
    sha256: str
    path: Path


def check_kernel_name(name: str) -> None:
    """Refuse what can't be a kernel's package, before anything is fetched.

    Raises:
        BuildError: it can't.
    """
    if not _KERNEL_NAME.fullmatch(name):
        raise BuildError(f"`{name}` is no package of a kernel: those are called linux-image-*", _KERNELS_HELP)


class Packages:
    """apt with all its state below `folder`.

    Raises:
        BuildError: this isn't a Debian, or its package lists can't be fetched.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if missing:
            raise BuildError(f"the guest is built from Debian's packages, and there is no {missing[0]} here")
        self._folder = folder
        self._archives = folder / "cache" / "archives"
        for path in (folder / "state" / "lists" / "partial", self._archives / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        say("fetching the package lists")
        self._apt("apt-get", "update", "--error-on=any")

    def kernel_of(self, name: str) -> str:
        """The kernel's own package: what a package that only depends on the newest one stands for.

        Raises:
            BuildError: there is no such package.
        """
        try:
            depends = self._apt("apt-cache", "depends", name)
        except BuildError as error:
            if _UNKNOWN not in str(error):
                raise
            raise BuildError(f"the package lists have no kernel `{name}`", _KERNELS_HELP) from None
        found = _KERNEL.findall(depends)
        return str(found[0]) if found else name

    def fetch(self, name: str) -> Package:
        """One package without what it depends on.

        Raises:
            BuildError: it can't be had.
        """
        before = set(self._archives.glob("*.deb"))
        self._apt("apt-get", "download", name, cwd=self._archives)
        fetched = set(self._archives.glob("*.deb")) - before
        if len(fetched) != 1:
            raise BuildError(f"apt-get download {name} left {len(fetched)} new packages")
        return _described(fetched.pop())

    def fetch_with_dependencies(self, name: str) -> list[Package]:
        """A package and all that it needs and this machine doesn't have, by name.

        Raises:
            BuildError: it can't be had.
        """
        before = set(self._archives.glob("*.deb"))
        self._apt("apt-get", "install", "--yes", "--no-install-recommends", "--download-only", name)
        fetched = set(self._archives.glob("*.deb")) - before
        if not fetched:
            raise BuildError(f"apt-get fetched nothing for {name}")
        return sorted((_described(path) for path in fetched), key=lambda package: package.name)

    @staticmethod
    def unpack(package: Package, target: Path) -> None:
        """Put a package's files below `target`; none of its scripts run."""
        _run(["dpkg", "-x", str(package.path), str(target)])

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        options = (
            f"Dir::State={self._folder / 'state'}",
            f"Dir::State::status={DPKG_STATUS}",
            f"Dir::Cache={self._folder / 'cache'}",
            "Debug::NoLocking=1",
            "APT::Sandbox::User=",
        )
        tool, *arguments = command
        return _run([tool, *(f"-o{option}" for option in options), "-q", *arguments], cwd)


def _described(path: Path) -> Package:
    name, version = _run(["dpkg-deb", "--show", "--showformat=${Package}\n${Version}", str(path)]).splitlines()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Package(name, version, digest, path)


def _run(command: Sequence[str], cwd: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} took longer than {FETCH_SECONDS} s") from None
    if done.returncode:
        problem = next((line for line in done.stderr.splitlines() if line.startswith("E:")), done.stderr.strip())
        raise BuildError(f"{' '.join((command[0], *(word for word in command[1:] if word[0] != '-')))}: {problem}")
    return done.stdout
