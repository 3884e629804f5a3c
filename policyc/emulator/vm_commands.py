"""Commands that the receiver carries out at once: version, memory, rights, pauses.

Source: virt/kvm/introspection/kvmi_msg.c.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from policyc.addresses import gfn_of
from policyc.emulator.command_rows import CommandError, Rows, needs_views, switch
from policyc.emulator.defects import Quirk
from policyc.emulator.differences import DIFFERENCES
from policyc.emulator.hooks import PAUSES_MAX
from policyc.emulator.memory import ALL_RIGHTS, NoMemoryError
from policyc.emulator.walk import WRITE
from policyc.kvmi import (
    DONE,
    ControlCleanup,
    ControlVmEvents,
    ErrorCode,
    EventKind,
    Features,
    GetInfo,
    GetInfoReply,
    GetMapToken,
    GetMapTokenReply,
    GetMaxGfn,
    GetMaxGfnReply,
    GetVersion,
    GetVersionReply,
    PauseVcpu,
    ReadPhysical,
    ReadPhysicalReply,
    ReplyData,
    SetPageAccess,
    SetPageSve,
    WritePhysical,
    page_entries,
)

if TYPE_CHECKING:
    from policyc.emulator.introspection import Introspection

__all__ = ["VM_ROWS"]

VM_ROWS: Final = Rows()

_MAP_TOKENS_MAX: Final = 9
_MAP_TOKEN_SECONDS: Final = 3.0
"""How many tokens may be out and for how long they count, as seen on a running v7 kernel."""

_DEAF_BIT: Final = 2
_ENTRY: Final = 16


@VM_ROWS.add(GetVersion)
def _get_version(session: Introspection, _: GetVersion) -> ReplyData:
    features = Features(singlestep=session.machine.cpu == "intel", vmfunc=session.views, eptp=session.views)
    return GetVersionReply(max_message_size=DIFFERENCES[session.dialect].max_message_size, features=features)


@VM_ROWS.add(GetInfo)
def _get_info(session: Introspection, _: GetInfo) -> ReplyData:
    return GetInfoReply(len(session.machine.vcpus))


@VM_ROWS.add(GetMaxGfn)
def _get_max_gfn(session: Introspection, _: GetMaxGfn) -> ReplyData:
    return GetMaxGfnReply(session.machine.memory.end_gfn)


@VM_ROWS.add(ControlVmEvents)
def _control_vm_events(session: Introspection, command: ControlVmEvents) -> ReplyData:
    assert isinstance(command.event, EventKind)
    switch(session.vm_events, command.event, enable=command.enable)
    return DONE


@VM_ROWS.add(ControlCleanup)
def _control_cleanup(session: Introspection, command: ControlCleanup) -> ReplyData:
    session.cleanup = command.enable
    return DONE


@VM_ROWS.add(GetMapToken)
def _get_map_token(session: Introspection, _: GetMapToken) -> ReplyData:
    now = session.clock()
    tokens = session.map_tokens
    while tokens and now - tokens[0] >= _MAP_TOKEN_SECONDS:
        tokens.popleft()
    if len(tokens) >= _MAP_TOKENS_MAX:
        raise CommandError(ErrorCode.EAGAIN)
    tokens.append(now)
    return GetMapTokenReply(os.urandom(32))


@VM_ROWS.add(ReadPhysical)
def _read_physical(session: Introspection, command: ReadPhysical) -> ReplyData:
    try:
        return ReadPhysicalReply(session.machine.memory.read(command.gpa, command.size))
    except NoMemoryError:
        raise CommandError(ErrorCode.ENOENT) from None


@VM_ROWS.add(WritePhysical)
def _write_physical(session: Introspection, command: WritePhysical) -> ReplyData:
    try:
        session.machine.memory.write(command.gpa, command.data)
    except NoMemoryError:
        raise CommandError(ErrorCode.ENOENT) from None
    return DONE


@VM_ROWS.add(SetPageAccess)
def _set_page_access(session: Introspection, command: SetPageAccess) -> ReplyData:
    """Every entry is tried; the first error is the answer, and what was good stays applied."""
    if command.view:
        needs_views(session)
    memory = session.machine.memory
    errors: list[ErrorCode | None] = []
    good: list[tuple[int, int]] = []
    for number, (gpa, rights) in enumerate(page_entries(command)):
        padding = command.entries[number * _ENTRY + 9 : (number + 1) * _ENTRY]
        gfn = gfn_of(gpa)
        if rights > ALL_RIGHTS or any(padding):
            errors.append(ErrorCode.EINVAL)
        elif gfn >= memory.end_gfn:
            errors.append(DIFFERENCES[session.dialect].frame_without_memory)
        else:
            deaf = Quirk.V7_GFN_BIT1 in session.quirks and gfn & _DEAF_BIT
            good.append((gfn, rights | WRITE if deaf else rights))
    memory.restrict(good, command.view)
    session.restricted += 1
    error = next((error for error in errors if error is not None), None)
    if error is not None:
        raise CommandError(error)
    return DONE


@VM_ROWS.add(SetPageSve)
def _set_page_sve(session: Introspection, command: SetPageSve) -> ReplyData:
    """The bit is kept for exceptions that never come; whether there is a frame isn't looked at."""
    if command.view:
        needs_views(session)
    return DONE


@VM_ROWS.add(PauseVcpu)
def _pause(session: Introspection, command: PauseVcpu) -> ReplyData:
    """No vCPU is inside the guest while commands are carried out, so `wait` has nothing to wait for.

    A vCPU that isn't started is counted too: its event comes before its first instruction.
    """
    hooks = session.machine.vcpus[command.vcpu].hooks
    if hooks.pauses >= PAUSES_MAX:
        raise CommandError(ErrorCode.EBUSY)
    hooks.pauses += 1
    return DONE
