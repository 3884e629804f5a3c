"""The checked-in image is what its sources give, and has the shape of a Linux kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from policyc.addresses import Gpa
from policyc.emulator.image import (
    KERNEL_BASE,
    MODULE_BASE,
    SLIDE_ALIGNMENT,
    SLIDE_LIMIT,
    is_slid,
    load,
    small_image,
    small_system_map,
)
from policyc.emulator.memory import Memory
from policyc.emulator.routines import ROUTINES
from policyc.emulator.small_machine import SmallMachine
from policyc.guest.readers import build_profile

SMALL = Path(str(files("policyc.emulator") / "small"))
BUILT = ("kernel.bin", "kernel.relocs", "kernel.map", "kernel.lst")

CODE_LINE = re.compile(r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)")
DATA_LINE = re.compile(r"^ ([0-9a-f]+) ((?:[0-9a-f]{2,8} ?){1,4})")

EXCEPTIONS = [
    "divide_error",
    "debug",
    "nmi",
    "int3",
    "overflow",
    "bounds",
    "invalid_op",
    "device_not_available",
    "double_fault",
    "coproc_segment_overrun",
    "invalid_tss",
    "segment_not_present",
    "stack_segment",
    "general_protection",
    "page_fault",
    "spurious_interrupt_bug",
    "coprocessor_error",
    "alignment_check",
    "machine_check",
    "simd_coprocessor_error",
    "virtualization_exception",
    "control_protection",
]


def file_offset(address: int) -> int:
    """Where a linked address lies in the flat image."""
    symbols = small_image().symbols
    module = symbols["__module_image"] - KERNEL_BASE
    if is_slid(address):
        return address - KERNEL_BASE
    if address >= MODULE_BASE:
        return address - MODULE_BASE + module
    return address - 0x40_0000 + len(small_image().content) - 0x1000


def listed() -> dict[int, int]:
    """Every byte that the listing tells, by its place in the image."""
    found: dict[int, int] = {}
    for line in (SMALL / "kernel.lst").read_text("ascii").splitlines():
        match = CODE_LINE.match(line) or DATA_LINE.match(line)
        if match:
            start = file_offset(int(match[1], 16))
            found.update(enumerate(bytes.fromhex(match[2]), start))
    return found


def test_the_listing_tells_every_byte_of_the_image_but_zeros() -> None:
    content = small_image().content
    listing = listed()
    assert {at: content[at] for at in listing} == listing
    assert {content[at] for at in range(len(content)) if at not in listing} == {0}
    assert len(listing) > 5000


@pytest.mark.parametrize("name", BUILT)
def test_a_build_gives_the_checked_in_files(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Without an assembler the listing has been held against the image above, and that is all there is to hold."""
    if shutil.which("as") is None:
        return
    built = tmp_path_factory.mktemp("small")
    subprocess.run([str(SMALL / "build.sh"), str(built)], check=True)
    assert (built / name).read_bytes() == (SMALL / name).read_bytes()


def test_the_map_is_a_system_map_in_order() -> None:
    lines = small_system_map().splitlines()
    assert all(re.fullmatch(r"[0-9a-f]{16} [A-Za-z] \S+", line) for line in lines)
    assert lines == sorted(lines, key=lambda line: line.split()[0])
    names = {line.split()[2] for line in lines}
    assert not any(name.startswith(("evil_", "attack_", "user_start")) for name in names)
    wanted = [
        "_text",
        "_stext",
        "_etext",
        "__start_rodata",
        "__end_rodata",
        "_sdata",
        "_edata",
        "__bss_start",
        "__bss_stop",
        "sys_call_table",
        "linux_banner",
        "entry_SYSCALL_64",
        "system_state",
        "init_top_pgt",
        "schedule",
        "memcpy",
        "text_poke_memcpy",
        "__text_poke",
        "jiffies",
        "guarded_object",
        "neighbour_before",
        "neighbour_after",
        "init_cred",
        "idt_table",
        "gdt_page",
    ]
    assert set(wanted) <= names
    assert {f"asm_exc_{name}" for name in EXCEPTIONS} <= names
    assert len([name for name in names if name.startswith(("asm_exc_", "asm_sysvec_", "entry_"))]) >= 32


def test_no_label_inside_a_function_cuts_its_size_short() -> None:
    """A size is the distance to the next symbol: `memcpy` must reach over its own string instruction."""
    addresses = sorted(set(small_image().symbols.values()))
    symbols = small_image().symbols
    for name, least in (("memcpy", 9), ("__text_poke", 0x60), ("schedule", 0x30), ("do_exception", 0x80)):
        following = next(address for address in addresses if address > symbols[name])
        assert following - symbols[name] >= least, name


def test_profiles_are_made_from_it() -> None:
    profile = build_profile(small_system_map().encode())
    kernel = profile.kernel
    assert kernel.section(".text") is not None
    (schedule,) = kernel.symbol("schedule")
    assert schedule.gva == small_image().symbols["schedule"]


def test_the_guarded_object_shares_its_page_with_its_neighbours() -> None:
    symbols = small_image().symbols
    page = symbols["guarded_object"] >> 12
    assert symbols["guarded_object"] % 4096
    assert symbols["guarded_object"] == symbols["init_cred"]
    assert {symbols[name] >> 12 for name in ("neighbour_before", "neighbour_after")} == {page}
    busy = {symbols[name] >> 12 for name in ("jiffies", "fault_count", "task_turns", "routine_done", "init_stack")}
    assert page not in busy


def test_every_routine_is_in_the_image() -> None:
    assert {routine.symbol for routine in ROUTINES.values()} <= set(small_image().symbols)
    attacks = {name for name in small_image().symbols if name.startswith(("attack_", "act_"))}
    assert attacks == {routine.symbol for routine in ROUTINES.values()}


def test_a_slide_moves_what_is_listed_and_nothing_else() -> None:
    image = small_image()
    straight, slid = Memory(8 << 20), Memory(8 << 20)
    load(image, straight, 0, 0x20_0000)
    load(image, slid, 0x40_0000, 0x20_0000)
    size = len(image.content)
    one, other = straight.read(Gpa(0x20_0000), size), slid.read(Gpa(0x20_0000), size)
    moved = {at for at in range(size) if one[at] != other[at]}
    assert moved <= {at + byte for at in image.relocations for byte in range(8)}
    for at in image.relocations:
        assert int.from_bytes(other[at : at + 8], "little") - int.from_bytes(one[at : at + 8], "little") == 0x40_0000


@pytest.mark.parametrize("slide", [0, SLIDE_ALIGNMENT, 0x1240_0000, SLIDE_LIMIT])
@pytest.mark.parametrize("load_gpa", [0x20_0000, 0x100_0000, 0x3E0_0000])
def test_it_boots_anywhere(slide: int, load_gpa: int) -> None:
    machine = SmallMachine.boot(slide=slide, load_gpa=load_gpa)
    assert machine.symbol("_text") == KERNEL_BASE + slide
    assert machine.gpa(machine.symbol("_text")) == load_gpa
    assert machine.read("linux_banner", 21) == b"Linux version 6.1.0-p"


@pytest.mark.parametrize(("slide", "load_gpa"), [(1, 0x100_0000), (SLIDE_LIMIT + SLIDE_ALIGNMENT, 0x100_0000), (0, 0)])
def test_where_it_cannot_be(slide: int, load_gpa: int) -> None:
    with pytest.raises(ValueError, match=r"^(a slide is|the image can't lie)"):
        SmallMachine(slide=slide, load_gpa=load_gpa)


def test_the_guest_sets_itself_up() -> None:
    """By its own instructions: page tables of both leaf sizes, descriptor tables, MSRs, CR0 and CR4."""
    machine = SmallMachine.boot(slide=0x40_0000)
    engine = machine.vcpus[0].engine
    assert engine.get("cr3") == machine.gpa(machine.symbol("init_top_pgt"))
    assert engine.get("cr0") >> 16 & 1
    assert engine.get("cr4") >> 20 & 3 == 3
    assert engine.table("idtr") == (machine.symbol("idt_table"), 4095)
    assert engine.msr_read(0xC000_0082) == machine.symbol("entry_SYSCALL_64")
    assert engine.msr_read(0xC000_0081) == 0x23_0010 << 32
    assert machine.read_int("system_state", 4) == 3
    for vector, name in enumerate(EXCEPTIONS):
        gate = machine.read("idt_table", 16, vector * 16)
        handler = int.from_bytes(gate[0:2] + gate[6:12], "little")
        assert handler == machine.symbol(f"asm_exc_{name}")
    assert machine.gpa(0xFFFF_8880_0000_0000 + 0x123_4567) == 0x123_4567


def test_the_guest_runs_on_with_a_user_task() -> None:
    machine = SmallMachine.boot()
    for _ in range(10):
        machine.tick()
        machine.run_until_idle()
    assert machine.read_int("jiffies") == 10
    assert machine.read_int("task_turns") == 11
    assert machine.read_int("last_pid") == 1
    assert machine.read_int("user_data_page") == 1


@pytest.mark.parametrize("kpti", [False, True])
@pytest.mark.parametrize("name", [name for name in ROUTINES if name.startswith("user") or name == "hypercall-32"])
def test_user_mode__is_left_and_entered_whatever_the_page_tables(name: str, kpti: bool) -> None:
    machine = SmallMachine.boot(kpti=kpti)
    result = machine.run_routine(name)
    assert (result.changed, result.fault) == (result.routine.target is not None, None)
    assert machine.panicked is None
