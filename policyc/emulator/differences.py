"""What the command handlers of one generation do otherwise than another's: one column each, one row a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.kvmi import V7, V12, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.kvmi import Dialect

__all__ = ["DIFFERENCES", "Differences"]


@dataclass(frozen=True, slots=True)
class Differences:
    """What one generation's handlers do otherwise than another's.

    Attributes:
        max_message_size: as GET_VERSION announces it.
        frame_without_memory: error of SET_PAGE_ACCESS for it, None for silence.
        unreadable_msr: error of GET_REGISTERS, None if the value and all that follow stay 0.
        msrs_max, too_many_msrs: how many fit into a reply, and the error for more.
        no_singlestep: error where the processor can't single-step.
        singlestep_reports: SINGLESTEP events come without being switched on.
        busy_while_stepping: INJECT_EXCEPTION is refused while single-stepping is on.
        breakpoint_again: error for switching BREAKPOINT to what it is already.
        descriptor_on_amd: DESCRIPTOR events can be had on AMD.
        steps_by_itself: CONTINUE single-steps an instruction that KVM's emulator doesn't know; else the event repeats.
    """

    max_message_size: int
    frame_without_memory: ErrorCode | None
    unreadable_msr: ErrorCode | None
    msrs_max: int
    too_many_msrs: ErrorCode
    no_singlestep: ErrorCode
    singlestep_reports: bool
    busy_while_stepping: bool
    breakpoint_again: ErrorCode | None
    descriptor_on_amd: bool
    steps_by_itself: bool


DIFFERENCES: Final[Mapping[Dialect, Differences]] = {
    V7: Differences(
        max_message_size=0,
        frame_without_memory=None,
        unreadable_msr=None,
        msrs_max=482,
        too_many_msrs=ErrorCode.ENOMEM,
        no_singlestep=ErrorCode.EINVAL,
        singlestep_reports=False,
        busy_while_stepping=False,
        breakpoint_again=ErrorCode.EOPNOTSUPP,
        descriptor_on_amd=False,
        steps_by_itself=True,
    ),
    V12: Differences(
        max_message_size=8184,
        frame_without_memory=ErrorCode.EINVAL,
        unreadable_msr=ErrorCode.EINVAL,
        msrs_max=481,
        too_many_msrs=ErrorCode.EINVAL,
        no_singlestep=ErrorCode.EOPNOTSUPP,
        singlestep_reports=True,
        busy_while_stepping=True,
        breakpoint_again=None,
        descriptor_on_amd=True,
        steps_by_itself=False,
    ),
}
