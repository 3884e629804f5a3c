"""Building a snapshot: packages, one or several boots, a look at whether they agree with themselves, the folder."""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.emulator.linux.capture import capture
from policyc.emulator.linux.errors import BuildError
from policyc.emulator.linux.initrd import SYMBOLS_SENT, archive, guest_files
from policyc.emulator.linux.packages import Packages
from policyc.emulator.linux.qemu import CPU, Qemu, installed_qemu
from policyc.emulator.linux.snapshot import Origin, check_target, work_folder, write_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from policyc.emulator.linux.packages import Package
    from policyc.emulator.linux.state import MachineState

__all__ = ["DEFAULT_KERNEL", "Recipe", "build"]

DEFAULT_KERNEL: Final = "linux-image-cloud-amd64"
"""Debian's package that depends on the release's newest kernel for virtual machines."""

QEMU_PACKAGE: Final = "qemu-system-x86"
BUSYBOX_PACKAGE: Final = "busybox-static"
BOOT_SECONDS: Final = 300.0
LINK_BASE: Final = 0xFFFF_FFFF_8100_0000
"""Where a kernel without slide has `_text` (CONFIG_PHYSICAL_START above __START_KERNEL_map)."""

RESERVED_MIB: Final = 2
"""RAM at the end that the kernel isn't told of, for an attacker's module."""

SYMBOLS_MAX: Final = 32 << 20
_SYMBOL: Final = re.compile(r"^([0-9a-f]{16}) \w (_text|entry_SYSCALL_64|__x64_sys_sethostname)$", re.MULTILINE)
_SYMBOLS_NEEDED: Final = 3
_BANNER: Final = re.compile(rb"^\[ +0\.0+\] (Linux version [ -~]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build.

    Attributes:
        kernel: package, or one that depends on it.
        seed: of the first boot's randomness; each further boot has the next.
        boots: how often it is booted; the snapshot is of the first.
        ram_mib: RAM in MiB, `RESERVED_MIB` of them not the kernel's.
    """

    kernel: str = DEFAULT_KERNEL
    seed: int = 1
    boots: int = 1
    ram_mib: int = 96

    @property
    def command_line(self) -> str:
        """The kernel's: one clock, the processor's, and no page-table isolation, as on a processor that needs none."""
        known = self.ram_mib - RESERVED_MIB
        return f"console=ttyS0 panic=-1 mem={known}M tsc=reliable hpet=disable pti=off"


@dataclass(frozen=True, slots=True)
class _Boot:
    slide: int
    state: MachineState
    memory: bytes
    symbols: bytes
    console: bytes
    qemu: str


def build(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> tuple[int, ...]:
    """Build a snapshot into `folder`.

    Args:
        say: is told what is going on.

    Returns:
        The slides of all boots.

    Raises:
        BuildError: a package or QEMU can't be had, or the boots don't agree with themselves.
        SnapshotError: the folder holds something else, or can't be made; nothing was fetched for it then.
        OSError: it can't be written.
    """
    check_target(folder)
    with work_folder(folder) as work:
        packages, kernel, root = _fetch(work, recipe, say)
        initrd = work / "initrd"
        initrd.write_bytes(archive(guest_files((work / "guest/bin/busybox").read_bytes())))
        boots = []
        for number in range(recipe.boots):
            boots.append(_boot(work, number, root, kernel, initrd, recipe, say))
            say(f"seed {recipe.seed + number}: slide {boots[-1].slide:#x}")
        slides = tuple(taken.slide for taken in boots)
        if recipe.boots > 1 and len(set(slides)) == 1:
            raise BuildError(f"{recipe.boots} boots with different seeds all had slide {slides[0]:#x}")
        first = boots[0]
        origin = Origin(
            kernel=packages[0].name,
            banner=_banner(first.console),
            command_line=recipe.command_line,
            seed=recipe.seed,
            slide=first.slide,
            reserved=(recipe.ram_mib - RESERVED_MIB) << 20,
            cpu=CPU,
            qemu=first.qemu,
            packages=tuple((package.name, package.version, package.sha256) for package in packages),
        )
        write_snapshot(folder, origin, first.state, first.memory, first.symbols, first.console)
    return slides


def _fetch(work: Path, recipe: Recipe, say: Callable[[str], None]) -> tuple[list[Package], Path, Path | None]:
    """All packages, the kernel's first; the kernel's file; where QEMU was unpacked, None for the installed one."""
    apt = Packages(work / "apt", say)
    wanted = apt.kernel_of(recipe.kernel)
    say(f"fetching {wanted}")
    fetched = [apt.fetch(wanted), apt.fetch(BUSYBOX_PACKAGE)]
    for package in fetched:
        apt.unpack(package, work / "guest")
    root = None
    if installed_qemu() is None:
        say(f"fetching {QEMU_PACKAGE}")
        root = work / "qemu"
        dependencies = apt.fetch_with_dependencies(QEMU_PACKAGE)
        for package in dependencies:
            apt.unpack(package, root)
        fetched += dependencies
    kernels = list((work / "guest/boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise BuildError(f"the package {wanted} holds {len(kernels)} kernels")
    return fetched, kernels[0], root


def _boot(
    work: Path, number: int, root: Path | None, kernel: Path, initrd: Path, recipe: Recipe, say: Callable[[str], None]
) -> _Boot:
    """Boot twice with one seed: to learn the symbols, and to stop at one of them."""

    def start(name: str) -> Qemu:
        here = work / f"{name}{number}"
        here.mkdir()
        return Qemu(root, here, kernel, initrd, recipe.command_line, recipe.ram_mib, recipe.seed + number)

    say("booting the kernel under software emulation")
    qemu = start("learn")
    try:
        qemu.go_on()
        qemu.wait_for_line(SYMBOLS_SENT, BOOT_SECONDS)
    finally:
        qemu.end()
    symbols = _symbols(qemu.symbols)
    addresses = {name: int(address, 16) for address, name in _SYMBOL.findall(symbols.decode("ascii", "replace"))}
    if len(addresses) != _SYMBOLS_NEEDED or addresses["_text"] < LINK_BASE:
        raise BuildError("the guest's symbol table lacks what every kernel has, or hides the addresses")
    say("booting it again, the same way, and taking the machine")
    qemu = start("take")
    memory = work / f"take{number}" / "memory"
    try:
        state = capture(qemu, addresses["__x64_sys_sethostname"], BOOT_SECONDS)
        qemu.save_memory(recipe.ram_mib << 20, memory)
    finally:
        qemu.end()
    if addresses["entry_SYSCALL_64"] != state.cpu.msrs["lstar"] or symbols != _symbols(qemu.symbols):
        raise BuildError("two boots with one seed gave two kernels")
    slide = addresses["_text"] - LINK_BASE
    return _Boot(slide, state, memory.read_bytes(), symbols, qemu.console.read_bytes(), qemu.version)


def _symbols(path: Path) -> bytes:
    """The guest's /proc/kallsyms, which it sent compressed."""
    try:
        with gzip.open(path) as file:
            symbols = file.read(SYMBOLS_MAX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BuildError(f"the guest's symbol table didn't arrive: {error}") from None
    if len(symbols) > SYMBOLS_MAX:
        raise BuildError(f"the guest's symbol table is larger than {SYMBOLS_MAX} bytes")
    return symbols


def _banner(console: bytes) -> str:
    found = _BANNER.search(console)
    return found[1].decode("ascii").strip() if found else "unknown"
