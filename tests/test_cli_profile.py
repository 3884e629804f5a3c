"""`policyc profile`: from a System.map to a profile, and what a profile holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from policyc.guest.store import load
from tests.support.policyc_command import Ran, call_policyc
from tests.support.small_kernel import BANNER, SYSTEM_MAP, write_small_kernel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_small_kernel(tmp_path)
    return tmp_path


def test_build(folder: Path) -> None:
    ran = call_policyc("profile", "build", "System.map", "-o", "built.profile", cwd=folder)
    assert ran == Ran(0, "", "built.profile: 21 symbols, the kernel\n")
    profile = load(folder / "built.profile")
    assert (profile.identity.banner, [*profile.kernel.sections]) == (
        None,
        [".bss", ".data", ".init", ".rodata", ".text"],
    )


def test_build__with_a_banner(folder: Path) -> None:
    ran = call_policyc("profile", "build", "System.map", "--banner", "version.txt", "-o", "built.profile", cwd=folder)
    assert ran.code == 0
    assert (folder / "built.profile").read_bytes() == (folder / "kernel.profile").read_bytes()
    assert load(folder / "built.profile").identity.banner == BANNER.rstrip("\n")


def test_build__from_standard_input_to_standard_output(folder: Path) -> None:
    ran = call_policyc("profile", "build", "-", "--banner", "version.txt", "-o", "-", cwd=folder, input=SYSTEM_MAP)
    assert ran == Ran(0, (folder / "kernel.profile").read_text(), "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.map", "-o", "new"], 2, "error: `missing.map`: no such file or directory\n"),
        ([".", "-o", "new"], 2, "error: `.`: is a directory\n"),
        (
            ["version.txt", "-o", "new"],
            3,
            "error: `version.txt`: this file isn't a table of symbols: it starts with `Linux version 6.1.0-s...`\n"
            "  help: use System.map from the kernel build, or the guest's /proc/kallsyms\n",
        ),
        (
            ["System.map", "--banner", "System.map", "-o", "new"],
            3,
            "error: `System.map`: this isn't a kernel's banner: `ffffffff81000000 T _text\\nffffffff81000000 T "
            "_stext\\nffff...`\n  help: give the guest's /proc/version as it stands\n",
        ),
        (["-", "-o", "new"], 3, "error: `<stdin>`: this file is empty\n"),
        (["System.map", "-o", "missing/new"], 2, "error: `missing/new`: no such file or directory\n"),
        (["System.map", "-o", "."], 2, "error: `.`: is a directory\n"),
    ],
)
def test_build__refuses(folder: Path, arguments: list[str], code: int, said: str) -> None:
    before = sorted(folder.rglob("*"))
    assert call_policyc("profile", "build", *arguments, cwd=folder) == Ran(code, "", said)
    assert sorted(folder.rglob("*")) == before


def test_build__keeps_the_old_file_when_the_source_is_refused(folder: Path) -> None:
    before = (folder / "kernel.profile").read_bytes()
    assert call_policyc("profile", "build", "version.txt", "-o", "kernel.profile", cwd=folder).code == 3
    assert (folder / "kernel.profile").read_bytes() == before


def test_show(folder: Path) -> None:
    digest, source = load(folder / "kernel.profile").digest, load(folder / "kernel.profile").source.digest
    assert call_policyc("profile", "show", "kernel.profile", cwd=folder) == Ran(
        0,
        f"""\
linux x86_64: 21 symbols, the kernel
  banner    Linux version 6.1.0-small (someone@somewhere) #1 SMP
  build id  unknown
  made of   symbol-table {source}
  digest    {digest}

kernel: 21 symbols, base 0xffffffff81000000
  .bss      0xffffffff82200000..0xffffffff82300000  0x100000 bytes
  .data     0xffffffff82000000..0xffffffff82100000  0x100000 bytes
  .init     0xffffffff82100000..0xffffffff82180000  0x80000 bytes
  .rodata   0xffffffff81a00000..0xffffffff81b00000  0x100000 bytes
  .text     0xffffffff81000000..0xffffffff81800000  0x800000 bytes
""",
        "",
    )


def test_show__says_what_the_profile_does_not_know(folder: Path) -> None:
    table = "".join(line for line in SYSTEM_MAP.splitlines(keepends=True) if "rodata" not in line)
    table += "ffffffffc0000000 t init [ext4]\n"
    call_policyc("profile", "build", "-", "-o", "lean.profile", cwd=folder, input=table)
    out = call_policyc("profile", "show", "lean.profile", cwd=folder).out
    assert "  banner    unknown (--banner adds it)\n" in out
    assert "linux x86_64: 20 symbols, the kernel and 1 module\n" in out
    assert "\next4: 1 symbol, lies elsewhere after each load\n" in out
    assert "  .rodata   unknown: " in out


def test_show__as_json(folder: Path) -> None:
    ran = call_policyc("profile", "show", "kernel.profile", "--format", "json", cwd=folder)
    profile = load(folder / "kernel.profile")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out) == {
        "os": "linux",
        "arch": "x86_64",
        "digest": profile.digest,
        "source": {"kind": "symbol-table", "digest": profile.source.digest},
        "identity": {"build_id": None, "banner": BANNER.rstrip("\n")},
        "images": [
            {
                "name": "kernel",
                "base": "0xffffffff81000000",
                "symbols": 21,
                "sections": {
                    ".bss": {"start": "0xffffffff82200000", "end": "0xffffffff82300000"},
                    ".data": {"start": "0xffffffff82000000", "end": "0xffffffff82100000"},
                    ".init": {"start": "0xffffffff82100000", "end": "0xffffffff82180000"},
                    ".rodata": {"start": "0xffffffff81a00000", "end": "0xffffffff81b00000"},
                    ".text": {"start": "0xffffffff81000000", "end": "0xffffffff81800000"},
                },
                "absent_sections": {},
            }
        ],
    }


def test_show__symbols(folder: Path) -> None:
    ran = call_policyc("profile", "show", "kernel.profile", "kernel:*memcpy", "kernel:sys_call_table", cwd=folder)
    assert ran == Ran(
        0,
        """\
0xffffffff81001800  code            0x80 (inferred)     kernel:text_poke_memcpy
0xffffffff81001880  code            0x780 (inferred)    kernel:memcpy
0xffffffff81a00180  read-only data  0x1000 (inferred)   kernel:sys_call_table
""",
        "",
    )


def test_show__symbols_as_json(folder: Path) -> None:
    ran = call_policyc("profile", "show", "kernel.profile", "kernel:memcpy", "--format", "json", cwd=folder)
    symbol = {
        "name": "kernel:memcpy",
        "address": "0xffffffff81001880",
        "size": 0x780,
        "size_inferred": True,
        "kind": "code",
    }
    assert (ran.code, json.loads(ran.out)) == (0, {"symbols": [symbol]})


def test_show__symbols_that_are_missing_are_all_said(folder: Path) -> None:
    ran = call_policyc("profile", "show", "kernel.profile", "kernel:memcp", "ext4:x", "kernel:memcpy", cwd=folder)
    assert ran == Ran(
        1,
        "0xffffffff81001880  code            0x780 (inferred)    kernel:memcpy\n",
        "error: there is no symbol `kernel:memcp`\n"
        "  help: did you mean `kernel:memcpy`?\n"
        "error: there is no image `ext4`: this profile holds the kernel alone\n"
        "  help: a profile made from the guest's /proc/kallsyms holds the modules that were loaded\n",
    )


def test_show__too_many_symbols_are_counted(folder: Path) -> None:
    many = "".join(f"{0xFFFFFFFF81100000 + 16 * n:x} t f{n}\n" for n in range(1002))
    call_policyc("profile", "build", "-", "-o", "many.profile", cwd=folder, input=SYSTEM_MAP + many)
    ran = call_policyc("profile", "show", "many.profile", "kernel:f*", cwd=folder)
    assert (ran.code, ran.out.count("\n")) == (0, 1000)
    assert ran.err == "note: `kernel:f*` means 2 more symbols, which aren't listed\n"


def test_show__a_name_without_image(folder: Path) -> None:
    ran = call_policyc("profile", "show", "kernel.profile", "memcpy", cwd=folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.endswith("Error: `memcpy` names no image: write `kernel:memcpy`\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "this file isn't a profile, or only a part of one: it isn't whole JSON"),
        (os.urandom(64) + b"\xff", "this file isn't a profile, or only a part of one: it isn't whole JSON"),
        (b"[" * 100_000, "this file isn't a profile, or only a part of one: it isn't whole JSON"),
        (b'{"format": "policyc-plan"}', "this file isn't a profile of a kernel"),
    ],
)
def test_show__refuses(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "p").write_bytes(content)
    ran = call_policyc("profile", "show", "p", cwd=tmp_path)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith(f"error: `p`: {said}\n  help: ")
