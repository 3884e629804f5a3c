"""Finds a running Linux kernel in a guest: where it lies, its page tables, whether it is a profile's, if it has booted.

The search starts from the registers of one vCPU and reads the IDT, the page tables and a few bytes of kernel data. All
of that is the guest's and hostile: a wrong guess ends in a refusal or in another look later, never in an exception.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from policyc.addresses import ADDRESS_SPACE_END, PAGE_SIZE, Gpa, Gva, GvaRange, Range
from policyc.guest.errors import ProfileError, printable
from policyc.guest.linux_anchors import GATE_SIZE, LSTAR, anchors_of
from policyc.guest.linux_boot import STATE_BYTES, BootState, boot_state
from policyc.guest.linux_slide import Disagreement, KernelNotReady, Located, WrongKernel, locate
from policyc.guest.paging import AddressSpace, Translation, walk
from policyc.guest.profile import Profile
from policyc.guest.readers import clean_banner
from policyc.guest.requests import PageReply, PageRequest
from policyc.guest.virtual import read_virtual

__all__ = [
    "KERNEL_ROOTS",
    "Disagreement",
    "KernelFound",
    "KernelNotReady",
    "KernelSearch",
    "VcpuRegisters",
    "WrongKernel",
    "find_kernel",
]

CR0_PG = 1 << 31
EFER_LMA = 1 << 10
USER_ROOT_BIT = 1 << 12
"""With page-table isolation a task's two roots are neighbours, the user's the upper one (PTI_USER_PGTABLE_BIT)."""

KERNEL_ROOTS = ("init_top_pgt", "init_level4_pgt")
"""The kernel's own root of page tables (arch/x86/kernel/head_64.S), now and before Linux 4.13."""

MAX_IDT_BYTES = 256 * GATE_SIZE
BANNER_BYTES = 1024


@dataclass(frozen=True, slots=True)
class VcpuRegisters:
    """What the search needs to know of one vCPU, in any state, kernel or user mode."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    idt_base: Gva
    idt_limit: int
    lstar: int


@dataclass(frozen=True, slots=True)
class KernelFound:
    """The profile's kernel runs here.

    Attributes:
        slide: what to add to an address of the profile; may be negative.
        space: the page tables to translate with.
        root_symbol: the symbol that `space`'s root is, or None where the profile has none and CR3 was used.
        agreed: the anchors that lead where the profile says.
        silent: the anchors that lead nowhere, such as gates not yet installed.
        banner: the running kernel's, or None where the profile doesn't say where it lies.
        banner_matched: whether it is the profile's; None where either has none.
        system_state: the raw value, or None where the profile doesn't say where it lies or it can't be read.
        boot: what that value means.
    """

    slide: int
    space: AddressSpace
    root_symbol: str | None
    agreed: tuple[str, ...]
    silent: tuple[str, ...]
    banner: str | None
    banner_matched: bool | None
    system_state: int | None
    boot: BootState


KernelSearch: TypeAlias = "KernelFound | KernelNotReady | WrongKernel"


def find_kernel(profile: Profile, registers: VcpuRegisters) -> Generator[PageRequest, PageReply, KernelSearch]:
    """Look for the profile's kernel from one vCPU's registers.

    Raises:
        ProfileError: the profile lacks LSTAR's symbol or every interrupt handler, so it can't find any kernel.
    """
    anchors = anchors_of(profile.kernel)
    if not anchors or anchors[0].place != LSTAR or len(anchors) < 2:
        raise ProfileError("this profile doesn't say where system calls and interrupts enter the kernel")
    unready = _unready(registers)
    if unready is not None:
        return KernelNotReady(unready)
    idt = yield from _read_idt(registers)
    if idt is None:
        return KernelNotReady("the interrupt descriptor table isn't mapped")
    located = locate(profile, anchors, registers.lstar, idt)
    if not isinstance(located, Located):
        return located
    root = yield from _kernel_root(profile, registers, located.slide)
    if isinstance(root, WrongKernel):
        return root
    return (yield from _identify(profile, located, *root))


def _unready(registers: VcpuRegisters) -> str | None:
    if not (registers.cr0 & CR0_PG and registers.efer & EFER_LMA):
        return "the vCPU isn't in long mode"
    if not registers.lstar:
        return "LSTAR is 0: firmware or a boot loader runs"
    if registers.idt_limit + 1 < GATE_SIZE:
        return "there is no interrupt descriptor table"
    return None


def _roots(registers: VcpuRegisters) -> Iterator[AddressSpace]:
    """The vCPU's root as it is, then, where it may be the user's half of a pair, the kernel's half.

    In this order, because without page-table isolation the lower neighbour of a root is any page, and a guest's user
    could fill it with tables of his own. What the processor itself uses maps the IDT always, and the whole kernel
    unless it is the user's half.
    """
    space = AddressSpace.of_registers(registers.cr3, registers.cr4, registers.efer)
    yield space
    if space.root & USER_ROOT_BIT:
        yield space.at(Gpa(space.root & ~USER_ROOT_BIT))


def _read_idt(registers: VcpuRegisters) -> Generator[PageRequest, PageReply, bytes | None]:
    end = registers.idt_base + min(registers.idt_limit + 1, MAX_IDT_BYTES)
    if registers.idt_base < 0 or end > ADDRESS_SPACE_END:
        return None
    for space in _roots(registers):
        (idt,) = yield from read_virtual(space, [Range(registers.idt_base, Gva(end))])
        if idt is not None:
            return idt
    return None


def _kernel_root(
    profile: Profile, registers: VcpuRegisters, slide: int
) -> Generator[PageRequest, PageReply, tuple[AddressSpace, str | None] | WrongKernel]:
    """The page tables to translate with, and the symbol of their root."""
    kernel = profile.kernel
    name = next((name for name in KERNEL_ROOTS if len(kernel.symbol(name)) == 1), None)
    if name is None:
        witnesses = list(_witnesses(profile, slide))
        for space in _roots(registers):
            found = yield from walk(space, witnesses)
            if found.is_complete:
                return space, None
        return WrongKernel("neither root of this vCPU's page tables maps the kernel's sections")
    page = _slid(kernel.symbol(name)[0].gva, PAGE_SIZE, slide)
    for space in _roots(registers):
        root = yield from _physical_page(space, page)
        if root is None:
            continue
        if (yield from _physical_page(space.at(root), page)) == root:
            return space.at(root), name
        return WrongKernel(f"the page tables at `{name}` don't lead back to themselves")
    return WrongKernel(f"`{name}` isn't mapped where the anchors put it")


def _witnesses(profile: Profile, slide: int) -> Iterator[GvaRange]:
    """Both ends of each section that stays mapped: a user's root may map the code too, but never all of the data."""
    sections = profile.kernel.sections.items()
    kept = [part for name, part in sections if name != ".init"] or [Range(profile.anchor, Gva(profile.anchor + 1))]
    for part in kept:
        yield _slid(part.start, 1, slide)
        yield _slid(Gva(part.end - 1), 1, slide)


def _physical_page(space: AddressSpace, page: GvaRange) -> Generator[PageRequest, PageReply, Gpa | None]:
    """Where one aligned page of virtual memory lies, or None if it isn't one page or isn't mapped."""
    found = yield from walk(space, [page])
    pieces = found.ranges[0]
    if len(pieces) == 1 and isinstance(pieces[0], Translation) and not pieces[0].gpa_start % PAGE_SIZE:
        return pieces[0].gpa_start
    return None


def _identify(
    profile: Profile, located: Located, space: AddressSpace, root_symbol: str | None
) -> Generator[PageRequest, PageReply, KernelSearch]:
    """Read and compare what tells this build from others, and how far it has booted."""
    banner_at = _data(profile, "linux_banner", BANNER_BYTES, located.slide)
    state_at = _data(profile, "system_state", STATE_BYTES, located.slide)
    wanted = [place for place in (banner_at, state_at) if place is not None]
    read = dict(zip(wanted, (yield from read_virtual(space, wanted)), strict=True))
    banner, matched = None, None
    if banner_at is not None:
        raw = (read[banner_at] or b"").split(b"\0")[0]
        banner = _banner(raw)
        if banner is None:
            return WrongKernel(f"where `linux_banner` should be, this guest has `{printable(raw)}`")
        if profile.identity.banner is not None:
            matched = banner == profile.identity.banner
            if not matched:
                return WrongKernel(f"this guest runs `{printable(banner, 200)}`, which isn't the profile's kernel")
    state_bytes = read[state_at] if state_at is not None else None
    state = None if state_bytes is None else int.from_bytes(state_bytes, "little")
    return KernelFound(
        slide=located.slide,
        space=space,
        root_symbol=root_symbol,
        agreed=located.agreed,
        silent=located.silent,
        banner=banner,
        banner_matched=matched,
        system_state=state,
        boot=boot_state(state, banner or profile.identity.banner),
    )


def _data(profile: Profile, name: str, most: int, slide: int) -> GvaRange | None:
    """Where the bytes of a symbol lie in the guest, at most `most` of them; None unless the profile has it once."""
    symbols = profile.kernel.symbol(name)
    if len(symbols) != 1:
        return None
    return _slid(symbols[0].gva, min(symbols[0].size or most, most), slide)


def _slid(gva: Gva, size: int, slide: int) -> GvaRange:
    """Bytes of the profile where they lie in the guest; those that would leave the address space, at its last byte."""
    start = min(max(gva + slide, 0), ADDRESS_SPACE_END - 1)
    return Range(Gva(start), Gva(min(start + size, ADDRESS_SPACE_END)))


def _banner(raw: bytes) -> str | None:
    try:
        return clean_banner(raw.decode("ascii"))
    except (UnicodeDecodeError, ProfileError):
        return None
