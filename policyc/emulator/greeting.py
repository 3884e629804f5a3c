"""How a VMM introduces the machine: the forms of hello that deployed QEMUs write, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.addresses import Gpa
from policyc.kvmi import DIALECTS, V7, V12, E820Entry, Hello, HelloForm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.kvmi import Dialect

__all__ = ["HELLOS", "Introduction", "hello_of"]

_RAM: Final = 1
_X86_64: Final = 1


@dataclass(frozen=True, slots=True)
class Introduction:
    """One QEMU's way.

    Attributes:
        form: of the struct.
        names: whether name and start time are filled in; where they aren't, they are zero.
    """

    form: HelloForm
    names: bool = True


HELLOS: Final[Mapping[str, Introduction]] = {
    "v5": Introduction(HelloForm.V7, names=False),
    "v7": Introduction(HelloForm.V7),
    "v12": Introduction(HelloForm.V12),
    "v7-2.11": Introduction(HelloForm.E820),
}
"""By the QEMU branch; v6 writes what v5 does."""

_USUAL: Final[Mapping[Dialect, str]] = {V7: "v7", V12: "v12"}


def hello_of(dialect: str, wanted: str | None, *, uuid: bytes, name: str, start_time: int, ram: int) -> Hello:
    """The hello of a machine with `ram` bytes from address 0.

    Args:
        wanted: a name of `HELLOS`, or None for the one that goes with the dialect.
    """
    way = HELLOS[wanted or _USUAL[DIALECTS[dialect]]]
    mapped = way.form is HelloForm.E820
    return Hello(
        uuid=uuid,
        name=name if way.names else "",
        start_time=start_time if way.names else 0,
        max_gpa=Gpa(ram) if way.form is not HelloForm.V7 else None,
        e820=(E820Entry(0, ram, _RAM),) if mapped else (),
        cpu_type=_X86_64 if mapped else 0,
        form=way.form,
    )
