"""How fast policies are compiled: each stage of the compiler, beside Lark alone reading the same text.

The cyclic garbage collector is paused for all of them, as the compiler pauses it.

The rules overlap: objects and parts of them, ranges that reach into the next ones, sections around them all; a fifth
have conditions, a fifth exceptions. All stages read the same files in one process, the rounds in turn. Prints rules a
second for each stage, and as JSON on the last line how each compares with bare Lark, and how the cost of one rule grows
from the smallest policy to the largest. `--quick` compiles less, less often.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.compiler.checks import CheckOptions, run_checks
from policyc.compiler.compiled import Compiled
from policyc.compiler.image_map import ImageMap
from policyc.compiler.imports import read_files
from policyc.compiler.landmarks import guest_facts
from policyc.compiler.lower import Lowered, lower
from policyc.compiler.plan_checks import run_plan_checks
from policyc.compiler.profile_lookup import ProfileLookup
from policyc.compiler.resolve import resolve_file
from policyc.compiler.resolved import ResolvedPolicy
from policyc.diagnostics import Diagnostic, Source, has_errors
from policyc.guest.profile import Profile
from policyc.guest.readers import build_profile
from policyc.lang import ast
from policyc.lang.text_to_tree import Failure, load_parser
from policyc.plan.store import dump

SIZES = {"full": (1_000, 10_000, 100_000), "quick": (500, 2_500), "least": (10, 50)}
"""Rules of each policy."""

RULES_A_FILE = 25_000
STAGES = ("parse", "resolve", "check", "lower", "plan check", "dump")

KERNEL = 0xFFFFFFFF81000000
TEXT_BYTES = 0x400000
OBJECT_BYTES = 64
PATCHERS = 100

# Each rule has a label, so that none says the same as another.
SHAPES: tuple[Callable[[int], str], ...] = (
    lambda i: (
        f"o{i}: deny write to kernel:object_{i}\n"
        f'    except from kernel:patch_{i % PATCHERS} because "reason {i}"\n    severity high tag "t{i % 9}"\n'
    ),
    lambda i: (
        f"p{i}: log write to kernel:object_{i - 1} + 8 size 16 when cpl == {i & 3} and not (rip in kernel .text)\n"
    ),
    lambda i: f"v{i}: deny write to virtual {i << 12:#x}..{(i + 12) << 12:#x}\n",
    lambda i: f"m{i}: on msr {0x100 + i % 4096:#x} when old & {1 << i % 64:#x} != new & {1 << i % 64:#x} log\n",
    lambda i: f"g{i}: log execute to physical {i << 12:#x}..{(i + 1) << 12:#x}\n",
)
AROUND = (
    "deny write to kernel .text",
    "log write to kernel .rodata mode monitor",
    "log write to virtual 0x0..0x100000000000 mode monitor",
)


def profile(rules: int) -> Profile:
    """A kernel with an object for each rule."""
    constants = KERNEL + TEXT_BYTES
    lines = [
        f"{KERNEL:x} T _text",
        f"{KERNEL:x} T _stext",
        f"{KERNEL + 0x80:x} T entry_SYSCALL_64",
        *(f"{KERNEL + 0x1000 + 256 * number:x} T patch_{number}" for number in range(PATCHERS)),
        f"{constants:x} T _etext",
        f"{constants:x} R __start_rodata",
        *(f"{constants + OBJECT_BYTES * (number + 1):x} R object_{number}" for number in range(rules)),
        f"{constants + OBJECT_BYTES * (rules + 2):x} R __end_rodata",
    ]
    return build_profile("\n".join(lines).encode() + b"\n")


def sources(rules: int) -> list[Source]:
    """Policies of so many rules, the shapes in turn."""
    files = []
    for first in range(0, rules, RULES_A_FILE):
        numbers = range(first, min(first + RULES_A_FILE, rules))
        text = "".join(SHAPES[number % len(SHAPES)](number) for number in numbers)
        around = "\n".join(AROUND) if not first else ""
        files.append(Source(f"{first}.policy", f'policy "part {first}"\n{around}\n{text}'))
    return files


class Clock:
    """Seconds that each stage took."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {stage: [] for stage in ("lark", *STAGES)}

    def time(self, stage: str, work: Callable[[], object]) -> object:
        """What `work` returns. As in the compiler, the cyclic garbage collector waits meanwhile."""
        gc.collect()
        gc.disable()
        start = time.perf_counter()
        result = work()
        self.taken[stage].append(time.perf_counter() - start)
        gc.enable()
        return result

    def rates(self, rules: int) -> dict[str, float]:
        """Rules a second."""
        return {stage: rules / statistics.median(times) for stage, times in self.taken.items()}


def bare_lark(files: Sequence[Source]) -> object:
    parser = load_parser(PLAIN_EFFECT_WORDS)
    trees = [parser.to_tree(source.text) for source in files]
    if any(isinstance(tree, Failure) for tree in trees):
        raise SystemExit("the benchmark's own policy is no policy")
    return trees


def parsed(files: Sequence[Source]) -> list[ast.PolicyFile]:
    trees, found = read_files(files, None)
    refuse(found)
    return trees


def resolved(trees: Sequence[ast.PolicyFile], known: Profile) -> list[ResolvedPolicy]:
    lookup = ProfileLookup(known)
    policies = []
    for tree in trees:
        policy, found = resolve_file(tree, lookup)
        refuse(found)
        policies.append(policy)
    return policies


def compile_once(clock: Clock, files: Sequence[Source], known: Profile) -> None:
    """One round: each stage on what the one before it made."""
    options = CheckOptions(accept_hot_pages=True)
    clock.time("lark", lambda: bare_lark(files))
    trees: list[ast.PolicyFile] = []
    policies: list[ResolvedPolicy] = []
    lowered: list[Lowered] = []
    clock.time("parse", lambda: trees.extend(parsed(files)))
    clock.time("resolve", lambda: policies.extend(resolved(trees, known)))
    clock.time("check", lambda: refuse(run_checks(policies, options)))
    facts = guest_facts(known)
    clock.time("lower", lambda: lowered.append(lower(policies, facts, target="any", cpu="any")))
    image = ImageMap(known)
    clock.time("plan check", lambda: refuse(run_plan_checks(Compiled(lowered[0], image, options))))
    clock.time("dump", lambda: dump(lowered[0].plan))


def refuse(found: Sequence[Diagnostic]) -> None:
    """End the benchmark if its own policy is wrong."""
    if has_errors(found):
        raise SystemExit(f"the benchmark's own policy is wrong: {[d.message for d in found if has_errors([d])][:3]}")


def main() -> None:
    amount = parser_for(__doc__).parse_args().amount
    sizes = SIZES[amount]
    bare_lark(sources(len(SHAPES)))
    ratios: dict[str, float] = {}
    rates: dict[int, dict[str, float]] = {}
    print("   rules " + "".join(f"{stage:>12}" for stage in ("lark", *STAGES)) + "   rules a second")
    for rules in sizes:
        clock, files, known = Clock(), sources(rules), profile(rules)
        for _ in range(1 if rules > 10_000 or amount != "full" else 3):
            compile_once(clock, files, known)
        rates[rules] = clock.rates(rules)
        print(f"{rules:>8} " + "".join(f"{rates[rules][stage]:>12.0f}" for stage in ("lark", *STAGES)), flush=True)
        for stage in STAGES:
            ratios[f"{stage.replace(' ', '_')}_over_lark_{rules}"] = round(
                rates[rules][stage] / rates[rules]["lark"], 2
            )
    for stage in STAGES:
        growth = rates[sizes[0]][stage] / rates[sizes[-1]][stage]
        ratios[f"cost_of_a_rule_{stage.replace(' ', '_')}_{sizes[-1]}_over_{sizes[0]}"] = round(growth, 2)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
