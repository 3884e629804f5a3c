"""Runs `policyc`: as a shell does, in a process of its own, or in this process, which takes a tenth of the time."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from policyc.cli.main import main

__all__ = ["Ran", "call_policyc", "run_policyc"]

COMMAND = (sys.executable, "-m", "policyc")

LIMIT_SECONDS = 60
"""Far more than any command takes; a test that hangs ends here."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


def run_policyc(
    *arguments: str | Path,
    cwd: Path | None = None,
    input: str | bytes = b"",
    env: Mapping[str, str] | None = None,
    without: tuple[str, ...] = ("NO_COLOR", "POLICYC_DEBUG", "TERM"),
) -> Ran:
    """Run `policyc` with `arguments` to its end.

    Args:
        cwd: where it runs.
        input: its standard input.
        env: variables to set on top of this process's own.
        without: variables to take away first.
    """
    environment = {name: value for name, value in os.environ.items() if name not in without} | dict(env or {})
    ran = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        input=input.encode() if isinstance(input, str) else input,
        env=environment,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def call_policyc(*arguments: str | Path, cwd: Path, input: str | bytes = b"") -> Ran:
    """Run `policyc` with `arguments` in the folder `cwd` of this process, whose streams it doesn't touch."""
    content = input.encode() if isinstance(input, str) else input
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(start), "utf-8") for start in (content, b"", b""))
    with chdir(cwd), patch("sys.stdin", stdin), patch("sys.stdout", stdout), patch("sys.stderr", stderr):
        code = main([str(argument) for argument in arguments])
    return Ran(code, _written(stdout), _written(stderr))


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    content = stream.buffer
    assert isinstance(content, io.BytesIO)
    return content.getvalue().decode()
