from __future__ import annotations

import pytest

from policyc.addresses import Gva, GvaRange, Range
from policyc.guest.linux_image import SECTIONS, kernel_image
from tests.support.guest_tables import BASE, kernel_rows


def rows(**changed: int) -> list[tuple[int, str, str]]:
    """The small kernel's rows, with some symbols at other offsets."""
    return [(BASE + changed.get(name, offset), name, letter) for name, (offset, letter) in kernel_rows().items()]


def at(start: int, end: int) -> GvaRange:
    return Range(Gva(BASE + start), Gva(BASE + end))


def test_text_starts_where_the_linker_says_it_does() -> None:
    image = kernel_image(rows(_text=0, _stext=0x1000))
    assert image.base == BASE
    assert image.section(".text") == at(0x1000, 0x20_0000)
    assert kernel_image([row for row in rows() if row[1] != "_stext"]).section(".text") == at(0, 0x20_0000)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_a_section_needs_both_bounds_in_order(section: object) -> None:
    assert section in SECTIONS
    (bounds,) = (row for row in SECTIONS if row == section)
    start = next(iter(bounds.starts))
    whole = kernel_image(rows())
    assert bounds.name in whole.sections
    without_end = kernel_image([row for row in rows() if row[1] != bounds.end])
    assert without_end.absent_sections == {bounds.name: f"the table lacks `{bounds.end}`"}
    backwards = kernel_image([row if row[1] != bounds.end else (BASE, row[1], row[2]) for row in rows()])
    assert backwards.absent_sections == {bounds.name: f"`{bounds.end}` doesn't lie above `{start}`"}
    assert set(whole.sections) - set(backwards.sections) == {bounds.name}
