"""The guest's first file system: an archive that another program reads, made the same way each time."""

from __future__ import annotations

import stat

from policyc.emulator.linux.initrd import Entry, archive, guest_files


def test_archive__is_a_newc_cpio() -> None:
    made = archive([Entry("a", stat.S_IFREG | 0o644, b"xyz"), Entry("d", stat.S_IFCHR | 0o600, device=(5, 1))])
    none = "00000000"
    # Number, mode, owner, group, links, time, size, device (2), device file (2), length of the name, checksum.
    first = ["070701", "00000001", "000081A4", none, none, "00000001", none, "00000003", *[none] * 4, "00000002", none]
    second = ["070701", "00000002", "00002180", none, none, "00000001", *[none] * 4, "00000005", "00000001", "00000002"]
    last = ["070701", *[none] * 4, "00000001", *[none] * 6, "0000000B", none]
    assert made == b"".join(
        (
            "".join(first).encode() + b"a\0xyz\0",
            "".join(second).encode() + none.encode() + b"d\0",
            "".join(last).encode() + b"TRAILER!!!\0\0\0\0",
        )
    )


def test_archive__has_every_file_at_a_multiple_of_four() -> None:
    made = archive(guest_files(b"busybox"))
    at, names = 0, []
    while True:
        assert made[at : at + 6] == b"070701"
        fields = [int(made[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        names.append(made[at + 110 : at + 110 + fields[11] - 1].decode())
        at = (at + 110 + fields[11] + 3) // 4 * 4
        at = (at + fields[6] + 3) // 4 * 4
        if names[-1] == "TRAILER!!!":
            break
    assert at == len(made)
    assert names == [*(entry.name for entry in guest_files(b"")), "TRAILER!!!"]
