from __future__ import annotations

import pytest

from policyc.addresses import Gva
from policyc.guest.errors import ProfileError
from policyc.guest.profile import Identity, Missing, Profile, ProfileSource
from policyc.guest.readers import build_profile
from policyc.guest.store import seal
from tests.support.guest_tables import BASE, kernel_rows, table

MODULES = (
    "ffffffffc0402000 t ext4_fill_super\t[ext4]\n"
    "ffffffffc0402040 t ext4_mount\t[ext4]\n"
    "ffffffffc0100000 t virtio_probe\t[virtio]\n"
    "0000000000019040 A current_task\n"
)
FULL = build_profile(table(kernel_rows(), extra=MODULES))

DATA = [name for name, (_, letter) in kernel_rows().items() if letter in "DdRrBb" and name != "__start_rodata"]
FUNCTIONS_ONLY = build_profile(table(kernel_rows(without=DATA)))

NO_DATA = "this profile's table holds no data symbols: its kernel was built without CONFIG_KALLSYMS_ALL"


@pytest.mark.parametrize(
    ("profile", "name", "expected"),
    [
        (FULL, "vfs_raed", Missing("there is no symbol `kernel:vfs_raed`", "did you mean `kernel:vfs_read`?")),
        (FULL, "nothing_like_it", Missing("there is no symbol `kernel:nothing_like_it`")),
        (FULL, "nothing_*", Missing("no symbol of this profile fits `kernel:nothing_*`")),
        (
            FULL,
            "current_task",
            Missing(
                "`kernel:current_task` is no address but an offset or a constant: per-CPU variables lie elsewhere on "
                "each CPU"
            ),
        ),
        (
            FUNCTIONS_ONLY,
            "sys_call_table",
            Missing(
                f"there is no symbol `kernel:sys_call_table`, and {NO_DATA}",
                "if it names data, make the profile from the System.map of the same kernel build",
            ),
        ),
        (
            FUNCTIONS_ONLY,
            "schedul",
            Missing(f"there is no symbol `kernel:schedul`, and {NO_DATA}", "did you mean `kernel:schedule`?"),
        ),
    ],
)
def test_why_a_symbol_is_not_there(profile: Profile, name: str, expected: Missing) -> None:
    assert profile.kernel.symbol(name) == ()
    assert profile.kernel.missing_symbol(name) == expected


@pytest.mark.parametrize(
    ("profile", "name", "expected"),
    [
        (
            FULL,
            ".rodate",
            Missing("there is no section `kernel .rodate`", "did you mean `kernel .rodata`?"),
        ),
        (
            FULL,
            "PAGE",
            Missing(
                "there is no section `kernel PAGE`",
                "known sections: `kernel .text`, `kernel .rodata`, `kernel .data`, `kernel .bss`, `kernel .init`",
            ),
        ),
        (
            FUNCTIONS_ONLY,
            ".rodata",
            Missing(
                "this profile can't say where `kernel .rodata` lies: the table lacks `__end_rodata`, and it holds no "
                "data symbols: its kernel was built without CONFIG_KALLSYMS_ALL",
                "make the profile from the System.map of the same kernel build",
            ),
        ),
        (
            build_profile(table(kernel_rows(without=["__bss_stop", "__bss_start"]))),
            ".bss",
            Missing("this profile can't say where `kernel .bss` lies: the table lacks `__bss_start` and `__bss_stop`"),
        ),
    ],
)
def test_why_a_section_is_not_there(profile: Profile, name: str, expected: Missing) -> None:
    assert profile.kernel.section(name) is None
    assert profile.kernel.missing_section(name) == expected


def test_why_a_section_of_a_module_is_not_there() -> None:
    ext4 = FULL.images["ext4"]
    assert ext4.missing_section(".text") == Missing("there is no section `ext4 .text`", "known sections: none")


@pytest.mark.parametrize(
    ("profile", "name", "expected"),
    [
        (FULL, "ext3", Missing("there is no image `ext3` in this profile", "did you mean `ext4`?")),
        (FULL, "nvidia", Missing("there is no image `nvidia` in this profile", "its modules: `ext4`, `virtio`")),
        (
            FUNCTIONS_ONLY,
            "nvidia",
            Missing(
                "there is no image `nvidia`: this profile holds the kernel alone",
                "a profile made from the guest's /proc/kallsyms holds the modules that were loaded",
            ),
        ),
    ],
)
def test_why_an_image_is_not_there(profile: Profile, name: str, expected: Missing) -> None:
    assert profile.image(name) is None
    assert profile.missing_image(name) == expected


def test_many_modules_are_counted_not_listed() -> None:
    lines = "".join(f"ffffffffc000000{n} t f\t[m{n}]\n" for n in range(9))
    profile = build_profile(table(kernel_rows(), extra=lines))
    assert profile.missing_image("nvidia").help == "its modules: `m0`, `m1`, `m2`, `m3`, `m4` and 4 more"


@pytest.mark.parametrize(
    ("gva", "expected"),
    [
        (BASE + 0x1005, ("kernel", "schedule", 5)),
        (BASE + 0x40_0200 + 8, ("kernel", "sys_call_table", 8)),
        (0xFFFF_FFFF_C040_2010, ("ext4", "ext4_fill_super", 0x10)),
        (BASE + 0xA0_0001, None),
        (0x1000, None),
    ],
)
def test_the_symbol_at_an_address(gva: int, expected: tuple[str, str, int] | None) -> None:
    found = FULL.symbol_at(Gva(gva))
    assert (found and (found[0].name, found[1].name, found[2])) == expected


def test_a_module_has_data_symbols_if_it_lists_any() -> None:
    assert not FULL.images["ext4"].has_data_symbols
    lines = "ffffffffc0402000 d ext4_ops\t[ext4]\n"
    assert build_profile(table(kernel_rows(), extra=lines)).images["ext4"].has_data_symbols


def test_a_profile_without_a_kernel_can_not_answer() -> None:
    empty = seal(ProfileSource("test", "sha256:" + "0" * 64), Identity(), {})
    with pytest.raises(ProfileError, match="no kernel image"):
        _ = empty.kernel
    module_only = seal(empty.source, Identity(), {"kernel": FULL.images["ext4"]})
    with pytest.raises(ProfileError, match="where the kernel starts"):
        _ = module_only.anchor
    assert FULL.anchor == BASE


def test_a_profile_prints_in_one_line() -> None:
    assert len(repr(FULL)) < 2000
