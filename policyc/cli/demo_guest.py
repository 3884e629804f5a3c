"""The guest of `policyc demo`: a process of its own, told what to do over its console."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue

from policyc.cli.exit_codes import CommandError, ExitCode

__all__ = ["GuestProcess"]

ANSWER_TIMEOUT = 30.0
"""Seconds for one answer of the guest's console; a slow machine takes a fraction of one."""


class GuestProcess:
    """`policyc guest run`, started and spoken to.

    Args:
        arguments: which guest, and what else it is told on its command line.

    Raises:
        CommandError: from `tell` and `expect`, where the guest ended or said nothing.
    """

    def __init__(self, socket: Path, dialect: str, *arguments: str) -> None:
        guest = arguments if arguments and not arguments[0].startswith("-") else ("--slide", "random", *arguments)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "policyc", "guest", "run"),
                *("--socket", str(socket), "--dialect", dialect, "--reconnect", "0.1", "--json"),
                *guest,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: SimpleQueue[Mapping[str, object] | None] = SimpleQueue()
        threading.Thread(target=self._read, name="demo-guest", daemon=True).start()
        # A guest that is spoken to waits to be told what to do, instead of trying everything by itself.
        self.tell("status")

    def tell(self, line: str) -> Mapping[str, object]:
        """Give the console a line such as `attack xchg`; returns what it says of it."""
        self.say(line)
        return self.expect(line.split()[0])

    def say(self, line: str) -> None:
        """Give the console a line, and wait for nothing."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def expect(self, kind: str) -> Mapping[str, object]:
        """The next line of this kind."""
        while True:
            try:
                said = self._lines.get(timeout=ANSWER_TIMEOUT)
            except Empty:
                raise CommandError(
                    ExitCode.TARGET_REFUSED, f"the guest said nothing for {ANSWER_TIMEOUT:g} seconds"
                ) from None
            if said is None:
                raise self._ended()
            if said.get("kind") == kind:
                return said

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                self._lines.put(said)
        self._lines.put(None)

    def _ended(self) -> CommandError:
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines()
        return CommandError(ExitCode.TARGET_REFUSED, said[0] if said else "the guest ended by itself")
