"""`decide`: the one function that says what a policy wants done about one access or event.

The runtime, the test runner, `explain` and the simulator all call it, each with a table in its own address space: the
compiler's at link addresses, the runtime's in guest physical memory. It is stateless. Where the answer turns on a fact
that costs something to establish (the size of a store, the caller of `memcpy`), it names that fact and is asked again.

How overlapping rules are resolved:

- *Applicable* is a rule whose place or event, `from`, `when` and exceptions fit the access. A condition that turns on
  a field without value counts as what makes the verdict stricter.
- A *hole*: an applicable `allow` sets aside the other applicable rules of its own policy, and of policies it overrides.
- The strictest rule left, in enforce mode, gives the reply. The strictest of all gives `would`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from policyc.addresses import PAGE_SIZE, page_offset
from policyc.catalog import Access, EffectKind
from policyc.plan.accesses import FRAME_BELOW, NEAR_ZONE, UNKNOWN_CALLER, MemoryAccess, NoticedEvent, Origin
from policyc.plan.evaluation import Test
from policyc.plan.model import Effect, Rule
from policyc.plan.verdict_table import Group, Guard, VerdictTable

__all__ = ["Fact", "Verdict", "decide"]


class Fact(Enum):
    """What `decide` may need to be told before it can answer."""

    FRAME = "whether the processor itself may be pushing an exception's frame"
    SIZE = "the bytes accessed, decoded from the instruction"
    RETURN_ADDRESS = "the return address on top of the stack"
    RIP_FRAME = "whether RIP translates now to the frame that was bound"
    RETURN_FRAME = "whether the return address translates now to the frame that was bound"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policy wants.

    Attributes:
        effect: what gives the reply; None lets the access through.
        would: what it would be if every policy were in enforce mode.
        rules: indices of the applicable rules, the winner first.
        set_aside: indices of the rules that an `allow` set aside.
        exempted: indices of the rules that an `except` clause lifted.
    """

    effect: Effect | None
    would: Effect | None
    rules: tuple[int, ...] = ()
    set_aside: tuple[int, ...] = ()
    exempted: tuple[int, ...] = ()

    @property
    def collateral(self) -> bool:
        """Whether no rule has anything to do with the access: it only shares a page with one."""
        return not self.rules and not self.set_aside and not self.exempted


COLLATERAL = Verdict(None, None)


class Reach(Enum):
    """What a rule's `from`, `when` and `except` clauses make of one access."""

    APPLIES = "applies"
    ELSEWHERE = "the access comes from other code than the rule names, or its condition doesn't hold"
    EXEMPTED = "an `except` clause lifts the rule"


def decide(table: VerdictTable, access: MemoryAccess | NoticedEvent) -> Verdict | Fact:
    """The verdict on one access, or the fact that it turns on."""
    if isinstance(access, NoticedEvent):
        groups: Iterable[Group] = (table.events.get(access.event, ()),)
        wanted = Access.NONE
    else:
        touched = _touched_cells(table, access)
        if isinstance(touched, Fact):
            return touched
        groups = {group for cell in touched if cell >= 0 for group in table.cells[cell]}
        wanted = access.access

    standing: set[int] = set()
    aside: set[int] = set()
    exempted: set[int] = set()
    for group in groups:
        applicable: list[int] = []
        for index in group:
            rule = table.rules[index]
            if wanted and not rule.access & wanted:
                continue
            reach = Reach.APPLIES if rule.unconditional else _reach(table, index, access)
            if isinstance(reach, Fact):
                return reach
            if reach is Reach.APPLIES:
                applicable.append(index)
            elif reach is Reach.EXEMPTED:
                exempted.add(index)
        left = _without_holes(table, applicable)
        standing.update(left)
        aside.update(set(applicable) - set(left))
    if not (standing or aside or exempted):
        return COLLATERAL
    return _verdict(table.rules, standing, aside - standing, exempted)


def _touched_cells(table: VerdictTable, access: MemoryAccess) -> tuple[int, ...] | Fact:
    """The cells under the access, or the fact that they depend on."""
    space = table.spaces.get(access.base)
    if space is None:
        return ()
    first = access.start
    if access.frame is not False:
        lowest = first - min(FRAME_BELOW, page_offset(first))
        if access.frame:
            first = lowest
        elif space.touched(lowest, first + 1) != space.touched(first, first + 1):
            return Fact.FRAME
    # An access that crosses into the next page comes as an event of its own there.
    room = PAGE_SIZE - page_offset(access.start)
    if access.size is not None:
        return space.touched(first, access.start + min(access.size, room))
    cells = space.touched(first, access.start + min(NEAR_ZONE, room))
    return cells if len(cells) == 1 else Fact.SIZE


def _reach(table: VerdictTable, index: int, access: MemoryAccess | NoticedEvent) -> Reach | Fact:
    """Whether the rule's clauses let it apply to the access."""
    rule, guard = table.rules[index], table.guards[index]
    weakens = rule.effect.kind is EffectKind.ALLOW
    inside = _fits(table, guard.when, rule.origin, guard, access, weakens=weakens)
    if isinstance(inside, Fact):
        return inside
    if not inside:
        return Reach.ELSEWHERE
    for exemption, test in zip(rule.exemptions, guard.exemptions, strict=True):
        exempt = _fits(table, test, exemption.code, guard, access, weakens=True)
        if isinstance(exempt, Fact):
            return exempt
        if exempt:
            return Reach.EXEMPTED
    return Reach.APPLIES


def _fits(
    table: VerdictTable,
    test: Test | None,
    code: Sequence[int],
    guard: Guard,
    access: MemoryAccess | NoticedEvent,
    *,
    weakens: bool,
) -> bool | Fact:
    """Whether a condition holds and the access comes from this code, as far as either is given.

    What the fields leave open counts as what makes the verdict stricter: it holds, unless holding weakens.
    """
    if test is not None:
        holds = test(access.field)
        if holds is None and guard.sized and isinstance(access, MemoryAccess) and access.size is None:
            return Fact.SIZE
        if holds is False or (holds is None and weakens):
            return False
    return not code or _comes_from(table, code, access.origin, must_be_genuine=weakens)


def _comes_from(table: VerdictTable, places: Sequence[int], origin: Origin, *, must_be_genuine: bool) -> bool | Fact:
    """Whether the access was made by code of these places, itself or through a leaf copy routine.

    Page tables aren't protected, so what would make a rule milder (`must_be_genuine`) counts only if the code's page
    still leads to the frame that was bound.
    """
    if any(origin.rip in table.code[place] for place in places):
        through_copy = False
    elif origin.rip in table.copy_routines:
        if origin.return_address is None:
            return Fact.RETURN_ADDRESS
        if origin.return_address == UNKNOWN_CALLER:
            return not must_be_genuine
        if not any(origin.return_address in table.code[place] for place in places):
            return False
        through_copy = True
    else:
        return False
    if not must_be_genuine:
        return True
    if origin.rip_genuine is None:
        return Fact.RIP_FRAME
    if through_copy and origin.rip_genuine and origin.return_genuine is None:
        return Fact.RETURN_FRAME
    return origin.rip_genuine and (not through_copy or origin.return_genuine is True)


def _without_holes(table: VerdictTable, applicable: Sequence[int]) -> list[int]:
    """The applicable rules that no applicable `allow` sets aside; the `allow`s themselves stay."""
    holes = [table.rules[index] for index in applicable if table.rules[index].effect.kind is EffectKind.ALLOW]
    if not holes:
        return list(applicable)
    policies = {hole.policy for hole in holes}
    policies.update(index for index, name in enumerate(table.policies) for hole in holes if name in hole.overriding)
    return [
        index
        for index in applicable
        if table.rules[index].effect.kind is EffectKind.ALLOW or table.rules[index].policy not in policies
    ]


def _verdict(rules: Sequence[Rule], standing: Iterable[int], aside: Iterable[int], exempted: Iterable[int]) -> Verdict:
    by_number = sorted(standing)
    ordered = sorted(by_number, key=lambda i: (rules[i].enforce, rules[i].effect.strictness), reverse=True)
    enforced = [rules[index].effect for index in ordered if rules[index].enforce]
    return Verdict(
        effect=_strictest(enforced),
        would=_strictest([rules[index].effect for index in ordered]),
        rules=tuple(ordered),
        set_aside=tuple(sorted(aside)),
        exempted=tuple(sorted(exempted)),
    )


def _strictest(effects: Sequence[Effect]) -> Effect | None:
    """The effect that wins; pins of the same rank keep the bits of all. None where nothing but `allow` is left."""
    candidates = [effect for effect in effects if effect.kind is not EffectKind.ALLOW]
    if not candidates:
        return None
    winner = max(candidates, key=lambda effect: effect.strictness)
    if winner.kind is not EffectKind.PIN:
        return winner
    bits = 0
    for effect in candidates:
        if effect.kind is EffectKind.PIN:
            bits |= effect.argument
    return Effect(EffectKind.PIN, bits)
