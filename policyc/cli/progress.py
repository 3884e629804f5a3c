"""Shows on a terminal how far long work has come; in a pipe, and where the work is short, it shows nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["PATIENCE_SECONDS", "progress"]

PATIENCE_SECONDS = 1.0
"""Work that is done sooner shows nothing."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives the function to call after each of `total` steps.

    The bar stands on standard error, and is gone when the work is done.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    # Imported here: a twentieth of a second that only a terminal pays.
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(what, total=total)
    started = time.monotonic()

    def tick() -> None:
        bar.advance(task)
        if not bar.live.is_started and time.monotonic() - started >= PATIENCE_SECONDS:
            bar.start()

    try:
        yield tick
    finally:
        bar.stop()
