"""What a policy file must be before its words are read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from policyc.diagnostics import Diagnostic, Source
from policyc.lang.limits import MAX_FILE_BYTES, MAX_LINE_LENGTH
from policyc.lang.read import check_text, decode_source, read_source
from tests.support.lang_nodes import parsed

if TYPE_CHECKING:
    from pathlib import Path

NO_INPUT = io.BytesIO(b"")


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"on cr0 log\n# \xff\n", "P120", "`p` isn't UTF-8: byte 0xff on line 2"),
        ("on cr0 log".encode("utf-16-le"), "P121", "`p` holds a NUL character at byte 1"),
        (b"\x7fELF\x02\0", "P121", "`p` holds a NUL character at byte 5"),
        (b"#" * (MAX_FILE_BYTES + 1), "P122", f"`p` is larger than {MAX_FILE_BYTES} bytes"),
    ],
)
def test_decode_source__refuses(data: bytes, code: str, message: str) -> None:
    refused = decode_source("p", data)
    assert isinstance(refused, Diagnostic)
    assert (refused.code, refused.message) == (code, message)


def test_decode_source__the_largest_file() -> None:
    assert isinstance(decode_source("p", b"#" * MAX_FILE_BYTES), Source)


def test_decode_source__leaves_one_byte_order_mark_out() -> None:
    source = decode_source("p", b"\xef\xbb\xbfon cr0 log\r\n")
    assert isinstance(source, Source)
    assert source.text == "on cr0 log\r\n"
    assert len(parsed(source.text).statements) == 1


def test_read_source__from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "a.policy"
    path.write_bytes("on cr0 log # é".encode())
    source = read_source(path, NO_INPUT)
    assert isinstance(source, Source)
    assert (source.name, source.text) == (str(path), "on cr0 log # é")
    source = read_source(None, io.BytesIO(b"on cr0 log"))
    assert isinstance(source, Source)
    assert (source.name, source.text) == ("<stdin>", "on cr0 log")


def test_read_source__a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "no such file or directory"), (tmp_path, "is a directory")):
        refused = read_source(path, NO_INPUT)
        assert refused == Diagnostic("P100", f"`{path}` can't be read: {reason}")
    refused = read_source(tmp_path / "a\0b", NO_INPUT)
    assert isinstance(refused, Diagnostic)
    assert refused.code == "P100"


def test_check_text__lines_that_are_too_long() -> None:
    longest = "#" * MAX_LINE_LENGTH
    assert check_text(Source("p", f"{longest}\n{longest}\n")) == []
    (diagnostic,) = check_text(Source("p", f"{longest}\n{longest}#\n"))
    assert diagnostic.code == "P123"
    assert str(diagnostic.span) == "p:2:1"
