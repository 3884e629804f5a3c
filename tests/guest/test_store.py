from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from policyc.addresses import Gva, Range
from policyc.guest import store
from policyc.guest.errors import ProfileError
from policyc.guest.profile import Identity, Image, Profile, ProfileSource
from policyc.guest.readers import build_profile
from policyc.guest.store import decode, encode, load, save, seal
from policyc.guest.symbols import SymbolTable
from tests.support.guest_tables import BANNER, BASE, kernel_rows, large_table, table

MODULE = "ffffffffc0402000 t ext4_fill_super\t[ext4]\n0000000000000040 A fixed_percpu_data\n"
SOURCE = ProfileSource("test", "sha256:" + "ab" * 32)

Document = dict[str, Any]
"""A profile file as JSON; its shape is what these tests break."""


def small_profile() -> Profile:
    return build_profile(table(kernel_rows(), extra=MODULE), banner=BANNER)


def sealed(document: Document) -> bytes:
    """The file that holds `document`, with the digest that belongs to it: what an author of profiles could write."""
    plain = json.dumps(document | {"digest": "sha256:" + "0" * 64}, sort_keys=True).encode()
    return plain.replace(b"sha256:" + b"0" * 64, b"sha256:" + hashlib.sha256(plain).hexdigest().encode(), 1)


def document_of(profile: Profile) -> Document:
    return cast("Document", json.loads(encode(profile)))


def refusal(data: bytes) -> str:
    with pytest.raises(ProfileError) as caught:
        decode(data)
    return caught.value.message


def test_a_file_byte_for_byte() -> None:
    symbols = SymbolTable(array("Q", [0x10, 0x10, 0x18]), "a b c", "TtD", array("Q", [0, 8, 2]), Gva(0x20))
    kernel = Image(
        "kernel", Gva(0x10), {".text": Range(Gva(0x10), Gva(0x18))}, {".bss": "no"}, symbols, frozenset("zy")
    )
    profile = seal(SOURCE, Identity("ab" * 20, "Linux version 6.1"), {"kernel": kernel})
    expected = (
        '{"arch":"x86_64","digest":"sha256:cc51c9c5f62b5c3b3c7ccf2b2d2c9d5e2d6ec1b6e0c9c1d4d8b5a1a9b0b1b2b3",'
        '"format":"policyc-profile","identity":{"banner":"Linux version 6.1","build_id":"' + "ab" * 20 + '"},'
        '"images":[{"absent_sections":{".bss":"no"},"base":"0x10","name":"kernel","offset_names":"y z",'
        '"sections":{".text":["0x10","0x18"]},"symbols":{"end":"0x20","first":"0x10","gaps":[0,0,8],"letters":"TtD",'
        '"names":"a b c","sizes":[0,8,2]}}],"os":"linux",'
        '"source":{"digest":"sha256:' + "ab" * 32 + '","kind":"test"},"version":1}\n'
    )
    head, tail = expected.split("cc51c9c5f62b5c3b3c7ccf2b2d2c9d5e2d6ec1b6e0c9c1d4d8b5a1a9b0b1b2b3")
    digest = hashlib.sha256((head + "0" * 64 + tail).encode()).hexdigest()
    assert encode(profile).decode() == head + digest + tail
    assert profile.digest == "sha256:" + digest


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    profile = small_profile()
    path = tmp_path / "kernel.profile"
    save(profile, path)
    loaded = load(path)
    assert loaded == profile
    assert encode(loaded) == path.read_bytes() == encode(profile)
    assert loaded.kernel.symbol("sys_call_table") == profile.kernel.symbol("sys_call_table")
    assert [entry.name for entry in tmp_path.iterdir()] == ["kernel.profile"]


def test_the_same_symbols_in_another_order_differ_by_their_source_alone() -> None:
    rows = table(kernel_rows(), extra=MODULE).splitlines(keepends=True)
    documents = [document_of(build_profile(b"".join(order))) for order in (rows, rows[::-1])]
    assert documents[0].pop("source") != documents[1].pop("source")
    assert documents[0].pop("digest") != documents[1].pop("digest")
    assert documents[0] == documents[1]


def test_saving_replaces_the_file_and_leaves_nothing_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "kernel.profile"
    path.write_text("old")
    save(small_profile(), path)
    assert load(path) == small_profile()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save(small_profile(), tmp_path / "folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "kernel.profile"]


def test_a_large_profile_comes_back_whole() -> None:
    profile = build_profile(large_table(50_000, 40))
    assert decode(encode(profile)) == profile


def test_every_truncation_is_refused() -> None:
    data = encode(small_profile())
    for length in range(0, len(data) - 1, 37):
        assert "isn't whole JSON" in refusal(data[:length])


def test_every_flipped_byte_is_refused() -> None:
    data = encode(small_profile())
    for position in range(0, len(data) - 1, 41):
        assert refusal(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\xff\xfe", b"{", b"null x", b"[" * 100_000, b'{"a":1,"a":1}', b'{"format":' + b"9" * 5000 + b"}"],
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    assert refusal(data) == "this file isn't a profile, or only a part of one: it isn't whole JSON"


@pytest.mark.parametrize("data", [b"null", b"[]", b"1", b'""', b"{}", b'{"format":"other"}', b'{"format":["x"]}'])
def test_foreign_json_is_refused(data: bytes) -> None:
    assert refusal(data) == "this file isn't a profile of a kernel"


def test_a_newer_version_says_so() -> None:
    with pytest.raises(ProfileError) as caught:
        decode(b'{"format":"policyc-profile","version":2,"what":"ever"}')
    assert caught.value.message == "this profile has format version 2; this policyc reads version 1"
    assert caught.value.help == "use a newer policyc, or make the profile again with this one"


def test_an_edited_file_is_refused() -> None:
    data = encode(small_profile()).replace(b"sys_call_table", b"sys_call_tabel")
    assert refusal(data) == "this profile was changed after it was written: its digest doesn't fit its content"
    unsealed = json.dumps(document_of(small_profile()) | {"digest": 5}).encode()
    assert refusal(unsealed) == "this profile was changed after it was written: its digest doesn't fit its content"


def kernel_in(document: Document) -> Document:
    return cast("Document", document["images"][0])


def symbols_in(document: Document) -> Document:
    return cast("Document", kernel_in(document)["symbols"])


BROKEN: list[tuple[str, Callable[[Document], object], str]] = [
    ("no os", lambda d: d.pop("os"), "breaks its format at $: 'os' is a required property"),
    ("os", lambda d: d.update(os="plan9"), "breaks its format at $.os: 'linux' was expected"),
    ("arch", lambda d: d.update(arch="arm64"), "breaks its format at $.arch: 'x86_64' was expected"),
    ("version", lambda d: d.update(version=0), "breaks its format at $.version: 1 was expected"),
    ("more", lambda d: d.update(more=1), "breaks its format at $: Additional properties are not allowed"),
    ("images", lambda d: d.update(images=5), "breaks its format at $.images: 5 is not of type 'array'"),
    ("no image", lambda d: d.update(images=[]), "breaks its format at $.images: [] should be non-empty"),
    ("image", lambda d: d.update(images=[7]), "breaks its format at $.images[0]: 7 is not of type 'object'"),
    ("symbols", lambda d: kernel_in(d).update(symbols=[]), "breaks its format at $.images[0].symbols"),
    ("base", lambda d: kernel_in(d).update(base="12"), "breaks its format at $.images[0].base"),
    ("base form", lambda d: kernel_in(d).update(base="0x0012"), "breaks its format at $.images[0].base"),
    ("first", lambda d: symbols_in(d).update(first="0x" + "f" * 17), "breaks its format at $.images[0].symbols.first"),
    ("gaps", lambda d: symbols_in(d).update(gaps="none"), "breaks its format at $.images[0].symbols.gaps"),
    ("names", lambda d: symbols_in(d).update(names=["a"]), "breaks its format at $.images[0].symbols.names"),
    ("banner", lambda d: d["identity"].update(banner="Linux version \x1b"), "breaks its format at $.identity.banner"),
    ("build id", lambda d: d["identity"].update(build_id="XYZ"), "breaks its format at $.identity.build_id"),
    ("line end", lambda d: kernel_in(d).update(name="kernel\n"), "breaks its format at $.images[0].name"),
    ("base line end", lambda d: kernel_in(d).update(base="0x10\n"), "breaks its format at $.images[0].base"),
    ("no base", lambda d: kernel_in(d).update(base=None), "images aren't the kernel and then modules, each once"),
    ("name", lambda d: kernel_in(d).update(name="k"), "images aren't the kernel and then modules, each once"),
    ("twice", lambda d: d["images"].append(d["images"][1]), "images aren't the kernel and then modules, each once"),
    ("order", lambda d: d["images"].reverse(), "images aren't the kernel and then modules, each once"),
    (
        "section",
        lambda d: kernel_in(d)["sections"].update({".text": ["0x2", "0x1"]}),
        "has a section that is not a range: [0x2, 0x1)",
    ),
    ("short column", lambda d: symbols_in(d)["gaps"].pop(), "`kernel` has columns that don't fit together"),
    ("letters", lambda d: symbols_in(d).update(letters="é" * 60), "`kernel` has columns that don't fit together"),
    ("sizes", lambda d: symbols_in(d).update(sizes=[1]), "`kernel` has columns that don't fit together"),
    ("text gap", lambda d: symbols_in(d)["gaps"].append("1"), "`kernel` has a column that isn't all numbers"),
    ("true gap", lambda d: symbols_in(d)["gaps"].append(True), "`kernel` has a column that isn't all numbers"),
    ("half gap", lambda d: symbols_in(d)["gaps"].append(0.5), "`kernel` has a column that isn't all numbers"),
    ("back gap", lambda d: symbols_in(d)["gaps"].append(-1), "`kernel` has a number beyond 64 bits"),
    ("huge gap", lambda d: symbols_in(d)["gaps"].append(1 << 64), "`kernel` has a number beyond 64 bits"),
    ("far gap", lambda d: symbols_in(d)["gaps"].append(1 << 63), "`kernel` has addresses beyond 64 bits"),
    ("blank name", lambda d: symbols_in(d).update(names="a  b"), "`kernel` has an empty or an endless name"),
    ("long name", lambda d: symbols_in(d).update(names="n" * 512), "`kernel` has an empty or an endless name"),
    ("escape", lambda d: symbols_in(d).update(names="a\x1b[2Jb"), "`kernel` has names with unprintable characters"),
    ("newline", lambda d: symbols_in(d).update(names="a\nb"), "`kernel` has names with unprintable characters"),
    ("delete", lambda d: symbols_in(d).update(names="a\x7f"), "`kernel` has names with unprintable characters"),
    ("foreign", lambda d: symbols_in(d).update(names="ä"), "`kernel` has names with unprintable characters"),
    ("surrogate", lambda d: symbols_in(d).update(names="\ud800"), "`kernel` has names with unprintable characters"),
    ("offsets", lambda d: kernel_in(d).update(offset_names="a \x07"), "`kernel` has names with unprintable characters"),
]


@pytest.mark.parametrize(("breaking", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_file_with_the_right_digest_is_checked_all_the_same(
    breaking: Callable[[Document], object], message: str
) -> None:
    document = document_of(small_profile())
    assert decode(sealed(document)).kernel == small_profile().kernel
    breaking(document)
    assert message in refusal(sealed(document))


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = encode(small_profile())
    path = tmp_path / "kernel.profile"
    path.write_bytes(data)
    monkeypatch.setattr(store, "MAX_SYMBOLS", 20)
    assert refusal(data) == "this profile has more than the limit of 20 symbols"
    monkeypatch.setattr(store, "MAX_FILE_BYTES", 1 << 10)
    assert refusal(data) == "this profile is larger than the limit of 0 MiB"
    with pytest.raises(ProfileError, match="larger than the limit"):
        load(path)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        load(tmp_path / "absent")
    assert caught.value.message == "can't read this profile: No such file or directory"


def test_the_schema_holds_for_whole_files_and_its_columns_rules_are_the_readers() -> None:
    schema = json.loads(files("policyc.guest").joinpath("schema/profile-1.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    whole = Draft202012Validator(schema)
    document = document_of(small_profile())
    assert not list(whole.iter_errors(document))
    for column in ([-1], [1 << 64], ["1"], [0.5]):
        symbols_in(document)["gaps"] = column
        assert list(whole.iter_errors(document))


columns = st.lists(
    st.tuples(
        st.integers(0, (1 << 64) - 1),
        st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=9),
        st.sampled_from("tTdDbBrRaAwW?-"),
        st.integers(0, (1 << 64) - 1),
    ),
    max_size=9,
).map(sorted)


@given(columns, st.booleans(), st.one_of(st.none(), st.integers(0, (1 << 64) - 1).map(Gva)))
def test_any_columns_survive(rows: list[tuple[int, str, str, int]], sized: bool, end: Gva | None) -> None:
    symbols = SymbolTable(
        array("Q", (row[0] for row in rows)),
        " ".join(row[1] for row in rows),
        "".join(row[2] for row in rows),
        array("Q", (row[3] for row in rows)) if sized else None,
        end,
    )
    images = {"kernel": Image("kernel", Gva(BASE), {}, {}, symbols), "m": Image("m", None, {}, {}, symbols)}
    profile = seal(SOURCE, Identity(), images)
    assert decode(encode(profile)) == profile
