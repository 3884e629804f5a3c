"""From what was found out to what there is to say: all the rows, applied."""

from __future__ import annotations

from collections.abc import Iterator

from policyc.kvmi import V7
from policyc.runtime import doctor_guest, doctor_way
from policyc.runtime.doctor_case import Case, Finding, Level
from policyc.runtime.doctor_rows import Row, apply, each
from policyc.runtime.frame_trials import FrameOutcome, ProbeResult, ProbeVerdict

__all__ = ["findings_of"]

LEVELS = (Level.BROKEN, Level.WEAK, Level.NOTE, Level.GOOD)


def findings_of(case: Case) -> tuple[Finding, ...]:
    """What there is to say about a case, the heaviest first."""
    found = list(apply(ROWS, case))
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def _result(case: Case, verdict: ProbeVerdict) -> ProbeResult | None:
    """The write test's result, where it is this."""
    result = case.chart.probe
    return result if result is not None and result.verdict is verdict else None


def _reported(case: Case) -> Iterator[str]:
    if (result := _result(case, ProbeVerdict.REPORTED)) is not None:
        yield f"writes to protected frames are reported: {_frames(result, FrameOutcome.REPORTED)}"


def _partly(case: Case) -> Iterator[str]:
    if (result := _result(case, ProbeVerdict.PARTLY)) is not None:
        yield f"writes to protected frames are reported, as far as was seen: {_frames(result, FrameOutcome.REPORTED)}"


def _partly_in_v7(case: Case) -> Iterator[str]:
    negotiated = case.chart.negotiated
    if negotiated is not None and negotiated.dialect is V7 and _result(case, ProbeVerdict.PARTLY) is not None:
        yield "no frame whose number has bit 1 set was written to meanwhile, and those are the ones in doubt"


def _deaf(case: Case) -> Iterator[str]:
    if (result := _result(case, ProbeVerdict.DEAF)) is not None:
        heard = any(trial.outcome is FrameOutcome.REPORTED for trial in result.trials)
        others = "others were reported" if heard else "others couldn't be tried"
        yield (
            f"writes pass silently on protected frames whose number has bit 1 set, half of all frames: "
            f"{_frames(result, FrameOutcome.SILENT)}; {others}"
        )


def _silent(case: Case) -> Iterator[str]:
    if (result := _result(case, ProbeVerdict.SILENT)) is not None:
        yield f"writes to protected frames pass silently: {_frames(result, FrameOutcome.SILENT)}"


def _unproven(case: Case) -> Iterator[str]:
    if (result := _result(case, ProbeVerdict.UNPROVEN)) is not None:
        protected = [trial for trial in result.trials if trial.outcome is FrameOutcome.UNWRITTEN]
        unwritten = f"nobody wrote to {_frames(result, FrameOutcome.UNWRITTEN)}"
        refused = f"the kernel didn't protect {_frames(result, FrameOutcome.REFUSED)}"
        yield f"the write test brought no evidence: {result.reason or (unwritten if protected else refused)}"


def _cut_short(case: Case) -> Iterator[str]:
    result = case.chart.probe
    if result is not None and result.reason is not None and result.verdict is not ProbeVerdict.UNPROVEN:
        yield f"the write test was cut short: {result.reason}"


def _unrestored(case: Case) -> Iterator[str]:
    if case.chart.probe is not None:
        for refusal in case.chart.probe.unrestored:
            yield f"the write test couldn't put everything back itself: {refusal}"


def _frames(result: ProbeResult, outcome: FrameOutcome) -> str:
    frames = [f"{trial.gfn:#x}" for trial in result.trials if trial.outcome is outcome]
    return f"frame{'s' if len(frames) > 1 else ''} {', '.join(frames)}"


ROWS: tuple[Row, ...] = (
    *doctor_way.ROWS,
    each(
        "writes-pass",
        Level.BROKEN,
        _deaf,
        "some versions of virt/kvm/introspection/kvmi.c pass two arguments in swapped order: use a kernel without that",
    ),
    each("writes-pass-everywhere", Level.BROKEN, _silent, "this kernel can't guard memory, whatever it answers"),
    each("writes-unproven", Level.WEAK, _unproven, "try again while the guest is busy, or name its --profile"),
    each("writes-unproven-in-part", Level.WEAK, _partly_in_v7, "try again while the guest is busy"),
    each("writes-cut-short", Level.WEAK, _cut_short),
    each("rights-left", Level.WEAK, _unrestored, "the end of the connection did"),
    *doctor_guest.ROWS,
    each("writes-reported", Level.GOOD, _reported),
    each("writes-partly-reported", Level.GOOD, _partly),
)
