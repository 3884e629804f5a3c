"""How much work a benchmark does: as much as its figures want, less, or as little as shows that it runs."""

from __future__ import annotations

import argparse

__all__ = ["parser_for"]


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """A parser whose result has `amount`: "full", "quick" or "least"."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--quick", dest="amount", action="store_const", const="quick", help="less work, rougher figures"
    )
    amount.add_argument(
        "--least", dest="amount", action="store_const", const="least", help="see that it runs; figures mean nothing"
    )
    parser.set_defaults(amount="full")
    return parser
