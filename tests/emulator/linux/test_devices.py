"""The devices of a Linux machine: what the guest reads, and which interrupts it gets."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from policyc.emulator.linux.devices import Devices
from policyc.emulator.linux.state import DeviceState

PINS = tuple(0x25 if pin == 4 else 0x1_0000 for pin in range(24))
ONE_SHOT = {0xF0: 0x1FF, 0x320: 0xEC, 0x380: 0, 0x3E0: 3}  # divided by 16


@dataclass
class Board:
    """Devices, a clock that is set by hand, and the interrupts that came."""

    now: int = 1000
    raised: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.devices = Devices(DeviceState(ONE_SHOT, PINS, (5, 0x13, 0xB)), lambda: self.now, self.raised.append)


@pytest.fixture
def board() -> Board:
    return Board()


def test_timer__fires_once(board: Board) -> None:
    lapic = board.devices.lapic
    lapic.write(0x380, 4, 100)
    assert (lapic.deadline, lapic.read(0x390, 4)) == (2600, 100)
    board.now = 1800
    assert lapic.read(0x390, 4) == 50
    lapic.expire(2599)
    assert board.raised == []
    lapic.expire(2600)
    lapic.expire(5000)
    assert (board.raised, lapic.deadline, lapic.read(0x390, 4)) == ([0xEC], None, 0)


def test_timer__fires_again_and_again_where_it_is_periodic(board: Board) -> None:
    lapic = board.devices.lapic
    lapic.write(0x320, 4, 0x2_00EC)
    lapic.write(0x380, 4, 100)
    lapic.expire(2600)
    assert lapic.deadline == 4200
    lapic.expire(4200)
    assert board.raised == [0xEC, 0xEC]


def test_timer__is_silent_where_it_is_masked_or_set_to_nothing(board: Board) -> None:
    lapic = board.devices.lapic
    lapic.write(0x320, 4, 0x1_00EC)
    lapic.write(0x380, 4, 1)
    lapic.expire(10_000)
    lapic.write(0x320, 4, 0xEC)
    lapic.write(0x380, 4, 0)
    lapic.expire(20_000)
    assert (board.raised, lapic.deadline) == ([], None)


@pytest.mark.parametrize(
    ("command", "raised"),
    [(0x4_00F6, [0xF6]), (0x8_00F6, [0xF6]), (0xF6, [0xF6]), (0xC_00F6, []), (0xC_4610, [])],
    ids=["self", "all", "by number", "others", "the start of others"],
)
def test_interrupt_command__reaches_the_one_processor(board: Board, command: int, raised: list[int]) -> None:
    board.devices.lapic.write(0x300, 4, command)
    assert board.raised == raised


def test_ioapic__is_read_and_written_through_its_window(board: Board) -> None:
    ioapic = board.devices.ioapic
    ioapic.write(0, 4, 1)
    assert ioapic.read(0x10, 4) == 0x17_0020
    ioapic.write(0, 4, 0x18)
    assert ioapic.read(0x10, 4) == 0x25
    ioapic.write(0x10, 4, 0x1_0026)
    assert ioapic.read(0x10, 4) == 0x1_0026
    ioapic.edge(4)
    assert board.raised == []
    ioapic.write(0x10, 4, 0x26)
    ioapic.edge(4)
    assert board.raised == [0x26]
    ioapic.write(0, 4, 0xFF)
    ioapic.write(0x10, 4, 1)
    assert ioapic.read(0x10, 4) == 0


def test_uart__takes_characters_and_says_when_it_has_room(board: Board) -> None:
    bus = board.devices
    for byte in b"hi":
        bus.write_port(0x3F8, 1, byte)
    assert (bus.uart.output, board.raised) == (b"hi", [])
    bus.write_port(0x3F9, 1, 7)
    assert board.raised == [0x25]
    assert [bus.read_port(0x3FA, 1) for _ in range(2)] == [0xC2, 0xC1]
    bus.write_port(0x3F8, 1, ord("!"))
    assert (bus.uart.output, board.raised) == (b"hi!", [0x25, 0x25])


def test_uart__gives_what_is_typed(board: Board) -> None:
    bus = board.devices
    bus.uart.type(b"ok")
    assert board.raised == [0x25]
    assert (bus.read_port(0x3FA, 1), bus.read_port(0x3FD, 1)) == (0xC4, 0x61)
    assert [bus.read_port(0x3F8, 1) for _ in range(3)] == [ord("o"), ord("k"), 0]
    assert (bus.read_port(0x3FA, 1), bus.read_port(0x3FD, 1), bus.read_port(0x3FE, 1)) == (0xC1, 0x60, 0xB0)


def test_uart__has_a_divisor_behind_its_latch(board: Board) -> None:
    bus = board.devices
    bus.write_port(0x3FB, 1, 0x93)
    bus.write_port(0x3F8, 1, 0x0C)
    bus.write_port(0x3F9, 1, 0x01)
    assert (bus.read_port(0x3F8, 1), bus.read_port(0x3F9, 1), bus.uart.output) == (0x0C, 0x01, b"")
    bus.write_port(0x3FB, 1, 0x13)
    assert (bus.read_port(0x3F8, 1), bus.read_port(0x3F9, 1)) == (0, 5)


def test_pm_timer__counts_the_guests_time(board: Board) -> None:
    board.now = 1_000_000_000
    assert board.devices.read_port(0x608, 4) == 3_579_545
    board.now = 5_000_000_000
    assert board.devices.read_port(0x608, 4) == 5 * 3_579_545 & 0xFF_FFFF


def test_other_ports__have_nobody_behind_them(board: Board) -> None:
    board.devices.write_port(0x70, 1, 0)
    assert [board.devices.read_port(0x71, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFF_FFFF]
