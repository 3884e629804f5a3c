"""RAM with rights: bounds, and who is told of what."""

from __future__ import annotations

import pytest

from policyc.addresses import Gpa
from policyc.emulator.memory import ALL_RIGHTS, RAM_LIMIT, Memory, NoMemoryError

SIZE = 2 << 20


class Observer:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def rights_changed(self) -> None:
        self.heard.append("rights")

    def content_changed(self, frames: range) -> None:
        self.heard.append(frames)

    def code_found(self, gfn: int) -> None:
        self.heard.append(f"code in {gfn}")


@pytest.mark.parametrize("size", [0, -1, 4096, SIZE + 1, RAM_LIMIT + SIZE])
def test_sizes_that_no_guest_has(size: int) -> None:
    with pytest.raises(ValueError, match="guest memory must be"):
        Memory(size)


@pytest.mark.parametrize(("gpa", "size"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (0, SIZE + 1), (1 << 52, 8)])
def test_nothing_outside_is_read_or_written(gpa: int, size: int) -> None:
    memory = Memory(SIZE)
    with pytest.raises(NoMemoryError):
        memory.read(Gpa(gpa), size)
    with pytest.raises(NoMemoryError):
        memory.write(Gpa(gpa), bytes(size))


def test_what_was_written_is_read() -> None:
    memory = Memory(SIZE)
    memory.write(Gpa(SIZE - 4), b"\1\2\3\4")
    assert memory.read(Gpa(SIZE - 5), 5) == b"\0\1\2\3\4"
    assert memory.quadwords[SIZE // 8 - 1] == 0x04030201 << 32


def test_observers_hear_of_writes_and_rights() -> None:
    memory = Memory(SIZE)
    one, other = Observer(), Observer()
    memory.observe(one)
    memory.observe(other)
    memory.write(Gpa(0x1FFF), b"\1\2")
    memory.restrict([(3, 1), (4, 5)])
    memory.announce(range(7, 8), origin=one)
    memory.mark_code(9, origin=one)
    memory.mark_code(9, origin=other)
    assert one.heard == [range(1, 3), "rights"]
    assert other.heard == [range(1, 3), "rights", range(7, 8), "code in 9"]


def test_rights_are_set_and_lifted() -> None:
    memory = Memory(SIZE)
    memory.restrict([(3, 1), (4, 5), (5, 0)])
    memory.restrict([(4, ALL_RIGHTS)])
    assert memory.restrictions() == {3: 1, 5: 0}
    memory.lift_all()
    assert memory.restrictions() == {}
