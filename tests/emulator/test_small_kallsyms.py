"""The small guest carries its symbols in its own memory, as a Linux kernel does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.emulator.image import small_image, small_system_map
from policyc.emulator.small.kallsyms import compress
from policyc.emulator.small_machine import SmallMachine
from tests.support.kallsyms_memory import read_kallsyms


@pytest.mark.parametrize("slide", [0, 0x1240_0000])
def test_symbols_in_a_running_guest_are_those_of_the_map(slide: int) -> None:
    machine = SmallMachine.boot(slide=slide)
    text = machine.symbol("_text")
    image = machine.memory.read(machine.gpa(text), len(small_image().content))
    lines = (line.split() for line in small_system_map().splitlines())
    # As in Linux, the tables leave out what they are called themselves.
    wanted = [(int(at, 16) + slide, kind, name) for at, kind, name in lines if not name.startswith("kallsyms_")]
    assert len(wanted) > 150
    assert read_kallsyms(image, text) == wanted


def test_tables_are_where_the_map_says() -> None:
    names = [line.split()[2] for line in small_system_map().splitlines()]
    order = ["offsets", "relative_base", "num_syms", "names", "markers", "token_table", "token_index"]
    assert [name for name in names if name.startswith("kallsyms_")] == [f"kallsyms_{name}" for name in order]
    section = range(small_image().symbols["__start_rodata"], small_image().symbols["__end_rodata"])
    assert all(small_image().symbols[f"kallsyms_{name}"] in section for name in order)


@given(st.lists(st.binary(max_size=24).filter(lambda name: 0 not in name), max_size=40))
def test_compressed_names_expand_to_themselves(names: list[bytes]) -> None:
    coded, texts = compress(names)
    assert len(texts) == 256
    assert [b"".join(texts[token] for token in name) for name in coded] == names
    assert all(len(short) <= len(name) for short, name in zip(coded, names, strict=True))
    assert all(texts[digit] == bytes([digit]) for digit in b"0123456789")
