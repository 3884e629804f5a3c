from __future__ import annotations

from collections.abc import Generator

from policyc.addresses import PAGE_SIZE, Gfn
from policyc.guest.requests import PageReply, PageRequest, page_of, request, serve


def test_a_request_is_sorted_and_names_each_frame_once() -> None:
    assert request([Gfn(3), Gfn(1), Gfn(3), Gfn(2)]) == PageRequest((Gfn(1), Gfn(2), Gfn(3)))


def test_only_a_whole_page_is_a_page() -> None:
    page = bytes(PAGE_SIZE)
    reply: PageReply = {Gfn(1): page, Gfn(2): page[1:], Gfn(3): page + b"x", Gfn(4): None}
    assert [page_of(reply, Gfn(gfn)) for gfn in range(6)] == [None, page, None, None, None, None]


def test_serving_reads_what_is_asked_until_the_answer() -> None:
    def asking() -> Generator[PageRequest, PageReply, list[PageReply]]:
        first = yield request([Gfn(2), Gfn(1)])
        second = yield request([Gfn(7)])
        return [first, second]

    def silent() -> Generator[PageRequest, PageReply, str]:
        yield from ()
        return "nothing asked"

    assert serve(asking(), lambda gfn: bytes([gfn])) == [{1: b"\x01", 2: b"\x02"}, {7: b"\x07"}]
    assert serve(silent(), lambda gfn: None) == "nothing asked"
