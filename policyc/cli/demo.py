"""`policyc demo`: the whole way once, on a guest that attacks itself. Everything shown is observed as it happens."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyc.cli.command_table import examples
from policyc.cli.demo_guest import GuestProcess
from policyc.cli.demo_scenes import SCENES, Expected, Observation, Scene, judge
from policyc.cli.demo_tool import WatchedTool
from policyc.cli.exit_codes import CommandError, ExitCode

if TYPE_CHECKING:
    from policyc.guest.profile import Profile
    from policyc.plan.model import Plan

__all__ = ["command"]

COLORS = {Expected.DENIED: "red", Expected.PATCHED: "green", Expected.PASSED: "green", Expected.LOGGED: "cyan"}


@click.command("demo", epilog=examples("policyc demo", "policyc demo --dialect v12"))
@click.option(
    "--dialect",
    type=click.Choice(["v7", "v12"]),
    default="v7",
    show_default=True,
    help="Which generation of KVMI the guest's kernel speaks.",
)
def command(dialect: str) -> ExitCode:
    """See a policy compiled, a guest attacked and the attacks stopped.

    The guest runs real x86-64 code on real page tables in a process of its own, with an emulated KVM at the other end
    of the socket. No root, no /dev/kvm. Needs the extra `policyc[guest]`.

    Exit code 0 means that every attack was stopped and everything legitimate went through, as seen in guest memory.
    """
    text = resources.files("policyc.cli").joinpath("demo.policy").read_text()
    profile, plan = _compile(text)
    with tempfile.TemporaryDirectory(prefix="policyc-demo-") as folder:
        _heading("The policy")
        click.echo(text.rstrip())
        _heading("The plan it compiles to")
        _show_plan(plan)
        return _enforce(plan, profile, Path(folder), dialect)


def _compile(text: str) -> tuple[Profile, Plan]:
    from policyc.compiler.pipeline import compile_policies
    from policyc.diagnostics import Source
    from policyc.emulator.image import small_system_map
    from policyc.guest.readers import build_profile

    profile = build_profile(small_system_map().encode())
    plan = compile_policies([Source("demo.policy", text)], profile).plan
    if plan is None:
        raise CommandError(ExitCode.INTERNAL, "the demo's own policy doesn't compile")
    return profile, plan


def _show_plan(plan: Plan) -> None:
    from policyc.plan.pages import page_runs
    from policyc.plan.tables import events_of, segments_of

    segments = segments_of(plan)
    click.echo("  bytes from _text          size  rules")
    for base in segments:
        for segment in segments[base]:
            rules = ", ".join(plan.rules[index].id for index in segment.members)
            span = f"{segment.start:#x}..{segment.end:#x}"
            click.echo(f"  {span:22} {segment.end - segment.start:#7x}  {rules}")
    click.echo("\n  pages from _text         count  rights  collateral")
    for run in page_runs(segments, plan.rules, plan.cpu, plan.guest.code):
        span = f"{run.start:#x}..{run.end:#x}"
        click.echo(f"  {span:22} {run.pages:7}  {run.allowed.rwx}     {run.collateral} bytes")
    click.echo("\n  events                          rules")
    for key, indices in events_of(plan.rules).items():
        numbers = "/".join(map(str, key.numbers))
        click.echo(f"  {key.word} {numbers:21} {', '.join(plan.rules[index].id for index in indices)}")


def _enforce(plan: Plan, profile: Profile, folder: Path, dialect: str) -> ExitCode:
    audit = folder / "audit.ndjson"
    tool = WatchedTool(plan, profile, folder / "guest.sock", audit)
    tool.start()
    guest = GuestProcess(folder / "guest.sock", dialect)
    try:
        _heading("The guest connects")
        armed = tool.wait_until_armed()
        click.echo(f"  ARMED over KVMI {dialect}: {armed['fact']}, kernel slid by {armed['slide']},")
        click.echo(f"  vCPUs stopped for {armed['stopped_ms']} ms")
        _heading("What happens in the guest, and what comes of it")
        started = tool.read("jiffies", 0, 8)
        missing = [_play(scene, tool, guest) for scene in SCENES]
        ticks = int.from_bytes(tool.read("jiffies", 0, 8), "little") - int.from_bytes(started, "little")
    finally:
        end = tool.stop()
        guest.stop()
    return _finish(audit, missing, ticks, left=end is not None and "let go" in end.reason)


def _play(scene: Scene, tool: WatchedTool, guest: GuestProcess) -> list[str]:
    """Have one scene played; returns what is missing for it to have gone as it should."""
    tool.verdict()
    events, exempted = tool.events, tool.exempted
    before = _bytes_of(scene, tool)
    console = guest.tell(scene.line)
    after = _bytes_of(scene, tool)
    record = tool.verdict()
    seen = Observation(before, after, console, record, tool.events - events, tool.exempted - exempted)
    missing = judge(scene, seen)
    mark = click.style("FAILED" if missing else scene.expected.value, fg="red" if missing else COLORS[scene.expected])
    click.echo(f"  {scene.title}")
    click.echo(f"    {mark}: {_outcome(seen)}")
    if scene.target is not None:
        place = str(scene.target)
        click.echo(f"    {place} over KVMI before {before.hex(' ')}")
        click.echo(f"    {'':{len(place)}}            after {after.hex(' ')}")
    for reason in missing:
        click.echo(click.style(f"    {reason}", fg="red"))
    return missing


def _bytes_of(scene: Scene, tool: WatchedTool) -> bytes:
    """The bytes that a scene is about, as KVMI shows them; none where it is about no memory."""
    target = scene.target
    return b"" if target is None else tool.read(target.symbol, target.offset, target.size)


def _outcome(seen: Observation) -> str:
    if seen.exempted:
        return f"an exception lets it through, {seen.exempted} bytes one by one"
    if seen.record is None:
        return "no rule is about these bytes: counted as collateral of their page"
    instruction = seen.record.get("instruction")
    shown = f" ({instruction})" if instruction else ""
    return f"{seen.record.get('done')}{shown}"


def _finish(audit: Path, missing: Sequence[Sequence[str]], ticks: int, *, left: bool) -> ExitCode:
    from policyc.runtime.audit import verify

    _heading("The audit log")
    for line in audit.read_text().splitlines():
        click.echo(f"  {_audit_line(json.loads(line))}")
    sound = verify(audit)
    whole = sound.broken_line is None and not sound.torn
    good = sum(not reasons for reasons in missing)
    checks = [
        (f"{good} of {len(missing)} scenes went as they should", good == len(missing)),
        (f"the guest ran on: {ticks} timer ticks", ticks > 0),
        (f"{sound.records} audit records, their chain is whole", whole and sound.records > 0),
        ("restrictions lifted, socket closed", left),
    ]
    _heading("Observed")
    for text, observed in checks:
        mark = click.style("yes" if observed else "NO ", fg="green" if observed else "red")
        click.echo(f"  {mark}  {text}")
    return ExitCode.OK if all(observed for _, observed in checks) else ExitCode.FINDINGS


def _audit_line(record: dict[str, object]) -> str:
    seq, kind, severity = record["seq"], record["kind"], record["severity"]
    if kind != "verdict":
        return f"{seq:>3}  {severity:8}  {record.get('state', kind)}: {record.get('fact', '')}"
    rules = record.get("rules")
    rule = rules[0]["rule"] if isinstance(rules, list) and rules else "-"
    what = f"{record.get('access', '')} {record.get('gpa', '')}".strip() or "34/24"
    return f"{seq:>3}  {severity:8}  {record['event']} {what}: {record['effect']} by {rule}: {record['done']}"


def _heading(text: str) -> None:
    click.echo("\n" + click.style(text, bold=True))
