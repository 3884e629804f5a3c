"""`policyc guest`: a machine with the small guest, connected to the tool's socket, with a console."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, TextIO

from policyc.emulator.linux.errors import SnapshotError
from policyc.emulator.machines import routines_of
from policyc.emulator.recorder import Recorder, open_recording
from policyc.emulator.recording import RecordingError
from policyc.kvmi import DIALECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyc.emulator.loop import Loop
    from policyc.emulator.options import GuestOptions

__all__ = ["EXIT_FAILED", "EXIT_OK", "UnusableError", "run_guest"]

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1


class UnusableError(Exception):
    """The guest can't be started: `message` says why, `help` what would start it, or is None."""

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help


def run_guest(options: GuestOptions, console: TextIO, out: TextIO) -> int:
    """Run the guest until it is told to end.

    Args:
        console: lines to obey; may be a terminal, a pipe, a file, or a stream in memory.
        out: answers, one line each.

    Returns:
        0; 1 if the machine ended by itself (a fault on which its processor gives up, or the tool's CRASH), or if its
        kernel has panicked and it wasn't reset since.

    Raises:
        UnusableError: it couldn't be started: the engine isn't installed, or an option can't be had.
        OSError: a file that the options name can't be opened.
    """
    for name in options.attacks:
        if name not in routines_of(options):
            raise UnusableError(f"no such routine: {name}")
    with ExitStack() as held:
        return _loop(options, console, out, lambda: _recorder(options, held)).run()


def _recorder(options: GuestOptions, held: ExitStack) -> Recorder | None:
    if options.record is None:
        return None
    try:
        file = held.enter_context(open_recording(options.record))
    except RecordingError as error:
        raise UnusableError(f"`{options.record}`: {error}") from None
    return Recorder(file, DIALECTS[options.dialect])


def _loop(options: GuestOptions, console: TextIO, out: TextIO, record: Callable[[], Recorder | None]) -> Loop:
    # Imported here, since the engine is an optional extra.
    try:
        from policyc.emulator.loop import Loop
        from policyc.emulator.quirks import LayoutError
    except ModuleNotFoundError as error:
        if error.name != "unicorn":
            raise
        fact = "the guest needs the Unicorn engine, which isn't installed"
        raise UnusableError(fact, "pip install 'policyc[guest]'") from None
    secret = options.cookie_file.read_bytes() if options.cookie_file is not None else None
    try:
        return Loop(options, secret, console, out, record)
    except SnapshotError as error:
        fact = f"`{options.snapshot}` has no snapshot that can be continued: {error}"
        raise UnusableError(fact, f"`policyc guest build-linux -o {options.snapshot}` builds one") from None
    except (LayoutError, ValueError) as error:
        raise UnusableError(str(error)) from None
