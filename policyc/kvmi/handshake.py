"""The two structs that QEMU and the tool exchange before KVMI begins.

QEMU introduces the VM, the tool answers with the hash of a shared secret. Three forms of hello are in use; which one
it is says something about the VMM and nothing about the kernel. Source: `include/sysemu/vmi-handshake.h` of
KVM-VMI/qemu, branches kvmi-v7, kvmi-v7-2.11.93 and kvmi-v12.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from hashlib import sha1
from struct import Struct

from policyc.addresses import Gpa
from policyc.kvmi.errors import LocalProtocolError, RemoteProtocolError
from policyc.kvmi.wire import HANDSHAKE

__all__ = [
    "LENGTH_SIZE",
    "MAX_ANSWER",
    "MAX_HELLO",
    "E820Entry",
    "Hello",
    "HelloForm",
    "announced",
    "cookie_hash",
    "decode_answer",
    "decode_hello",
    "encode_answer",
    "encode_hello",
    "length_of",
]

_V7 = HANDSHAKE["hello_v7"]
_V12 = HANDSHAKE["hello_v12"]
_E820 = HANDSHAKE["hello_e820"]
_E820_ENTRY = HANDSHAKE["e820_entry"]
_ANSWER = HANDSHAKE["introspector2qemu"]
_LENGTH = Struct("<I")
_NAME_BYTES = 64
_RAM = 1

LENGTH_SIZE = _LENGTH.size
MAX_E820 = 8
MAX_HELLO = _E820.size + MAX_E820 * _E820_ENTRY.size
MAX_ANSWER = 4096
"""The longest answer a kernel side reads; QEMU itself swallows whatever the tool announces."""


class HelloForm(Enum):
    """Which QEMU wrote the hello."""

    V7 = "96 bytes"
    V12 = "104 bytes, with max_gpa"
    E820 = "with a memory map"


@dataclass(frozen=True, slots=True)
class E820Entry:
    """A range of guest physical memory; type 1 is RAM."""

    address: int
    length: int
    type: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The VM as QEMU introduces it; everything here is the VMM's claim.

    Attributes:
        uuid: 16 bytes.
        name: as given, undecodable bytes escaped; at most 63 bytes.
        start_time: when the VM was started or last reset; seconds in some VMMs, milliseconds in others.
        max_gpa: end of the highest RAM range, or None if the form doesn't tell.
        e820: the memory map, in the one form that has it.
        cpu_type: 0 i386, 1 x86_64, 255 unknown; in the same form. With an empty map it tells the form from v12's.
    """

    uuid: bytes
    name: str = ""
    start_time: int = 0
    max_gpa: Gpa | None = None
    e820: tuple[E820Entry, ...] = ()
    cpu_type: int = 0
    form: HelloForm = HelloForm.V7


_RANGES = {HelloForm.V7: (0, 0), HelloForm.V12: (0, 0), HelloForm.E820: (0, MAX_E820)}
"""How many memory ranges each form holds."""


def announced(data: bytes, offset: int) -> int:
    """The `struct_size` with which either struct begins, whatever it is."""
    size: int = _LENGTH.unpack_from(data, offset)[0]
    return size


def length_of(data: bytes, offset: int, most: int) -> int:
    """The `struct_size` with which either struct begins; its `LENGTH_SIZE` bytes are there.

    Raises:
        RemoteProtocolError: it's more than `most`, or less than the shorter of the two has.
    """
    size = announced(data, offset)
    if not _ANSWER.size <= size <= most:
        raise RemoteProtocolError(f"a handshake of {_ANSWER.size} to {most} bytes", f"{size}")
    return size


def decode_hello(data: bytes) -> Hello:
    """Read a whole hello.

    Raises:
        RemoteProtocolError: the length is none of the three forms', or the memory map doesn't fit it.
    """
    if len(data) == _V7.size:
        _, uuid, start_time, name = _V7.struct.unpack(data)
        return Hello(uuid, _name(name), start_time)
    if len(data) == _V12.size and _V12.padding_is_zero(data):
        _, uuid, start_time, name, max_gpa = _V12.struct.unpack(data)
        return Hello(uuid, _name(name), start_time, max_gpa, form=HelloForm.V12)
    if len(data) < _E820.size:
        raise RemoteProtocolError("a hello of 96, 104 or 104 + 24 n bytes", f"{len(data)}")
    _, uuid, cpu_type, start_time, name, count = _E820.struct.unpack_from(data)
    if len(data) != _E820.size + count * _E820_ENTRY.size or count > MAX_E820:
        raise RemoteProtocolError(f"a hello with {count} memory ranges, at most {MAX_E820}", f"{len(data)} bytes")
    entries = tuple(E820Entry(*row) for row in _E820_ENTRY.struct.iter_unpack(data[_E820.size :]))
    ends = [entry.address + entry.length for entry in entries if entry.type == _RAM]
    end = Gpa(max(ends)) if ends else None
    return Hello(uuid, _name(name), start_time, end, entries, cpu_type, HelloForm.E820)


def encode_hello(hello: Hello) -> bytes:
    """The hello in its form.

    Raises:
        LocalProtocolError: the UUID isn't 16 bytes, the name is longer than 63, or the form can't hold the ranges.
    """
    name = hello.name.encode()
    ranges = len(hello.e820)
    least, most = _RANGES[hello.form]
    if len(hello.uuid) != 16 or len(name) >= _NAME_BYTES or not least <= ranges <= most:
        raise LocalProtocolError("a uuid of 16 bytes, a name of at most 63, and at most 8 ranges of a map", repr(hello))
    if hello.form is HelloForm.V7:
        head = _V7.struct.pack(_V7.size, hello.uuid, hello.start_time, name)
    elif hello.form is HelloForm.V12:
        head = _V12.struct.pack(_V12.size, hello.uuid, hello.start_time, name, hello.max_gpa or 0)
    else:
        size = _E820.size + ranges * _E820_ENTRY.size
        head = _E820.struct.pack(size, hello.uuid, hello.cpu_type, hello.start_time, name, ranges)
    entries = b"".join(_E820_ENTRY.struct.pack(entry.address, entry.length, entry.type) for entry in hello.e820)
    return head + entries


def cookie_hash(secret: bytes | None) -> bytes:
    """What the tool sends to prove that it knows the secret: SHA-1 of it, or zeros if there is none."""
    return sha1(secret, usedforsecurity=False).digest() if secret is not None else bytes(20)


def encode_answer(secret: bytes | None) -> bytes:
    """The tool's answer."""
    return _ANSWER.struct.pack(_ANSWER.size, cookie_hash(secret))


def decode_answer(data: bytes) -> bytes:
    """The hash in the tool's answer; bytes after the first 24 are ignored, as QEMU does."""
    digest: bytes = _ANSWER.struct.unpack_from(data)[1]
    return digest


def _name(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="backslashreplace")
