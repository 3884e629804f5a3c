"""The forms in which `policyc explain` prints."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from policyc.cli.explain_json import JsonPrinter
from policyc.cli.explain_printer import Printer
from policyc.cli.explain_text import TextPrinter

__all__ = ["PRINTERS"]

PRINTERS: Mapping[str, type[Printer]] = MappingProxyType({"text": TextPrinter, "json": JsonPrinter})
"""Each form by the name that `--format` takes."""
