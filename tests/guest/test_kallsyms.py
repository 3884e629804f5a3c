from __future__ import annotations

import pytest

from policyc.addresses import Gva, GvaRange, Range
from policyc.guest import kallsyms
from policyc.guest.errors import ProfileError
from policyc.guest.kallsyms import looks_like_table, read_table
from policyc.guest.store import MAX_NAME
from tests.support.guest_tables import BASE, kernel_rows, large_table, table


def at(start: int, end: int) -> GvaRange:
    return Range(Gva(BASE + start), Gva(BASE + end))


def refusal(data: bytes) -> tuple[str, str | None]:
    with pytest.raises(ProfileError) as caught:
        read_table(data)
    return caught.value.message, caught.value.help


def test_a_system_map_makes_the_kernel_alone() -> None:
    images = read_table(table(kernel_rows()))
    assert list(images) == ["kernel"]
    kernel = images["kernel"]
    assert kernel.base == BASE
    assert kernel.sections == {
        ".text": at(0, 0x20_0000),
        ".rodata": at(0x40_0000, 0x60_0000),
        ".data": at(0x60_0000, 0x70_0000),
        ".init": at(0x70_0000, 0x80_0000),
        ".bss": at(0x80_0000, 0x90_0000),
    }
    assert kernel.absent_sections == {}
    assert kernel.symbols.end == BASE + 0xA0_0000
    assert kernel.has_data_symbols
    (system_calls,) = kernel.symbol("sys_call_table")
    assert (system_calls.gva, system_calls.size, system_calls.size_inferred) == (BASE + 0x40_0200, 0x1100, True)


def test_modules_get_images_of_their_own_without_a_base() -> None:
    lines = (
        "ffffffffc0402000 t ext4_fill_super\t[ext4]\n"
        "ffffffffc0401000 T ext4_mount\t[ext4]\n"
        "ffffffffc0100000 t virtio_probe [virtio]\n"
        "0000000000000010 a offset_in_module\t[virtio]\n"
        "ffffffffc0500000 t bpf_prog_6deef7357e7b4530\t[bpf]\n"
        "ffffffffc0600000 t ftrace_trampoline\t[__builtin__ftrace]\n"
        "ffffffffc0700000 t kprobe_insn_page\t[__builtin__kprobes]\n"
    )
    images = read_table(table(kernel_rows(), extra=lines))
    assert list(images) == ["kernel", "ext4", "virtio"]
    assert [(found.name, found.gva, found.size) for found in images["ext4"].symbols] == [
        ("ext4_mount", 0xFFFF_FFFF_C040_1000, 0x1000),
        ("ext4_fill_super", 0xFFFF_FFFF_C040_2000, 0),
    ]
    assert [found.name for found in images["virtio"].symbols] == ["virtio_probe"]
    assert images["virtio"].offset_names == {"offset_in_module"}
    assert images["ext4"].base is None
    assert images["ext4"].sections == {}
    assert "bpf_prog_6deef7357e7b4530" not in images["kernel"].symbols


def test_a_module_can_not_pass_for_the_kernel() -> None:
    images = read_table(table(kernel_rows(), extra="ffffffffc0402000 t _text\t[kernel]\n"))
    assert list(images) == ["kernel"]
    assert images["kernel"].base == BASE


@pytest.mark.parametrize(
    "per_cpu",
    [
        "0000000000000000 D __per_cpu_start\n0000000000019040 D current_task\n0000000000034000 D __per_cpu_end\n",
        f"{BASE + 0x70_0000:016x} D __per_cpu_start\n{BASE + 0x70_0040:016x} D current_task\n"
        f"{BASE + 0x70_1000:016x} D __per_cpu_end\n",
    ],
)
def test_per_cpu_variables_are_offsets_wherever_the_kernel_links_them(per_cpu: str) -> None:
    kernel = read_table(table(kernel_rows(), extra=per_cpu))["kernel"]
    assert "current_task" in kernel.offset_names
    assert kernel.symbol("current_task") == ()
    assert kernel.base == BASE


def test_spelling_of_lines_that_differ_between_tools() -> None:
    plain = read_table(table(kernel_rows()))
    assert read_table(table(kernel_rows()).replace(b"\n", b"\r\n")) == plain
    assert read_table(table(kernel_rows()).rstrip(b"\n")) == plain
    assert read_table(b"\n".join(reversed(table(kernel_rows()).splitlines()))) == plain
    upper = b"\n".join(line[:16].upper() + line[16:] for line in table(kernel_rows()).splitlines())
    assert read_table(upper) == plain


def test_a_large_table_is_the_same_whatever_its_order() -> None:
    data = large_table(20_000, 30)
    images = read_table(data)
    assert len(images) == 31
    assert len(images["kernel"].symbols) == 20_000 + len(kernel_rows())
    assert len(images["module7"].symbols) == 20
    assert len(images["kernel"].symbol("init_once")) == 207
    addresses = list(images["kernel"].symbols.addresses)
    assert addresses == sorted(addresses)
    assert read_table(b"".join(sorted(data.splitlines(keepends=True)))) == images


def test_addresses_hidden_from_the_reader() -> None:
    hidden = "".join(f"0000000000000000 {letter} {name}\n" for name, (_, letter) in kernel_rows().items())
    hidden += "0000000000000000 t ext4_mount\t[ext4]\n"
    assert refusal(hidden.encode()) == (
        "every address in this table is zero: the kernel hides them from whoever read it",
        "read /proc/kallsyms as root, or lower kernel.kptr_restrict",
    )


def test_a_table_without_its_start() -> None:
    assert refusal(table(kernel_rows(without=["_text", "_stext"]))) == (
        "this table has neither `_text` nor `_stext`: it isn't a Linux kernel's, or it has lost its start",
        "use System.map from the kernel build, or the whole of /proc/kallsyms",
    )


def test_stext_stands_in_for_text() -> None:
    assert read_table(table(kernel_rows(without=["_text"])))["kernel"].base == BASE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            table(kernel_rows(without=["entry_SYSCALL_64"]), base=0xFFFF_8000_1000_0000),
            "this table isn't an x86-64 kernel's: its base is 0xffff800010000000 and it has no `entry_SYSCALL_64`",
        ),
        (
            table(kernel_rows(), base=0x10_0000),
            "this table isn't an x86-64 kernel's: its base is 0x100000 and it has `entry_SYSCALL_64`",
        ),
        (
            b"c1000000 T _text\nc1000000 T _stext\n",
            "line 1 has an address of 32 bits: this table isn't an x86-64 kernel's",
        ),
    ],
)
def test_another_architecture(data: bytes, message: str) -> None:
    assert refusal(data) == (message, "policyc guards 64-bit x86 guests only")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("no table", "no table"),
        ("", ""),
        ("ffffffff81000000  T two_blanks", "ffffffff81000000  T two_blanks"),
        ("ffffffff81000000 T", "ffffffff81000000 T"),
        ("ffffffff81000000 TT name", "ffffffff81000000 TT name"),
        ("ffffffff81000000 T name [module] more", "ffffffff81000000 T name [module] more"),
        ("xffffffff81000000 T name", "xffffffff81000000 T name"),
        ("fffffffff81000000 T name", "fffffffff81000000 T name"),
        ("ffffffff81000000 T na\x1b[31mme", "ffffffff81000000 T na\\x1b[31mme"),
        ("ffffffff81000000 T na\rme", "ffffffff81000000 T na\\rme"),
        ("ffffffff81000000 T n\x00", "ffffffff81000000 T n\\x00"),
        ("ffffffff81000000 T " + "x" * 600 + " y", "ffffffff81000000 T " + "x" * 38 + "..."),
    ],
)
def test_a_malformed_line_is_named_and_shown_safely(line: str, shown: str) -> None:
    rows = table(kernel_rows())
    number = rows.count(b"\n") + 1
    assert refusal(rows + line.encode() + b"\n" + rows) == (
        f"line {number} isn't an address, a letter and a name: `{shown}`",
        "use System.map from the kernel build, or the whole of /proc/kallsyms",
    )


def test_a_name_beyond_the_limit() -> None:
    fits = f"ffffffff81001000 t {'n' * MAX_NAME}\n"
    assert read_table(table(kernel_rows(), extra=fits))["kernel"].symbol("n" * MAX_NAME)
    assert refusal(table(kernel_rows(), extra=fits.replace("nn", "nnn", 1))) == (
        "this table has a name of 512 bytes, more than the limit of 511",
        None,
    )


def test_limits_are_checked_before_the_table_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(kernel_rows(), extra="".join(f"ffffffffc000000{n} t f\t[m{n}]\n" for n in range(9)))
    monkeypatch.setattr(kallsyms, "MAX_IMAGES", 9)
    assert refusal(data) == ("this table lists 9 modules, more than the limit of 8", None)
    monkeypatch.setattr(kallsyms, "MAX_SYMBOLS", 50)
    assert refusal(data) == (f"this table has {data.count(bytes([10]))} lines, more than the limit of 50 symbols", None)
    monkeypatch.setattr(kallsyms, "MAX_TABLE_BYTES", 1 << 10)
    assert refusal(data) == ("this table is larger than the limit of 0 MiB", None)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"ffffffff81000000 T _text\n", True),
        (b"c1000000 T _text\n", True),
        (b"0000000000000000 A fixed_percpu_data\n", True),
        (b"\x7fELF", False),
        (b"", False),
        (b"ffffffff81000000\n", False),
        (b"{}", False),
    ],
)
def test_what_looks_like_a_table(head: bytes, expected: bool) -> None:
    assert looks_like_table(head) is expected
