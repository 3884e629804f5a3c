"""Policies made up at random that compile against the small kernel: as lists of words, to be laid out in any way."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from hypothesis import strategies as st

from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.lang.text_to_tree import load_parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

__all__ = ["compilable_policies", "words_of"]

Words: TypeAlias = list[str]

LETS = """
let patchers = kernel:text_poke_memcpy, kernel:memcpy
let tables = kernel .rodata,kernel:init_task size 0x40
"""

SENTENCES = (
    "deny write to kernel .text",
    "deny write of kernel:sys_call_table + 8 size 16, kernel .rodata",
    "deny write to kernel .text by fault",
    "deny write to kernel:init_task by skip",
    "log write to tables, kernel:init_task",
    "inject gp write to kernel:init_task+0x0_8 size 8",
    "retry 3 then deny write to kernel:*_table",
    "crash write to virtual 0xFFFF_FFFF_8100_1000..0xffffffff81001010",
    "log execute to kernel:schedule",
)
"""Accesses; the clauses follow."""

EVENTS = (
    "on cr4 when clears(smep|(smap)) deny",
    "on cr4 when not((old & smep)==0) and (new<0x10 or rip in patchers) log",
    "on cr0 pin wp|pg",
    "on msr lstar when old != 0 deny",
    "on hypercall 34/24 log",
    "on idtr write deny",
    "on xsetbv log",
)

CLAUSES = (
    "from patchers, kernel:schedule",
    "when (cpl == 0) or (bits==64)",
    'because "a # reason"',
    "severity high",
    "at most 0xA per minute",
    "mode monitor",
)
"""Clauses that each sentence takes once. Those of an event come without the second."""

REPEATED = (
    'tag "attack.t1014"',
    'tag "two words"',
    'except from patchers because "they patch" owner "us" until 2027-06-30',
    'except from kernel:memcpy when cpl == 0 because "it copies"',
    'except when rip in kernel .rodata because "never"',
)
"""Clauses that a sentence takes more than once."""

TEST = """
test "t" {
    write kernel:sys_call_table + 8 from 0xffffffffc0401000 with cpl = 0 => deny
    on cr4 with old = smep|smap, new = 0 => deny
}
"""


def words_of(text: str) -> Words:
    """The words and signs of a text, without blanks and comments."""
    return [word.text for word in load_parser(PLAIN_EFFECT_WORDS).scanner.words(f"{text} ")]


def _some(texts: Sequence[str]) -> SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(texts), unique=True, max_size=4)


@st.composite
def _rule(draw: st.DrawFn, label: str) -> Words:
    sentence = draw(st.sampled_from((*SENTENCES, *EVENTS)))
    once = [clause for clause in CLAUSES if sentence in SENTENCES or not clause.startswith("when")]
    clauses = draw(st.permutations([*draw(_some(once)), *draw(_some(REPEATED))]))
    return words_of(" ".join([*draw(st.sampled_from(([], [f"{label}:"]))), sentence, *clauses]))


@st.composite
def compilable_policies(draw: st.DrawFn) -> Words:
    """The words of a policy of a few rules. It may be warned about, and has no error."""
    head = draw(st.sampled_from(("", 'policy "p"', 'policy "p" mode monitor for linux x86_64')))
    rules = [draw(_rule(f"rule-{number}")) for number in range(draw(st.integers(1, 4)))]
    tests = draw(st.sampled_from(("", TEST)))
    return [*words_of(f"{head} {LETS}"), *(word for rule in rules for word in rule), *words_of(tests)]
