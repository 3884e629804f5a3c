"""Frames that the guest may free, such as a module's: before a denial takes effect there, where they are used now.

An address that is guarded may come to lead elsewhere, and its old frame be given to somebody who has every right to
write it. So the kernel's page tables are walked again, at most once a frame and second; what has moved is guarded where
it is now, the old frames are released, and a critical record says so: whoever can change page tables can lift such a
rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from policyc.addresses import PAGE_SIZE, Gfn, Gva, Range, gfn_of
from policyc.catalog import Access, EffectKind
from policyc.guest.errors import WalkLimitError
from policyc.guest.paging import Translation, walk
from policyc.kvmi import Event, EventKind, PageAccess, PageRun, Refused, SetPageAccess, set_pages
from policyc.plan.verdicts import Verdict
from policyc.runtime.bind import BindError, Binding, rebind
from policyc.runtime.procedure import Emit, Procedure, Sleep, UnreadableError, ask_each, read_pages, time_now
from policyc.runtime.records import StateRecord
from policyc.runtime.state import State

__all__ = ["LOOK_PAUSE", "has_moved"]

FOLLOWING_PAUSE = 0.005
"""Seconds between two looks whether somebody else is through with following."""

LOOK_PAUSE = 1.0
"""Seconds between two walks for one frame, and between two bindings: in between, what was bound counts."""


def has_moved(state: State, event: Event, verdict: Verdict) -> Procedure[bool]:
    """Whether what is denied at an event's frame is guarded elsewhere now, so that it has to be judged anew."""
    binding = state.binding
    if binding is None or event.kind is not EventKind.PF:
        return False
    if verdict.effect is None or verdict.effect.kind < EffectKind.SKIP:
        return False
    gfn = gfn_of(event.gpa)
    pages = binding.plan.freeable.pages_of(gfn)
    now = yield from time_now()
    if not pages or now - state.looked_at.get(gfn, -LOOK_PAUSE) < LOOK_PAUSE:
        return False
    moved = yield from _look(state, binding, gfn, pages, now)
    if not moved:
        # Noted at the end: an event on another vCPU meanwhile looks for itself, and isn't judged by what was bound.
        state.looked_at[gfn] = now
    return moved


def _look(state: State, binding: Binding, gfn: Gfn, pages: Collection[Gva], now: float) -> Procedure[bool]:
    """Look where pages lead, and follow them if it's not to their frame; whether another binding is in force."""
    try:
        spans = [Range(page, Gva(page + PAGE_SIZE)) for page in pages]
        found = yield from read_pages(walk(binding.location.space, spans))
        leads = [part for parts in found.ranges for part in parts if isinstance(part, Translation)]
        stays = len(leads) == len(pages) and all(gfn_of(part.gpa_start) == gfn for part in leads)
        # One at a time: what two set at once could end as neither wants it.
        while state.following:
            yield Sleep(FOLLOWING_PAUSE)
        if state.binding is not binding:
            return state.binding is not None
        if stays or now - state.rebound_at < LOOK_PAUSE:
            return False
        state.following = True
        try:
            followed = yield from _follow(state, binding)
        finally:
            state.following = False
        state.rebound_at = now
    except (BindError, WalkLimitError, UnreadableError) as error:
        state.degrade()
        yield Emit(StateRecord(state.phase.value, f"what the guest has moved can't be followed: {error}", "critical"))
        return False
    return followed


def _follow(state: State, before: Binding) -> Procedure[bool]:
    """Guard what has moved where it is now: first more, then the new table, then less."""
    after = yield from read_pages(rebind(state.plan, before))
    old, new = before.plan, after.plan
    changed = sorted(gfn for gfn in {*old.rights, *new.rights} if old.allowed(gfn) != new.allowed(gfn))
    if after.moved == before.moved and not changed:
        return False
    if not _is_in_force(state, before):
        return False
    refused = yield from _set({gfn: old.allowed(gfn) & new.allowed(gfn) for gfn in changed})
    if not _is_in_force(state, before):
        return False
    state.put_in_force(after)
    refused += yield from _set({gfn: new.allowed(gfn) for gfn in changed})
    if refused:
        state.degrade()
    released = [gfn for gfn in changed if gfn not in new.rights]
    yield Emit(
        StateRecord(
            state.phase.value,
            "the guest has mapped guarded addresses elsewhere: they are guarded where they are now, and what was there "
            "before is released",
            "critical",
            {
                "released": [hex(gfn) for gfn in released[:MAX_NAMED]],
                "guarded": [hex(gfn) for gfn in changed if gfn in new.rights][:MAX_NAMED],
                "unmapped": [str(place.place) for place in after.plan.unbound[:MAX_NAMED]],
                "refused": refused,
            },
        )
    )
    return True


def _is_in_force(state: State, binding: Binding) -> bool:
    """Whether this still counts: a guest that is being let go isn't restricted once more."""
    return state.is_guarding and state.binding is binding


MAX_NAMED = 32
"""Frames and places that a record names."""


def _set(rights: Mapping[Gfn, Access]) -> Procedure[list[str]]:
    """Set them; what was refused or not answered, in words."""
    results = yield from ask_each(_commands(rights))
    return [
        "unanswered" if result is None else str(result)
        for result in results
        if result is None or isinstance(result, Refused)
    ]


def _commands(rights: Mapping[Gfn, Access]) -> Iterator[SetPageAccess]:
    return set_pages(PageRun(gfn, 1, PageAccess(int(allowed))) for gfn, allowed in rights.items())
