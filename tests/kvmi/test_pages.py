"""SET_PAGE_ACCESS in bulk, against a loop that packs one page after the other."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.addresses import Gfn, Gpa
from policyc.kvmi import LocalProtocolError, PageAccess, PageRun, SetPageAccess, page_entries, set_page, set_pages
from policyc.kvmi.pages import MAX_ENTRIES, check_rights

runs = st.lists(
    st.builds(PageRun, st.integers(0, (1 << 52) - 2000), st.integers(0, 1200), st.sampled_from(PageAccess)), max_size=6
)


def naive(pages: list[PageRun]) -> bytes:
    return b"".join(
        pack("<QB7x", (run.first + number) << 12, run.access) for run in pages for number in range(run.count)
    )


@given(pages=runs, view=st.integers(0, 2), limit=st.integers(1, MAX_ENTRIES))
def test_runs_become_full_messages_in_order(pages: list[PageRun], view: int, limit: int) -> None:
    commands = list(set_pages(pages, view=view, limit=limit))
    assert b"".join(command.entries for command in commands) == naive(pages)
    assert all(command.view == view for command in commands)
    sizes = [len(command.entries) // 16 for command in commands]
    assert all(size == limit for size in sizes[:-1])
    assert all(0 < size <= limit for size in sizes)


@given(pages=runs)
def test_entries_can_be_read_back(pages: list[PageRun]) -> None:
    read = [entry for command in set_pages(pages) for entry in page_entries(command)]
    assert read == [((run.first + number) << 12, run.access) for run in pages for number in range(run.count)]


def test_one_page() -> None:
    assert set_page(Gpa(0x7FFF), PageAccess.RX, view=1) == SetPageAccess(
        bytes.fromhex("ff7f0000000000000500000000000000"), 1
    )
    assert page_entries(set_page(Gpa(0x7000), PageAccess.RX)) == [(0x7000, 5)]


def test_the_last_frame_that_an_address_can_name() -> None:
    (command,) = set_pages([PageRun(Gfn((1 << 52) - 1), 1, PageAccess.R)])
    assert page_entries(command) == [(0xFFFF_FFFF_FFFF_F000, 1)]


@pytest.mark.parametrize("execute_only", [False, True])
def test_rights_that_hardware_holds(execute_only: bool) -> None:
    held = set()
    for access in range(16):
        try:
            check_rights(SetPageAccess(pack("<QB7x", 0x1000, access)), execute_only=execute_only)
        except LocalProtocolError:
            continue
        held.add(access)
    assert held == {0, 1, 3, 5, 7} | ({4} if execute_only else set())


def test_half_an_entry_is_no_entry() -> None:
    with pytest.raises(LocalProtocolError, match="whole entries"):
        check_rights(SetPageAccess(bytes(8)), execute_only=False)
