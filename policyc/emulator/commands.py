"""KVMI commands carried out on the machine.

The connection has checked padding, lengths, ranges and permissions; a row does what the kernel's handler does after
that. A command without a row is answered as by a host without the feature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policyc.emulator.command_rows import CommandError
from policyc.emulator.vcpu_commands import VCPU_ROWS
from policyc.emulator.vm_commands import VM_ROWS
from policyc.kvmi import ErrorCode

if TYPE_CHECKING:
    from policyc.emulator.introspection import Introspection
    from policyc.kvmi import Command, ReplyData

__all__ = ["execute"]


def execute(session: Introspection, command: Command) -> ReplyData:
    """Carry a command out.

    Raises:
        CommandError: the kernel would refuse it.
    """
    handler = VM_ROWS.handler(type(command)) or VCPU_ROWS.handler(type(command))
    if handler is None:
        raise CommandError(ErrorCode.EOPNOTSUPP)
    return handler(session, command)
