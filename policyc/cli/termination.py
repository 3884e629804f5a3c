"""SIGTERM for a command that has something to clear away."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["unwinding_on_sigterm"]


class _TerminatedError(BaseException):
    """SIGTERM came. No `except Exception` stops it, as with Ctrl-C."""


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind what is within, as Ctrl-C does; then the process ends of that signal, as its parent expects.

    A second one changes nothing, so that the clearing away isn't broken off. In another thread than the main one, which
    no signal reaches, nothing is different.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    except _TerminatedError:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def _unwind(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _TerminatedError
