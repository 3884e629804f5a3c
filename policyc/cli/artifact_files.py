"""Reads the files that a command names: whole, up to a limit, and refused under the name that the user gave."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyc.cli.exit_codes import CommandError, ExitCode, failure_of

if TYPE_CHECKING:
    from policyc.guest.profile import Profile
    from policyc.plan.model import Plan

__all__ = ["STDIN", "load_plan", "load_profile", "named", "read_file", "read_secret", "shown_name"]

STDIN = "-"
"""The name under which standard input is given."""

MAX_SECRET_BYTES = 64 * 1024
"""A cookie's secret that is larger isn't one."""


def load_profile(name: str) -> Profile:
    """The profile in the file called `name`.

    Raises:
        OSError: it can't be read.
        CommandError: it is no profile, or not one that this program may use.
    """
    from policyc.guest.store import MAX_FILE_BYTES, decode

    with named(name):
        return decode(read_file(name, limit=MAX_FILE_BYTES))


def load_plan(name: str) -> Plan:
    """The plan in the file called `name`.

    Raises:
        OSError: it can't be read.
        CommandError: it is no plan, or not one that this program may enforce.
    """
    from policyc.plan.store import MAX_PLAN_BYTES, load

    with named(name):
        return load(read_file(name, limit=MAX_PLAN_BYTES))


def read_file(name: str, *, limit: int) -> bytes:
    """The bytes of the file called `name`, or of standard input.

    What is larger than `limit` is cut one byte behind it, so that whoever asked still sees that it is too large.

    Raises:
        OSError: it can't be read; its `filename` is `name`.
    """
    if name == STDIN:
        return sys.stdin.buffer.read(limit + 1)
    try:
        with Path(name).open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        # A read that fails, unlike an open, doesn't say of which file.
        raise type(error)(error.errno, error.strerror, name) from error


def read_secret(name: str) -> bytes:
    """The secret in the file called `name`, byte for byte: a line end belongs to it, as it does for QEMU.

    Raises:
        OSError: it can't be read.
        CommandError: it is empty, or too large to be one.
    """
    secret = read_file(name, limit=MAX_SECRET_BYTES)
    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise CommandError(ExitCode.USAGE, f"`{shown_name(name)}`: a secret has 1 to {MAX_SECRET_BYTES} bytes")
    return secret


def shown_name(name: str) -> str:
    """How messages call the file."""
    return "<stdin>" if name == STDIN else click.format_filename(name)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the file's name before what a reader says that refuses the file.

    Raises:
        CommandError: the reader refused it.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        failure = failure_of(error)
        if failure is None or failure.code is not ExitCode.ARTIFACT_REFUSED:
            raise
        raise CommandError(failure.code, f"`{shown_name(name)}`: {failure.fact}", help=failure.help) from error
