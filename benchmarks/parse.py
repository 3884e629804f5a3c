"""How fast policies are read: our parser to its syntax tree, beside Lark alone on the same text to Lark's own tree.

Both read the same rules in turn, in one process. `cold` is the first reading of a fresh process's parser, when no shape
of statement is known yet; `warm` is the median of later ones. Our parser pauses the cyclic garbage collector while it
reads, so Lark is measured both as it comes and with the collector paused in the same way. Prints rules a second, and
the ratios as JSON on the last line. `--quick` reads less, less often.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.amounts import parser_for
from policyc.catalog import PLAIN_EFFECT_WORDS
from policyc.diagnostics import Source
from policyc.lang.parse import parse
from policyc.lang.shapes import Shapes
from policyc.lang.text_to_tree import Failure, Parser, load_parser

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"full": (1_000, 10_000, 100_000), "quick": (1_000, 5_000), "least": (10, 50)}
"""Rules of each policy."""

# What large policies are made of: rules in a few shapes, each with its own label, symbols, addresses and texts.
SHAPES: tuple[Callable[[int], str], ...] = (
    lambda i: (
        f"guard-{i}: deny write to kernel:symbol_{i} + {i % 64}\n"
        f'    except from kernel:patch_{i} because "reason {i}"\n    severity high tag "t{i % 9}"\n'
    ),
    lambda i: f"on hypercall {i % 64}/{i % 32} log\n",
    lambda i: f"deny write to physical {i << 12:#x}..{(i + 3) << 12:#x} when rip in kernel .text\n",
    lambda i: f"log execute to module m{i % 999} .text when cpl == {i & 3}  # rule {i}\n",
)


def policy(rules: int) -> str:
    """A policy of so many rules, the shapes in turn."""
    return "".join(SHAPES[number % len(SHAPES)](number) for number in range(rules))


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes. What it returns is dropped, and collected, outside the measurement."""
    gc.collect()
    start = time.perf_counter()
    result = work()
    taken = time.perf_counter() - start
    del result
    return taken


def forget_shapes(parser: Parser) -> None:
    """Make the parser as it is in a fresh process."""
    parser.shapes = Shapes(parser.patterns, [*parser.keywords.values(), *parser.effect_words])


def ours(text: str) -> object:
    file, diagnostics = parse(Source("benchmark.policy", text), PLAIN_EFFECT_WORDS)
    if file is None or diagnostics:
        raise SystemExit(f"the benchmark's own policy is wrong: {diagnostics[:3]}")
    return file


def bare_lark(parser: Parser, text: str) -> object:
    tree = parser.to_tree(text)
    if isinstance(tree, Failure):
        raise SystemExit(f"the benchmark's own policy is wrong: {tree}")
    return tree


def paused(work: Callable[[], object]) -> object:
    """What `work` returns, done without the garbage collector, which makes up for it at the end."""
    gc.disable()
    try:
        return work()
    finally:
        gc.enable()


def measure(rules: int, rounds: int) -> dict[str, float]:
    """Rules a second of each way, the rounds taken in turn."""
    parser, text = load_parser(PLAIN_EFFECT_WORDS), policy(rules)
    taken: dict[str, list[float]] = {"lark": [], "lark_paused": [], "cold": [], "warm": []}
    for _ in range(rounds):
        taken["lark"].append(seconds(lambda: bare_lark(parser, text)))
        taken["lark_paused"].append(seconds(lambda: paused(lambda: bare_lark(parser, text))))
        forget_shapes(parser)
        taken["cold"].append(seconds(lambda: ours(text)))
        taken["warm"].append(seconds(lambda: ours(text)))
    return {way: rules / statistics.median(times) for way, times in taken.items()}


def main() -> None:
    amount = parser_for(__doc__).parse_args().amount
    ratios: dict[str, float] = {}
    print(f"{'rules':>8} {'bare Lark':>12} {'Lark, paused':>13} {'ours, cold':>12} {'ours, warm':>12}   rules a second")
    for rules in SIZES[amount]:
        rates = measure(rules, 5 if amount == "full" and rules <= 10_000 else 3)
        lark, lark_paused, cold, warm = rates["lark"], rates["lark_paused"], rates["cold"], rates["warm"]
        print(f"{rules:>8} {lark:>12.0f} {lark_paused:>13.0f} {cold:>12.0f} {warm:>12.0f}", flush=True)
        for way in ("cold", "warm"):
            ratios[f"parse_{way}_over_lark_{rules}"] = round(rates[way] / lark, 2)
            ratios[f"parse_{way}_over_lark_paused_{rules}"] = round(rates[way] / lark_paused, 2)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
