"""The three forms of QEMU's hello, the tool's answer, and what is none of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.addresses import Gpa
from policyc.kvmi import E820Entry, Hello, HelloForm, LocalProtocolError, RemoteProtocolError, cookie_hash
from policyc.kvmi.handshake import MAX_HELLO, decode_answer, decode_hello, encode_answer, encode_hello
from tests.support.kvmi_vectors import computed

UUID = bytes.fromhex("00112233445566778899aabbccddeeff")
MAP = (E820Entry(0, 0x9FC00, 1),)

FORMS = {
    "H1": Hello(UUID, "vm1", 1_600_000_000),
    "H2": Hello(UUID, "vm1", 1_600_000_000, Gpa(0x1_4000_0000), form=HelloForm.V12),
    "H3": Hello(UUID, "vm1", 1_600_000_000, Gpa(0x9FC00), MAP, 1, HelloForm.E820),
}
VECTORS = {v.label.split(" ")[0]: v.data for v in computed() if v.generation.startswith("qemu")}


@pytest.mark.parametrize("name", FORMS)
def test_each_form(name: str) -> None:
    assert encode_hello(FORMS[name]).hex() == VECTORS[name].hex()
    assert decode_hello(VECTORS[name]) == FORMS[name]


def test_the_answer() -> None:
    assert (encode_answer(None), encode_answer(b"secret")) == (VECTORS["H4"], VECTORS["H5"])
    assert (decode_answer(VECTORS["H4"]), decode_answer(VECTORS["H5"])) == (bytes(20), cookie_hash(b"secret"))
    assert cookie_hash(b"") != cookie_hash(None)


@pytest.mark.parametrize("size", [24, 95, 97, 103, 105, 127, 129, 320])
def test_no_form_has_this_size(size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_hello(size.to_bytes(4, "little") + bytes(size - 4))


@pytest.mark.parametrize(("count", "size"), [(1, 104), (0, 128), (2, 128), (9, 104 + 9 * 24), (255, 104 + 255 * 24)])
def test_the_memory_map_must_fit_the_size(count: int, size: int) -> None:
    hello = bytearray(size)
    hello[20] = 1
    hello[96] = count
    with pytest.raises(RemoteProtocolError, match=f"a hello with {count} memory ranges, at most 8"):
        decode_hello(bytes(hello))


def test_the_cpu_type_tells_an_empty_map_from_v12() -> None:
    hello = bytearray(encode_hello(FORMS["H2"]))
    assert decode_hello(bytes(hello)).form is HelloForm.V12
    hello[20], hello[96:104] = 1, bytes(8)
    assert decode_hello(bytes(hello)) == Hello(UUID, "vm1", 1_600_000_000, cpu_type=1, form=HelloForm.E820)


def test_memory_ends_where_ram_ends() -> None:
    ranges = (E820Entry(0, 0x1000, 1), E820Entry(0x1_0000_0000, 0x4000_0000, 1), E820Entry(1 << 40, 4096, 2))
    assert decode_hello(encode_hello(Hello(UUID, e820=ranges, form=HelloForm.E820))).max_gpa == 0x1_4000_0000
    assert decode_hello(encode_hello(Hello(UUID, e820=ranges[2:], form=HelloForm.E820))).max_gpa is None


@pytest.mark.parametrize(
    "hello",
    [
        Hello(bytes(15)),
        Hello(UUID, "n" * 64),
        Hello(UUID, "ü" * 32),
        Hello(UUID, e820=MAP),
        Hello(UUID, e820=MAP, form=HelloForm.V12),
        Hello(UUID, e820=MAP * 9, form=HelloForm.E820),
    ],
    ids=["short uuid", "long name", "long name in bytes", "map in v7", "map in v12", "nine ranges"],
)
def test_a_hello_that_no_form_holds(hello: Hello) -> None:
    with pytest.raises(LocalProtocolError):
        encode_hello(hello)


def test_a_name_is_text_whatever_the_bytes() -> None:
    hello = bytearray(encode_hello(Hello(UUID)))
    hello[32:96] = b"\xff\x1b[2J\xc3\xbc" + b"x" * 57
    assert decode_hello(bytes(hello)).name == "\\xff\x1b[2Jü" + "x" * 57


@given(st.binary(max_size=MAX_HELLO + 8))
def test_any_bytes_are_a_hello_or_an_error(data: bytes) -> None:
    try:
        hello = decode_hello(data)
    except RemoteProtocolError:
        return
    assert decode_hello(encode_hello(hello)) == hello
