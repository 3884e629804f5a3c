"""What has to be typed on the other side, so that a guest comes: QEMU's options, and libvirt's XML."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

__all__ = ["libvirt_lines", "qemu_arguments", "qemu_lines"]

NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"

RECONNECT_SECONDS = 10
"""The introspection object refuses a chardev that doesn't try again."""


def qemu_arguments(socket: Path, secret: Path | None) -> tuple[tuple[str, str], ...]:
    """QEMU's options with their values; a comma in a path is written twice, as QEMU wants it."""
    chardev = f"socket,path={_value(socket)},id=policyc,reconnect={RECONNECT_SECONDS}"
    introspection = "introspection,id=kvmi,chardev=policyc"
    if secret is None:
        return ("-chardev", chardev), ("-object", introspection)
    key = f"secret,id=policyc-key,file={_value(secret)}"
    return ("-chardev", chardev), ("-object", key), ("-object", f"{introspection},key=policyc-key")


def qemu_lines(socket: Path, secret: Path | None) -> Sequence[str]:
    """The options as a shell takes them, one a line."""
    lines = [f"{option} {shlex.quote(value)}" for option, value in qemu_arguments(socket, secret)]
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def libvirt_lines(socket: Path, secret: Path | None) -> Sequence[str]:
    """The same for a domain's XML."""
    values = [word for pair in qemu_arguments(socket, secret) for word in pair]
    return [
        f"<domain type='kvm' xmlns:qemu='{NAMESPACE}'>",
        "  <qemu:commandline>",
        *(f"    <qemu:arg value={quoteattr(value)}/>" for value in values),
        "  </qemu:commandline>",
        "</domain>",
    ]


def _value(path: Path) -> str:
    return str(path).replace(",", ",,")
