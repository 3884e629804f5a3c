"""Pages whose protection is lifted for a while, since an instruction on them can't be performed otherwise.

Each is closed again after a while, and what was written meanwhile where rules deny it is found by comparing. All this
is loud: the guest counts as DEGRADED as long as a page is open, and records name page, rules and instruction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from policyc.addresses import PAGE_SIZE, Gfn, frame_start, page_offset
from policyc.catalog import Access
from policyc.kvmi import PageAccess, ReadPhysical, ReadPhysicalReply, Refused, set_page
from policyc.runtime.opened_pages import OpenPage
from policyc.runtime.procedure import Emit, Procedure, Sleep, TimedOutError, ask, time_now
from policyc.runtime.records import MAX_RULES, JsonObject, StateRecord

if TYPE_CHECKING:
    from policyc.runtime.state import State

__all__ = ["MAX_OPEN", "OPEN_SECONDS", "close_pages", "note_open", "open_page", "page_details"]

OPEN_SECONDS = 30.0
"""How long a page stays open."""

RETRY_SECONDS = 1.0
"""How soon a page that couldn't be closed is tried again."""

MAX_OPEN = 64
"""Pages that may be open at once."""


def open_page(state: State, gfn: Gfn, why: str, details: JsonObject) -> Procedure[bool]:
    """Lift everything from one page for a while; False where that can't be done."""
    if gfn not in state.stepping.opened.pages and len(state.stepping.opened.pages) >= MAX_OPEN:
        return False
    before = yield from _read(gfn)
    state.bound.code_cache.distrust(gfn)
    state.bound.code_cache.exposed.add(gfn)
    try:
        result = yield from ask(set_page(frame_start(gfn), PageAccess.RWX))
    except TimedOutError:
        yield from note_open(state, gfn)
        raise
    if isinstance(result, Refused):
        state.bound.code_cache.exposed.discard(gfn)
        return False
    yield from note_open(state, gfn, (yield from time_now()) + OPEN_SECONDS, before)
    fact = f"page {frame_start(gfn):#x} is open for {OPEN_SECONDS:g} seconds: {why}"
    yield Emit(StateRecord(state.phase.value, fact, "critical", page_details(state, [gfn], details)))
    return True


def note_open(state: State, gfn: Gfn, until: float | None = None, before: bytes | None = None) -> Procedure[None]:
    """Note that a page is open, to be closed at a moment; soon, where none is given."""
    if until is None:
        until = (yield from time_now()) + RETRY_SECONDS
    earlier = state.stepping.opened.pages.get(gfn)
    state.stepping.opened.pages[gfn] = OpenPage(until, before if earlier is None else earlier.before)
    state.bound.code_cache.exposed.add(gfn)
    state.stepping.chores = True
    state.degrade(mended=True)


def close_pages(state: State) -> Procedure[None]:
    """Close every open page when its time has come; ends when none is open or the guest isn't guarded any more."""
    opened = state.stepping.opened
    opened.closing = True
    try:
        while opened.pages and state.is_guarding:
            now = yield from time_now()
            due = min(page.until for page in opened.pages.values())
            if due > now:
                # No longer, since a page that is noted meanwhile may be due before those that are open now.
                yield Sleep(min(due - now, RETRY_SECONDS))
                continue
            for gfn in [gfn for gfn, page in opened.pages.items() if page.until <= now]:
                if gfn in opened.pages:
                    yield from _close(state, gfn, opened.pages.pop(gfn))
    finally:
        opened.closing = False


def page_details(state: State, gfns: Iterable[Gfn], details: JsonObject) -> JsonObject:
    """What a record says of pages: their addresses, and the rules about bytes of them."""
    frames = sorted(gfns)
    rules = sorted({index for gfn in frames for index in state.bound.rules_on(gfn)})
    return {
        "pages": [hex(frame_start(gfn)) for gfn in frames],
        "rules": [state.plan.rules[index].id for index in rules[:MAX_RULES]],
        **details,
    }


def _close(state: State, gfn: Gfn, page: OpenPage) -> Procedure[None]:
    """Close one that isn't among the open ones any more, so that nobody else opens it after the command."""
    opened = state.stepping.opened
    try:
        result = yield from ask(set_page(frame_start(gfn), PageAccess(int(state.bound.allowed(gfn)))))
        failure = str(result) if isinstance(result, Refused) else None
        after = (yield from _read(gfn)) if failure is None else None
    except TimedOutError as error:
        failure, after = str(error), None
    if not state.is_guarding:
        return
    if gfn not in state.bound.rights:
        if not opened.pages:
            state.mend()
        return
    name = f"page {frame_start(gfn):#x}"
    if failure is not None:
        yield from note_open(state, gfn, before=page.before)
        yield Emit(StateRecord(state.phase.value, f"{name} is still open: {failure}", "critical"))
        return
    if gfn in opened.pages:
        # Somebody else couldn't put it back meanwhile: it's closed once more, and compared then.
        yield from note_open(state, gfn, before=page.before)
        return
    state.bound.code_cache.exposed.discard(gfn)
    if not opened.pages:
        state.mend()
    fact, severity, changed = _outcome(state, gfn, page.before, after)
    details = page_details(state, [gfn], {"changed": changed})
    yield Emit(StateRecord(state.phase.value, f"{name} is guarded again{fact}", severity, details))


def _outcome(state: State, gfn: Gfn, before: bytes | None, after: bytes | None) -> tuple[str, str, list[str] | None]:
    """What became of a page's denied bytes, in words; how bad that is; the ranges, None where they aren't known."""
    denied = state.bound.denied_spans(gfn, Access.W)
    if before is None or after is None:
        return (", and whether bytes were changed on it isn't known", "high", None) if denied else ("", "info", [])
    changed = _changed(denied, before, after)
    if not changed:
        return "", "info", []
    return f", and bytes were changed on it that rules deny to change: {', '.join(changed)}", "critical", changed


def _changed(denied: Iterable[tuple[int, int]], before: bytes, after: bytes) -> list[str]:
    """The denied bytes of a page that aren't what they were, as ranges in words."""
    return [
        f"[{start:#x}, {end:#x})"
        for start, end in denied
        if before[page_offset(start) :][: end - start] != after[page_offset(start) :][: end - start]
    ]


def _read(gfn: Gfn) -> Procedure[bytes | None]:
    result = yield from ask(ReadPhysical(frame_start(gfn), PAGE_SIZE))
    return result.data if isinstance(result, ReadPhysicalReply) else None
