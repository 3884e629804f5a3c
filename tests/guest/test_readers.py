from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from policyc.guest.errors import ProfileError
from policyc.guest.profile import Identity, Profile, ProfileSource
from policyc.guest.readers import READERS, build_profile, clean_banner
from policyc.guest.store import decode, encode
from tests.support.guest_tables import BANNER, kernel_rows, large_table, table


def refusal(source: Path | bytes, banner: str | None = None) -> tuple[str, str | None]:
    with pytest.raises(ProfileError) as caught:
        build_profile(source, banner=banner)
    return caught.value.message, caught.value.help


def test_a_profile_says_what_it_was_made_from(tmp_path: Path) -> None:
    data = table(kernel_rows())
    path = tmp_path / "System.map"
    path.write_bytes(data)
    profile = build_profile(path, banner=BANNER + "\n")
    assert profile == build_profile(data, banner=BANNER)
    assert profile.os == "linux"
    assert profile.arch == "x86_64"
    assert profile.source == ProfileSource("symbol-table", "sha256:" + hashlib.sha256(data).hexdigest())
    assert profile.identity == Identity(build_id=None, banner=BANNER)
    assert str(tmp_path).encode() not in encode(profile)
    assert build_profile(data).identity == Identity()


@pytest.mark.parametrize(
    ("data", "message", "help"),
    [
        (b"", "this file is empty", None),
        (
            b"\x7fELF\x02",
            "this file is an ELF file, which can't be read as a table of symbols",
            "run `nm -n vmlinux > System.map` and use that",
        ),
        (
            b"\xfd7zXZ\x00",
            "this file is compressed with xz, which can't be read as a table of symbols",
            "decompress it first",
        ),
        (
            b"{}",
            "this file is JSON, which can't be read as a table of symbols",
            "a profile that is already built is loaded as it is",
        ),
        (
            b"\x1b[2J\x00hello, this is no table",
            "this file isn't a table of symbols: it starts with `\\x1b[2J\\x00hello, thi...`",
            "use System.map from the kernel build, or the guest's /proc/kallsyms",
        ),
    ],
)
def test_other_formats_are_named(data: bytes, message: str, help: str | None) -> None:
    assert refusal(data) == (message, help)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == ("can't read this file: No such file or directory", None)
    assert refusal(tmp_path) == ("can't read this file: Is a directory", None)


@pytest.mark.parametrize("text", [BANNER, BANNER + "\n", BANNER + "\n\0", BANNER + "  "])
def test_a_banner_loses_its_line_end(text: str) -> None:
    assert clean_banner(text) == BANNER


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("Darwin 1", "Darwin 1"),
        ("Linux version ", "Linux version "),
        ("Linux version 6.1\x1b[2J", "Linux version 6.1\\x1b[2J"),
        ("Linux version 6.1\nLinux version 6.2", "Linux version 6.1\\nLinux version 6.2"),
        ("Linux version 6.1 é", "Linux version 6.1 \\xe9"),
        ("Linux version " + "6" * 1001, "Linux version " + "6" * 43 + "..."),
    ],
)
def test_what_is_no_banner(text: str, shown: str) -> None:
    assert refusal(table(kernel_rows()), text) == (
        f"this isn't a kernel's banner: `{shown}`",
        "give the guest's /proc/version as it stands",
    )


def test_no_two_readers_claim_one_file() -> None:
    samples = [table(kernel_rows())[:64], b"\x7fELF", b"MZ", b"{", b"\xfd7zXZ\x00"]
    assert all(sum(reader.recognises(sample) for reader in READERS) <= 1 for sample in samples)
    assert len({reader.kind for reader in READERS}) == len(READERS)


def test_a_distribution_sized_table_keeps_every_symbol() -> None:
    profile = decode(encode(build_profile(large_table(120_000, 100))))
    assert sum(len(image.symbols) for image in profile.images.values()) == 120_000 + len(kernel_rows()) + 2000
    (found,) = profile.kernel.symbol("function_number_119999")
    assert profile.symbol_at(found.gva) == (profile.kernel, found, 0)


def test_whatever_this_machine_shows_makes_a_profile_or_says_why() -> None:
    """/proc/kallsyms exists or not, is empty or hidden or whole, and of any architecture: nothing else may come out."""
    outcome = profile_or_refusal(Path("/proc/kallsyms"))
    if isinstance(outcome, ProfileError):
        assert outcome.message
    else:
        assert decode(encode(outcome)) == outcome
        assert outcome.anchor
        assert outcome.kernel.symbol("entry_SYSCALL_64")


def profile_or_refusal(path: Path) -> Profile | ProfileError:
    try:
        return build_profile(path)
    except ProfileError as refused:
        return refused
