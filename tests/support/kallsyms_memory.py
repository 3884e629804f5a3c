"""The symbols that a Linux 6.1 kernel carries in its own memory, read back: our own reading of kernel/kallsyms.c.

Nothing is known beforehand but the bytes of the image and where they lie. The token table is found by its digits, which
every kernel's symbols use; the other tables lie before it in a known order.
"""

from __future__ import annotations

import struct

__all__ = ["read_kallsyms"]

DIGITS = b"".join(bytes([digit, 0]) for digit in b"0123456789")
TOKENS = 256


def read_kallsyms(image: bytes, base: int) -> list[tuple[int, str, str]]:
    """Address, type letter and name of every symbol, in the order of the tables.

    Args:
        image: from the kernel's first byte on.
        base: its address.
    """
    table = token_table(image)
    tokens = image[table:].split(b"\0", TOKENS)[:TOKENS]
    index = struct.unpack_from(f"<{TOKENS}H", image, aligned(table + sum(len(token) + 1 for token in tokens)))
    assert list(index) == [sum(len(token) + 1 for token in tokens[:number]) for number in range(TOKENS)]

    # Names precede the markers, which precede the tokens; their number stands before them, and before that the base.
    for count_at in range(table - 8, 0, -8):
        (count,) = struct.unpack_from("<Q", image, count_at)
        if 0 < count < 1 << 20 and (names := walk_names(image, count_at + 8, count, tokens, table)):
            break
    else:
        raise AssertionError("no names before the tokens")
    (relative_base,) = struct.unpack_from("<Q", image, count_at - 8)
    assert relative_base == base
    offsets = struct.unpack_from(f"<{count}i", image, count_at - 8 - aligned(4 * count))
    # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: what isn't negative is an address itself.
    addresses = [offset if offset >= 0 else relative_base - 1 - offset for offset in offsets]
    return [(address, name[:1], name[1:]) for address, name in zip(addresses, names, strict=True)]


def token_table(image: bytes) -> int:
    """Where the token table begins: as many tokens before the one of the digit 0 as its number says."""
    start = image.index(DIGITS)
    assert image.count(DIGITS) == 1
    for _ in range(ord("0")):
        start = image.rindex(b"\0", 0, start - 1) + 1
    return start


def walk_names(image: bytes, at: int, count: int, tokens: list[bytes], end: int) -> list[str]:
    """`count` names from `at` on, if the markers and then the tokens follow them; else nothing."""
    start, names, markers = at, [], []
    for number in range(count):
        if number % 256 == 0:
            markers.append(at - start)
        size = image[at]
        if not size or size > 127 or at + 1 + size > end:
            return []
        names.append(b"".join(tokens[token] for token in image[at + 1 : at + 1 + size]).decode("ascii"))
        at += 1 + size
    at = aligned(at)
    if image[at : at + 4 * len(markers)] != struct.pack(f"<{len(markers)}I", *markers):
        return []
    return names if aligned(at + 4 * len(markers)) == end else []


def aligned(at: int) -> int:
    """The tables lie at multiples of eight."""
    return (at + 7) & ~7
