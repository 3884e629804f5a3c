"""The kernel's side of a KVMI conversation about one machine: what the tool asks is done, what happens is reported.

There is no socket here: `receive` takes what came and `outgoing` gives what is to be sent. The connection has judged
every message already (`policyc.kvmi.kernel`); what depends on the machine is decided by the rows of `commands`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policyc.emulator.commands import COMMANDS
from policyc.kvmi import (
    NEED_DATA,
    V12,
    BadCommandReceived,
    CommandReceived,
    CpuMode,
    ErrorCode,
    EventKind,
    EventReplyReceived,
    HelloAnswer,
    HelloForm,
    Hello,
    KernelConnection,
    Received,
    RemoteProtocolError,
    State,
    cookie_hash,
)

if TYPE_CHECKING:
    from policyc.emulator.machine import Machine
    from policyc.emulator.vcpu import Vcpu
    from policyc.kvmi import Dialect, EventData

__all__ = ["Introspection"]
