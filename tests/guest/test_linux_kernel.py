from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyc.addresses import Gpa, Gva
from policyc.guest.errors import ProfileError
from policyc.guest.landmarks import landmarks_of, profile_of_landmarks
from policyc.guest.linux_anchors import VECTORS
from policyc.guest.linux_boot import BootState
from policyc.guest.linux_kernel import (
    Disagreement,
    KernelFound,
    KernelNotReady,
    KernelSearch,
    VcpuRegisters,
    WrongKernel,
    find_kernel,
)
from policyc.guest.paging import AddressSpace
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.guest.requests import serve
from tests.support.guest_memory import LARGE, PRESENT, USER, WRITABLE, GuestMemory, transcript
from tests.support.guest_tables import BANNER, BASE, ENTRY_OFFSET, HANDLER_OFFSET, HANDLER_SIZE, kernel_rows, table

SLIDE = 0x1780_0000
IMAGE_GPA = 0x4A0_0000
IDT = 0xFFFF_FE00_0000_0000
USER_PGD = 0x1000

FULL = build_profile(table(kernel_rows()), banner=BANNER)

EVERY_ANCHOR = ("LSTAR", *(f"vector {vector}" for vector, _, _ in VECTORS))


def profile_without(*names: str, extra: str = "", banner: str | None = None) -> Profile:
    return build_profile(table(kernel_rows(without=names), extra=extra), banner=banner)


def gate(target: int) -> bytes:
    parts = [(target & 0xFFFF, 2), (0x10, 2), (0x8E00, 2), (target >> 16 & 0xFFFF, 2), (target >> 32, 4), (0, 4)]
    return b"".join(part.to_bytes(size, "little") for part, size in parts)


@dataclass
class Guest:
    """A guest that has booted the small kernel, slid by `slide`."""

    memory: GuestMemory
    registers: VcpuRegisters
    kernel_root: int
    idt_gpa: int
    slide: int

    def find(self, profile: Profile = FULL) -> KernelSearch:
        return serve(find_kernel(profile, self.registers), self.memory.read)

    def set_gate(self, vector: int, data: bytes) -> None:
        self.memory.write(self.idt_gpa + 16 * vector, data)

    def write_image(self, offset: int, data: bytes) -> None:
        self.memory.write(IMAGE_GPA + offset, data)


def booted(slide: int = SLIDE, levels: int = 4) -> Guest:
    """The kernel in 2 MiB pages, `init_top_pgt` within it as the root, the IDT read-only in the CPU entry area."""
    memory = GuestMemory(first_free=0x100)
    root = IMAGE_GPA + 0x61_0000
    memory.write(root, bytes(4096))
    for offset in range(0, 0xA0_0000, 2 << 20):
        memory.map(root, BASE + slide + offset, IMAGE_GPA + offset, size=2 << 20, levels=levels)
    idt = memory.new_page()
    memory.map(root, IDT, idt, flags=PRESENT, levels=levels)
    registers = VcpuRegisters(
        cr0=0x8005_0033,
        cr3=root,
        cr4=0x3006F0 | (0x1000 if levels == 5 else 0),
        efer=0xD01,
        idt_base=Gva(IDT),
        idt_limit=0xFFF,
        lstar=BASE + slide + ENTRY_OFFSET,
    )
    guest = Guest(memory, registers, root, idt, slide)
    for index, (vector, _, _) in enumerate(VECTORS):
        guest.set_gate(vector, gate(BASE + slide + HANDLER_OFFSET + HANDLER_SIZE * index))
    guest.write_image(0x40_0100, BANNER.encode() + b"\n\0junk after the banner")
    guest.write_image(0x61_2000, (3).to_bytes(4, "little") + b"\xff\xff")
    return guest


def found(guest: Guest, **different: object) -> KernelFound:
    whole = KernelFound(
        slide=guest.slide,
        space=AddressSpace(Gpa(guest.kernel_root), 4, True),
        root_symbol="init_top_pgt",
        agreed=EVERY_ANCHOR,
        silent=(),
        banner=BANNER,
        banner_matched=True,
        system_state=3,
        boot=BootState.RUNNING,
    )
    return replace(whole, **different)  # type: ignore[arg-type]  # the fields a test changes are its own matter


@pytest.mark.parametrize("slide", [0, SLIDE, 0x3E00_0000, -0x100_0000])
def test_a_running_kernel_is_found_wherever_it_slid(slide: int) -> None:
    guest = booted(slide)
    assert guest.find() == found(guest)


def test_with_five_levels() -> None:
    guest = booted(levels=5)
    assert guest.find() == found(guest, space=AddressSpace(Gpa(guest.kernel_root), 5, True))


def test_a_search_takes_a_bounded_number_of_requests() -> None:
    guest = booted()
    requests, outcome = transcript(find_kernel(FULL, guest.registers), guest.memory.read)
    assert outcome == found(guest)
    assert len(requests) == 4 + 1 + 3 + 3 + 3 + 1
    assert sum(map(len, requests)) <= 20


def process_root(guest: Guest) -> Gpa:
    """A task's root with page-table isolation: its user half, one page above, maps entry code and IDT alone."""
    kernel_half = guest.memory.new_page(frames=2)
    user_half = kernel_half + USER_PGD
    guest.memory.write(kernel_half, bytes(guest.memory.frames[guest.kernel_root >> 12]))
    guest.memory.map(user_half, IDT, guest.idt_gpa, flags=PRESENT)
    guest.memory.map(user_half, BASE + guest.slide, IMAGE_GPA, size=2 << 20)
    return kernel_half


@pytest.mark.parametrize("half", [0, USER_PGD])
def test_a_vcpu_in_user_mode_leads_to_the_kernels_own_root(half: int) -> None:
    guest = booted()
    root = process_root(guest)
    guest.registers = replace(guest.registers, cr3=root + half | 0x8000_0000_0000_0801)
    assert guest.find() == found(guest)
    without_root = profile_without("init_top_pgt", banner=BANNER)
    expected = found(guest, space=AddressSpace(root, 4, True), root_symbol=None)
    assert guest.find(without_root) == expected


def test_an_older_name_of_the_root_serves() -> None:
    guest = booted()
    older = profile_without("init_top_pgt", extra=f"{BASE + 0x61_0000:016x} D init_level4_pgt\n", banner=BANNER)
    assert guest.find(older) == found(guest, root_symbol="init_level4_pgt")


def test_a_neighbour_page_that_a_guest_user_filled_is_not_believed() -> None:
    """Without isolation a root may have bit 12 set, and the page below it is anyone's: here a forged set of tables."""
    guest = booted()
    pair = guest.memory.new_page(frames=2)
    real = pair + 0x1000
    guest.memory.write(real, bytes(guest.memory.frames[guest.kernel_root >> 12]))
    forged_image = 0x3000_0000
    for offset in range(0, 0xA0_0000, 2 << 20):
        guest.memory.map(pair, BASE + SLIDE + offset, forged_image + offset, size=2 << 20)
    guest.memory.map(pair, IDT, guest.idt_gpa)
    guest.memory.write(forged_image + 0x61_0000, bytes(guest.memory.frames[pair >> 12]))
    guest.memory.write(forged_image + 0x40_0100, BANNER.encode())
    guest.registers = replace(guest.registers, cr3=real)
    assert guest.find() == found(guest)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lstar": 0}, "LSTAR is 0: firmware or a boot loader runs"),
        ({"cr0": 0x11}, "the vCPU isn't in long mode"),
        ({"efer": 0x901}, "the vCPU isn't in long mode"),
        ({"idt_limit": 0}, "there is no interrupt descriptor table"),
        ({"idt_base": Gva(0x1000)}, "the interrupt descriptor table isn't mapped"),
        ({"idt_base": Gva((1 << 64) - 16)}, "the interrupt descriptor table isn't mapped"),
        ({"cr3": 0x7_0000_0000}, "the interrupt descriptor table isn't mapped"),
        ({"idt_limit": 16 * 20 - 1}, "21 of 39 anchors are in place, 32 are needed"),
    ],
)
def test_a_guest_that_has_not_booted(change: dict[str, int], reason: str) -> None:
    guest = booted()
    guest.registers = replace(guest.registers, **change)  # type: ignore[arg-type]  # as above
    assert guest.find() == KernelNotReady(reason)


def test_a_reset_vcpu() -> None:
    registers = VcpuRegisters(0x6000_0010, 0, 0, 0, Gva(0), 0xFFFF, 0)
    assert serve(find_kernel(FULL, registers), GuestMemory().read) == KernelNotReady("the vCPU isn't in long mode")


def test_gates_that_are_not_installed_are_silent_up_to_the_fingerprint() -> None:
    guest = booted()
    for vector in (0x12, 0x14, 0x15, 0x1D, 0xF4, 0xF9, 0xFA):
        guest.set_gate(vector, bytes(16))
    silent = ("vector 18", "vector 20", "vector 21", "vector 29", "vector 244", "vector 249", "vector 250")
    agreed = tuple(place for place in EVERY_ANCHOR if place not in silent)
    assert guest.find() == found(guest, agreed=agreed, silent=silent)
    guest.set_gate(0xFF, bytes(16))
    assert guest.find() == KernelNotReady("31 of 39 anchors are in place, 32 are needed")


def test_a_small_kernel_needs_all_the_anchors_that_it_has() -> None:
    guest = booted()
    small = profile_without(*(name for vector, name, _ in VECTORS if vector not in (0, 14)))
    expected = found(guest, agreed=("LSTAR", "vector 0", "vector 14"), banner_matched=None)
    assert guest.find(small) == expected
    guest.set_gate(0, bytes(16))
    assert guest.find(small) == KernelNotReady("2 of 3 anchors are in place, 3 are needed")


def test_a_profile_without_entry_points_finds_no_kernel() -> None:
    nothing = profile_without(*(name for _, name, _ in VECTORS))
    with pytest.raises(ProfileError, match="where system calls and interrupts enter"):
        next(find_kernel(nothing, booted().registers))


def test_a_hooked_gate_is_named_with_what_it_leads_to() -> None:
    guest = booted()
    guest.set_gate(14, gate(BASE + SLIDE + 0x1010))
    guest.set_gate(0, gate(0xFFFF_FFFF_C040_1000))
    outcome = guest.find()
    assert outcome == WrongKernel(
        "2 of 39 anchors lead elsewhere, and 37 agree: its entry points were changed",
        (
            Disagreement("vector 0", ("asm_exc_divide_error",), "0xffffffffc0401000, where the profile has nothing"),
            Disagreement("vector 14", ("asm_exc_page_fault",), "`kernel:schedule` + 0x10"),
        ),
        whole=False,
    )
    assert isinstance(outcome, WrongKernel)
    assert str(outcome.disagreements[1]) == ("vector 14 leads to `kernel:schedule` + 0x10, not to `asm_exc_page_fault`")


def test_the_landmarks_of_a_profile_find_its_kernel_as_well() -> None:
    guest = booted()
    few = profile_of_landmarks(landmarks_of(FULL), FULL.identity, os="linux", arch="x86_64", digest=FULL.digest)
    assert guest.find(few) == found(guest)
    guest.set_gate(14, gate(BASE + SLIDE + 0x1010))
    outcome = guest.find(few)
    assert isinstance(outcome, WrongKernel)
    assert outcome.disagreements == (
        Disagreement("vector 14", ("asm_exc_page_fault",), "0xffffffff98801010, where the profile has nothing"),
    )


def test_a_hooked_lstar_is_named() -> None:
    guest = booted()
    guest.registers = replace(guest.registers, lstar=BASE + SLIDE + 0x1100)
    outcome = guest.find()
    assert isinstance(outcome, WrongKernel)
    assert outcome.disagreements == (Disagreement("LSTAR", ("entry_SYSCALL_64",), "`kernel:vfs_read`"),)


def test_the_trampoline_of_older_isolation_is_named() -> None:
    guest = booted()
    guest.registers = replace(guest.registers, lstar=0xFFFF_FE00_0000_6000)
    outcome = guest.find()
    assert isinstance(outcome, WrongKernel)
    assert outcome.reason.startswith("LSTAR leads to a trampoline in the CPU entry area")


def test_another_build_disagrees() -> None:
    rows = kernel_rows()
    other = build_profile(table({**rows, "asm_exc_page_fault": (0x9000, "T"), "asm_exc_nmi": (0x9100, "T")}))
    outcome = booted().find(other)
    assert isinstance(outcome, WrongKernel)
    assert [row.place for row in outcome.disagreements] == ["vector 2", "vector 14"]


@pytest.mark.parametrize(
    ("slide", "reason"),
    [
        (0x1000, "the kernel would be off its profile by 0x1000, which isn't a multiple of 2 MiB"),
        (
            -BASE,
            "the kernel would be off its profile by -0xffffffff81000000, which leaves the kernel's half of the "
            "address space",
        ),
        (
            0x7E80_0000,
            "the kernel would be off its profile by 0x7e800000, which leaves the kernel's half of the address space",
        ),
    ],
)
def test_an_impossible_slide(slide: int, reason: str) -> None:
    guest = booted()
    guest.registers = replace(guest.registers, lstar=BASE + slide + ENTRY_OFFSET)
    for index, (vector, _, _) in enumerate(VECTORS):
        guest.set_gate(vector, gate(BASE + slide + HANDLER_OFFSET + HANDLER_SIZE * index))
    assert guest.find() == WrongKernel(reason)


def test_a_root_that_is_not_where_it_should_be() -> None:
    guest = booted()
    pages = guest.memory
    table_of_2m = pages.entry(pages.entry(guest.kernel_root + 511 * 8) // 4096 * 4096 + 510 * 8) // 4096 * 4096
    entry = table_of_2m + ((BASE + SLIDE + 0x60_0000) >> 21) % 512 * 8
    mapped = pages.entry(entry)
    pages.set_entry(entry, 0)
    assert guest.find() == WrongKernel("`init_top_pgt` isn't mapped where the anchors put it")
    pages.set_entry(entry, mapped + (2 << 20))
    pages.write(IMAGE_GPA + 0x81_0000, bytes(8))
    assert guest.find() == WrongKernel("the page tables at `init_top_pgt` don't lead back to themselves")


def test_no_root_maps_the_kernel() -> None:
    guest = booted()
    user_half = process_root(guest) + USER_PGD
    guest.memory.write(user_half - USER_PGD, bytes(4096))
    guest.registers = replace(guest.registers, cr3=user_half)
    assert guest.find(profile_without("init_top_pgt")) == WrongKernel(
        "neither root of this vCPU's page tables maps the kernel's sections"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"\x1b]0;owned\x07\0", "where `linux_banner` should be, this guest has `\\x1b]0;owned\\x07`"),
        (b"\0", "where `linux_banner` should be, this guest has ``"),
        (b"Linux version 6.1\xff\0", "where `linux_banner` should be, this guest has `Linux version 6.1\\\\xff`"),
        (
            b"Linux version 6.1.0-100-amd64\n\0",
            "this guest runs `Linux version 6.1.0-100-amd64`, which isn't the profile's kernel",
        ),
    ],
)
def test_another_banner(text: bytes, reason: str) -> None:
    guest = booted()
    guest.write_image(0x40_0100, text)
    assert guest.find() == WrongKernel(reason)


def test_a_banner_that_the_profile_does_not_have_is_read_all_the_same() -> None:
    guest = booted()
    guest.write_image(0x61_2000, (2).to_bytes(4, "little"))
    without_banner = found(guest, banner_matched=None, system_state=2, boot=BootState.BOOTING)
    assert guest.find(profile_without()) == without_banner


def test_a_profile_of_functions_alone_finds_the_kernel_without_banner_and_state() -> None:
    guest = booted()
    data = [name for name, (_, letter) in kernel_rows().items() if letter in "DdRrBb"]
    expected = found(
        guest, root_symbol=None, banner=None, banner_matched=None, system_state=None, boot=BootState.UNKNOWN
    )
    assert guest.find(profile_without(*data)) == expected


def test_a_state_that_can_not_be_read_is_unknown() -> None:
    guest = booted()
    for gfn in [gfn for gfn in guest.memory.frames if gfn == (IMAGE_GPA + 0x61_2000) >> 12]:
        del guest.memory.frames[gfn]
    assert guest.find() == found(guest, system_state=None, boot=BootState.UNKNOWN)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
)
def test_any_garbage_is_no_kernel(seed: int, lstar: int, idt_base: int, idt_limit: int, low_bits: int) -> None:
    """One frame of garbage answers for every frame; its first half makes a walk that leads somewhere."""
    entry = 0x5000 | PRESENT | WRITABLE | USER | (LARGE if low_bits & 1 else 0)
    page = entry.to_bytes(8, "little") * 256 + Random(seed).randbytes(2048)
    registers = VcpuRegisters(0x8000_0001, 0, low_bits << 12, 0x500, Gva(idt_base), idt_limit, lstar)
    outcome = serve(find_kernel(FULL, registers), lambda gfn: page)
    assert isinstance(outcome, KernelNotReady | WrongKernel)
