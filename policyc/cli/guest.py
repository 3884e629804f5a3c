"""`policyc guest`: a guest that speaks KVMI and runs real code on real page tables, without KVM."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyc.cli.artifact_files import read_secret, shown_name
from policyc.cli.atomic_file import write_atomically
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.cli.guest_options import check_fits
from policyc.cli.guest_replay import command as replay
from policyc.cli.seconds import Seconds
from policyc.cli.termination import unwinding_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.emulator.routines import Routine

__all__ = ["command"]

DIALECTS = {"v7": "kvmi-v7", "v12": "kvmi-v12"}

HELLOS = ("v5", "v7", "v12", "v7-2.11")
QUIRK_NAMES = ("v7-gfn-bit1", "amd-msr", "crash-ignored", "hook-busy", "fetches-twice")
"""Spelt out, so that help needs no emulator; a test holds both against its tables."""

MAX_RAM_MIB = 1024

SECONDS = Seconds(0.0, 3600.0, min_open=True)


@click.group("guest")
def command() -> None:
    """Run a guest that speaks KVMI, without KVM.

    It connects to the tool's socket as QEMU does, and behind it real x86-64 code runs on real page tables whose rights
    are enforced. The guest is small, a kernel and a module that attacks it, or a real Linux kernel from Debian's
    packages. Needs no root and no /dev/kvm.
    """


@command.command(
    "run",
    short_help="run it until it is told to end",
    epilog=examples(
        "policyc guest run --socket /run/policyc/guest.sock",
        "policyc guest run --socket /run/policyc/guest.sock --dialect v12 --slide random --attack syscall-hook --once",
        "policyc guest run .guests/linux --workload --socket /run/policyc/guest.sock",
    ),
)
@click.argument("folder", metavar="[DIR]", required=False)
@click.option(
    "--socket", metavar="PATH", help="The UNIX socket that the tool listens on; without it the guest is alone."
)
@click.option(
    "--dialect",
    type=click.Choice([*DIALECTS]),
    default="v7",
    show_default=True,
    help="The generation of KVMI that its kernel speaks.",
)
@click.option(
    "--slide",
    default="0",
    show_default=True,
    metavar="BYTES|random",
    help="By how much the kernel is moved: a multiple of 0x200000.",
)
@click.option(
    "--attack",
    "--act",
    "attacks",
    multiple=True,
    metavar="NAME",
    help="Do this once the tool has armed, can be repeated; see `policyc guest attacks`.",
)
@click.option("--once", is_flag=True, help="End when all of it has been done.")
@click.option("--settle", type=SECONDS, default=3.0, show_default=True, help="Seconds after which it is done untold.")
@click.option("--reconnect", type=SECONDS, default=10.0, show_default=True, help="Seconds between two attempts.")
@click.option("--cookie-file", metavar="FILE", help="A secret that the tool must know.")
@click.option("--name", metavar="NAME", help="How the machine introduces itself; `small` or `linux` without it.")
@click.option("--cpu", type=click.Choice(["intel", "amd"]), default="intel", show_default=True, help="Whose processor.")
@click.option(
    "--ram",
    type=click.IntRange(16, MAX_RAM_MIB),
    default=64,
    show_default=True,
    metavar="MIB",
    help="Its memory.",
)
@click.option("--tick", type=SECONDS, default=0.01, show_default=True, help="Seconds between two timer interrupts.")
@click.option("--vcpus", type=click.IntRange(1, 8), default=1, show_default=True, help="How many vCPUs it has.")
@click.option(
    "--online", type=click.IntRange(1, 8), metavar="N", help="How many its kernel starts at boot; all without it."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order in which vCPUs take their turns.")
@click.option("--kpti", is_flag=True, help="Give user mode page tables of its own.")
@click.option(
    "--boot",
    type=Seconds(0.0, 3600.0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="Connect at power-on, that long before the kernel is loaded; 0 boots it first.",
)
@click.option("--workload", is_flag=True, help="Keep the shell of a Linux guest busy.")
@click.option(
    "--hello", type=click.Choice(HELLOS), help="How the VMM introduces it; as goes with the dialect without it."
)
@click.option(
    "--handshake-timeout", type=SECONDS, default=10.0, show_default=True, help="Seconds for the tool's answer."
)
@click.option("--unhook-timeout", type=SECONDS, default=60.0, show_default=True, help="Seconds for the tool to leave.")
@click.option(
    "--allow-command",
    "allow_commands",
    multiple=True,
    metavar="ID",
    help="Allow this command, by number or name, can be repeated; all without it.",
)
@click.option(
    "--allow-event",
    "allow_events",
    multiple=True,
    metavar="ID",
    help="Allow this event, by number or name, can be repeated; all without it.",
)
@click.option(
    "--quirk",
    "quirks",
    type=click.Choice(QUIRK_NAMES),
    multiple=True,
    help="A defect of deployed hosts, can be repeated; see `policyc guest quirks`.",
)
@click.option("--record", metavar="FILE", help="Keep what is said on the socket in FILE, see `policyc guest replay`.")
@click.option("--views", is_flag=True, help="Let the tool switch EPT views; on intel, in v7.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of sentences.")
def run(
    folder: str | None,
    socket: str | None,
    dialect: str,
    slide: str,
    attacks: tuple[str, ...],
    once: bool,
    settle: float,
    reconnect: float,
    cookie_file: str | None,
    name: str | None,
    cpu: str,
    ram: int,
    tick: float,
    vcpus: int,
    online: int | None,
    seed: int,
    kpti: bool,
    boot: float,
    hello: str | None,
    handshake_timeout: float,
    unhook_timeout: float,
    allow_commands: tuple[str, ...],
    allow_events: tuple[str, ...],
    quirks: tuple[str, ...],
    record: str | None,
    views: bool,
    workload: bool,
    as_json: bool,
) -> int:
    """Run the guest until it is told to end.

    Without DIR it is the small guest; with one that `policyc guest build-linux` made, the Linux kernel in it.

    It reads lines from standard input, `help` among them, and says what it did. Once the tool has armed, it does what
    --attack says; without one it does everything there is, unless it has been spoken to.

    Exit code 1 means that the machine ended by itself, on a fault on which its processor gives up or because the tool
    answered CRASH, or that its kernel has panicked and it wasn't reset since.
    """
    from policyc.emulator.defects import Quirk
    from policyc.emulator.options import GuestOptions
    from policyc.emulator.process import run_guest

    if find_spec("unicorn") is None:
        fact = "the guest needs the Unicorn engine, which isn't installed"
        raise CommandError(ExitCode.USAGE, fact, help="pip install 'policyc[guest]'")
    check_fits(click.get_current_context())
    for attack in attacks:
        _check_attack(attack, linux=folder is not None)
    for seconds in (settle, reconnect, tick, boot, handshake_timeout, unhook_timeout):
        # Not a number compares as if it were in every range.
        if not isfinite(seconds):
            raise click.BadParameter(f"{seconds} is not a number of seconds")
    if cookie_file is not None:
        read_secret(cookie_file)
    options = GuestOptions(
        socket=Path(socket) if socket is not None else None,
        dialect=DIALECTS[dialect],
        name=name or ("small" if folder is None else "linux"),
        snapshot=Path(folder) if folder is not None else None,
        workload=workload,
        cookie_file=Path(cookie_file) if cookie_file is not None else None,
        reconnect=reconnect,
        slide=_slide(slide),
        ram_mib=ram,
        cpu=cpu,
        tick=tick,
        vcpus=vcpus,
        online=online,
        seed=seed,
        kpti=kpti,
        boot=boot,
        hello=hello,
        handshake_timeout=handshake_timeout,
        unhook_timeout=unhook_timeout,
        allow_commands=allow_commands,
        allow_events=allow_events,
        quirks=frozenset(map(Quirk, quirks)),
        attacks=attacks,
        settle=settle,
        once=once,
        json=as_json,
        record=Path(record) if record is not None else None,
        views=views,
    )
    return run_guest(options, sys.stdin, sys.stdout)


@command.command(
    "attacks",
    short_help="list what it can be told to do",
    epilog=examples("policyc guest attacks", "policyc guest attacks --linux", "policyc guest attacks --format json"),
)
@click.option("--linux", is_flag=True, help="Of a Linux guest instead of the small one.")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For whom.")
def attacks(linux: bool, format: str) -> ExitCode:
    """List what the guest can be told to do: attacks that a policy should stop, and acts that it should not."""
    routines = _routines(linux=linux)
    if format == "json":
        listed = [
            {
                "kind": routine.kind.value,
                "name": name,
                "what": routine.what,
                "target": str(routine.target or "") or None,
            }
            for name, routine in routines.items()
        ]
        click.echo(json.dumps({"routines": listed}, indent=2))
        return ExitCode.OK
    width = max(map(len, routines))
    for name, routine in routines.items():
        click.echo(f"{routine.kind.value:6}  {name:{width}}  {routine.what}")
    return ExitCode.OK


@command.command("quirks", short_help="list the defects that it can have", epilog=examples("policyc guest quirks"))
def quirks() -> ExitCode:
    """List the defects of deployed kernels and VMMs that the guest's host can be given."""
    from policyc.emulator.defects import QUIRKS

    width = max(len(quirk.value) for quirk in QUIRKS)
    for quirk, what in QUIRKS.items():
        click.echo(f"{quirk.value:{width}}  {what}")
    return ExitCode.OK


@command.command(
    "profile", short_help="write its kernel's profile", epilog=examples("policyc guest profile -o small.profile")
)
@click.option("-o", "--output", required=True, metavar="FILE", help="Where the profile goes; - is standard output.")
def profile(output: str) -> ExitCode:
    """Write the profile of the guest's kernel, to compile policies against."""
    from policyc.emulator.image import small_system_map
    from policyc.guest.readers import build_profile
    from policyc.guest.store import encode

    content = encode(build_profile(small_system_map().encode()))
    if output == "-":
        sys.stdout.buffer.write(content)
        return ExitCode.OK
    write_atomically(Path(output), content)
    click.echo(f"{shown_name(output)}: the profile of the small guest's kernel", err=True)
    return ExitCode.OK


command.add_command(replay)


@command.command(
    "build-linux",
    short_help="build a Linux guest from Debian's packages",
    epilog=examples(
        "policyc guest build-linux -o .guests/linux",
        "policyc guest build-linux -o .guests/linux --kernel-package linux-image-6.1.0-56-cloud-amd64 --boots 3",
    ),
)
@click.option("-o", "--output", required=True, metavar="DIR", help="Where the snapshot goes.")
@click.option("--kernel-package", metavar="NAME", help="Instead of the newest kernel for virtual machines.")
@click.option("--seed", type=click.IntRange(1, 1 << 30), default=1, show_default=True, help="Of the boot's randomness.")
@click.option(
    "--boots",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Boot with so many seeds, and see that the kernel moves; the first is kept.",
)
def build_linux(output: str, kernel_package: str | None, seed: int, boots: int) -> ExitCode:
    """Build a Linux guest: boot a Debian kernel once, in software, and keep the machine as it is then.

    apt fetches a kernel for virtual machines, busybox, and QEMU if it isn't installed, into a folder of its own:
    nothing is installed, no root needed. The same packages and the same seed give the same snapshot, byte for byte. Its
    symbol table is DIR/kallsyms, for `policyc profile`.
    """
    from policyc.emulator.linux.build import DEFAULT_KERNEL, Recipe, build
    from policyc.emulator.linux.errors import BuildError, SnapshotError
    from policyc.emulator.linux.packages import check_kernel_name

    def say(line: str) -> None:
        click.echo(line, err=True)

    recipe = Recipe(kernel=kernel_package or DEFAULT_KERNEL, seed=seed, boots=boots)
    try:
        check_kernel_name(recipe.kernel)
        with unwinding_on_sigterm():
            build(Path(output).absolute(), recipe, say)
    except (BuildError, SnapshotError) as error:
        raise CommandError(ExitCode.USAGE, str(error), help=getattr(error, "help", None)) from None
    say(f"{shown_name(output)}: the snapshot of a Linux guest")
    return ExitCode.OK


def _routines(*, linux: bool) -> Mapping[str, Routine]:
    from policyc.emulator.linux import attacks as linux_attacks
    from policyc.emulator.routines import ROUTINES

    return linux_attacks.ROUTINES if linux else ROUTINES


def _check_attack(name: str, *, linux: bool) -> None:
    routines = _routines(linux=linux)
    if name not in routines:
        near = get_close_matches(name, routines, n=1)
        listing = f"policyc guest attacks{' --linux' if linux else ''}"
        hint = f"did you mean `{near[0]}`?" if near else f"`{listing}` lists what there is"
        raise CommandError(ExitCode.USAGE, f"the guest knows no attack or act `{name}`", help=hint)


def _slide(text: str) -> int | None:
    """The slide in bytes; None draws one."""
    from policyc.emulator.image import SLIDE_ALIGNMENT, SLIDE_LIMIT

    if text == "random":
        return None
    try:
        slide = int(text, 0)
    except ValueError:
        raise click.BadParameter(f"`{text}` is neither `random` nor a number such as {SLIDE_ALIGNMENT:#x}") from None
    if slide % SLIDE_ALIGNMENT or not 0 <= slide <= SLIDE_LIMIT:
        raise click.BadParameter(f"`{text}` is no multiple of {SLIDE_ALIGNMENT:#x} from 0 to {SLIDE_LIMIT:#x}")
    return slide
