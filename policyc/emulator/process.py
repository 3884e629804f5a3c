"""`policyc guest`: a machine with the small guest, connected to the tool's socket, with a console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TextIO

from policyc.emulator.linux.errors import SnapshotError
from policyc.emulator.machines import routines_of

if TYPE_CHECKING:
    from policyc.emulator.options import GuestOptions

__all__ = ["EXIT_FAILED", "EXIT_OK", "EXIT_UNUSABLE", "run_guest"]

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_UNUSABLE: Final = 2


def run_guest(options: GuestOptions, console: TextIO, out: TextIO) -> int:
    """Run the guest until it is told to end.

    Args:
        console: lines to obey; may be a terminal, a pipe, a file, or a stream in memory.
        out: answers, one line each.

    Returns:
        0; 1 if the machine ended by itself (a fault that nothing handles, or the tool's CRASH); 2 if it couldn't be
        started: the engine isn't installed, or an option can't be had.
    """
    problem = next((f"no such routine: {name}" for name in options.attacks if name not in routines_of(options)), None)
    if problem is None:
        try:
            return _run(options, console, out)
        except ModuleNotFoundError as error:
            if error.name != "unicorn":
                raise
            problem = "the guest needs the unicorn engine, which isn't installed: pip install 'policyc[guest]'"
        except (OSError, SnapshotError, ValueError) as error:
            problem = str(error)
    out.write(f"{problem}\n")
    return EXIT_UNUSABLE


def _run(options: GuestOptions, console: TextIO, out: TextIO) -> int:
    # Imported here, since the engine is an optional extra.
    from policyc.emulator.loop import Loop
    from policyc.emulator.quirks import LayoutError
    from policyc.emulator.recorder import Recorder, open_recording
    from policyc.emulator.recording import RecordingError
    from policyc.kvmi import DIALECTS

    secret = options.cookie_file.read_bytes() if options.cookie_file is not None else None
    try:
        if options.record is None:
            return Loop(options, secret, console, out).run()
        with open_recording(options.record) as file:
            return Loop(options, secret, console, out, Recorder(file, DIALECTS[options.dialect])).run()
    except (LayoutError, RecordingError) as error:
        raise ValueError(str(error)) from error
