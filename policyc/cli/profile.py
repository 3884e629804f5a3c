"""`policyc profile`: makes a guest profile from the kernel's symbols, and shows what one holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from policyc.cli.artifact_files import load_profile, named, read_file, shown_name
from policyc.cli.atomic_file import write_atomically
from policyc.cli.command_table import examples
from policyc.cli.exit_codes import CommandError, ExitCode
from policyc.diagnostics import printable

if TYPE_CHECKING:
    from policyc.guest.profile import Image, Missing, Profile, Symbol

__all__ = ["command"]

MAX_LISTED_SYMBOLS = 1000
"""Symbols that one name or pattern may print; a kernel has some hundred thousand."""


@click.group("profile")
def command() -> None:
    """Find out where a guest's kernel has its sections and symbols.

    A profile is what policies are compiled against. It carries the kernel's identity, so that a plan made for one
    build is never enforced on another.
    """


@command.command(
    "build",
    short_help="make a profile from a table of symbols",
    epilog=examples(
        "policyc profile build System.map -o kernel.profile",
        "policyc profile build kallsyms.txt --banner version.txt -o kernel.profile",
    ),
)
@click.argument("source", metavar="SOURCE")
@click.option("-o", "--output", required=True, metavar="FILE", help="Where the profile goes; - is standard output.")
@click.option(
    "--banner",
    metavar="FILE",
    help="The guest's /proc/version, which tells kernels apart that have the same symbols.",
)
def build(source: str, output: str, banner: str | None) -> ExitCode:
    """Make a profile from SOURCE: a System.map, or the guest's /proc/kallsyms as root reads it; - is standard input."""
    from policyc.guest.kallsyms import MAX_TABLE_BYTES
    from policyc.guest.readers import MAX_BANNER, build_profile, clean_banner
    from policyc.guest.store import encode

    if banner is not None:
        with named(banner):
            banner = clean_banner(read_file(banner, limit=2 * MAX_BANNER).decode("ascii", "backslashreplace"))
    with named(source):
        profile = build_profile(read_file(source, limit=MAX_TABLE_BYTES), banner=banner)
    if output == "-":
        sys.stdout.buffer.write(encode(profile))
        return ExitCode.OK
    write_atomically(Path(output), encode(profile))
    click.echo(f"{shown_name(output)}: {_size(profile)}", err=True)
    return ExitCode.OK


@command.command(
    "show",
    short_help="show what a profile holds",
    epilog=examples(
        "policyc profile show kernel.profile",
        "policyc profile show kernel.profile kernel:sys_call_table 'kernel:*_memcpy'",
    ),
)
@click.argument("profile", metavar="FILE")
@click.argument("names", nargs=-1, metavar="[IMAGE:SYMBOL]...")
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For whom.")
def show(profile: str, names: tuple[str, ...], format: str) -> ExitCode:
    """Show what the profile in FILE holds; or, where names or patterns follow, the symbols that they mean."""
    loaded = load_profile(profile)
    if names:
        return _show_symbols(loaded, names, format)
    if format == "json":
        click.echo(json.dumps(_summary(loaded), indent=2))
    else:
        click.echo("\n".join(_text(loaded)))
    return ExitCode.OK


def _show_symbols(profile: Profile, names: tuple[str, ...], format: str) -> ExitCode:
    """Print the symbols that each of `names` means, and say why where it means none."""
    found: list[dict[str, object]] = []
    code = ExitCode.OK
    for name in names:
        try:
            image, symbols = _look_up(profile, name)
        except CommandError as error:
            code = error.code
            click.echo("\n".join(error.lines()), err=True)
            continue
        found += (_symbol(image, symbol) for symbol in symbols[:MAX_LISTED_SYMBOLS])
        if len(symbols) > MAX_LISTED_SYMBOLS:
            more = len(symbols) - MAX_LISTED_SYMBOLS
            click.echo(f"note: `{name}` means {more} more symbols, which aren't listed", err=True)
    if format == "json":
        click.echo(json.dumps({"symbols": found}, indent=2))
    else:
        for symbol in found:
            size = f"{symbol['size']:#x}{' (inferred)' if symbol['size_inferred'] else ''}"
            click.echo(f"{symbol['address']}  {symbol['kind']:14}  {size:18}  {symbol['name']}")
    return code


def _look_up(profile: Profile, name: str) -> tuple[Image, tuple[Symbol, ...]]:
    """What `IMAGE:SYMBOL` means.

    Raises:
        click.UsageError: it isn't of that form.
        CommandError: it means nothing in this profile.
    """
    image_name, colon, pattern = name.partition(":")
    if not colon:
        raise click.UsageError(f"`{name}` names no image: write `kernel:{name}`")
    image = profile.image(image_name)
    if image is None:
        raise _refusal(profile.missing_image(image_name))
    symbols = image.glob(pattern) if "*" in pattern else image.symbol(pattern)
    if not symbols:
        raise _refusal(image.missing_symbol(pattern))
    return image, symbols


def _refusal(missing: Missing) -> CommandError:
    return CommandError(ExitCode.FINDINGS, missing.message, help=missing.help)


def _symbol(image: Image, symbol: Symbol) -> dict[str, object]:
    return {
        "name": f"{image.name}:{symbol.name}",
        "address": f"{symbol.gva:#018x}",
        "size": symbol.size,
        "size_inferred": symbol.size_inferred,
        "kind": symbol.kind.value,
    }


def _summary(profile: Profile) -> dict[str, object]:
    """All of a profile but its symbols, as JSON has it."""
    return {
        "os": profile.os,
        "arch": profile.arch,
        "digest": profile.digest,
        "source": {"kind": profile.source.kind, "digest": profile.source.digest},
        "identity": {"build_id": profile.identity.build_id, "banner": profile.identity.banner},
        "images": [
            {
                "name": image.name,
                "base": None if image.base is None else f"{image.base:#018x}",
                "symbols": len(image.symbols),
                "sections": {
                    name: {"start": f"{span.start:#018x}", "end": f"{span.end:#018x}"}
                    for name, span in image.sections.items()
                },
                "absent_sections": dict(image.absent_sections),
            }
            for image in profile.images.values()
        ],
    }


def _text(profile: Profile) -> Iterator[str]:
    identity = profile.identity
    yield f"{profile.os} {profile.arch}: {_size(profile)}"
    yield f"  banner    {printable(identity.banner) if identity.banner else 'unknown (--banner adds it)'}"
    yield f"  build id  {identity.build_id or 'unknown'}"
    yield f"  made of   {profile.source.kind} {profile.source.digest}"
    yield f"  digest    {profile.digest}"
    for image in profile.images.values():
        base = "lies elsewhere after each load" if image.base is None else f"base {image.base:#018x}"
        yield f"\n{image.name}: {_count(len(image.symbols), 'symbol')}, {base}"
        for name, span in image.sections.items():
            yield f"  {name:9} {span.start:#018x}..{span.end:#018x}  {span.size:#x} bytes"
        for name, reason in image.absent_sections.items():
            yield f"  {name:9} unknown: {reason}"


def _size(profile: Profile) -> str:
    modules = len(profile.images) - 1
    symbols = sum(len(image.symbols) for image in profile.images.values())
    images = f"the kernel and {_count(modules, 'module')}" if modules else "the kernel"
    return f"{_count(symbols, 'symbol')}, {images}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
