"""QEMU under software emulation: started, asked by QMP, ended.

The guest's time is counted in instructions (`-icount`), a nanosecond each, and skips what it would sleep; randomness
comes from a seed. So the same packages and the same seed give the same boot, slide included, and time goes by as the
emulator that continues the guest lets it go by.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final, TextIO

from policyc.emulator.linux.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CPU", "Qemu", "installed_qemu"]

CPU: Final = "qemu64,vendor=GenuineIntel,family=6,model=94,stepping=3,+smep,+smap,+rdrand"
"""A processor whose features the engine has as well: no AVX, no XSAVE; an Intel one, since v12 loses MSRs on AMD."""

PROGRAM: Final = "qemu-system-x86_64"
ANSWER_SECONDS: Final = 30.0
LINE_MAX: Final = 1 << 20
_LIBRARIES: Final = "lib/x86_64-linux-gnu"
_DATA: Final = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


def installed_qemu() -> str | None:
    """The machine's own QEMU, if it has one."""
    return shutil.which(PROGRAM)


class Qemu:
    """A running QEMU; its sockets and the guest's serial output are files below `folder`.

    Args:
        root: where its package was unpacked, or None for the installed one.
        kernel, initrd: files.
        append: the kernel's command line.
        ram_mib: RAM in MiB.
        seed: of all randomness.

    Raises:
        BuildError: it can't be started.
    """

    def __init__(
        self, root: Path | None, folder: Path, kernel: Path, initrd: Path, append: str, ram_mib: int, seed: int
    ) -> None:
        self.console = folder / "console"
        self.symbols = folder / "symbols"
        self._folder = folder
        self._log = folder / "qemu.log"
        program, environment, data = _where(root)
        serial = [
            word
            for name in ("console", "symbols")
            for word in ("-chardev", f"file,id={name},path={folder / name}", "-serial", f"chardev:{name}")
        ]
        command = [
            *(program, *data, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-machine", "pc,accel=tcg", "-cpu", CPU, "-m", str(ram_mib), "-smp", "1"),
            *("-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", str(seed)),
            *serial,
            *("-kernel", str(kernel), "-initrd", str(initrd), "-append", append),
            *("-S", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
            *("-gdb", f"unix:{folder / 'gdb'},server=on,wait=off"),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._ends: list[socket.socket | TextIO] = []
        try:
            self._stream = self._connect()
            self.version = str(self._greeting())
            self._execute("qmp_capabilities")
        except BaseException:
            self.end()
            raise

    @property
    def gdb(self) -> Path:
        """The socket of GDB's stub."""
        return self._folder / "gdb"

    def go_on(self) -> None:
        """Let the guest run."""
        self._execute("cont")

    def monitor(self, line: str) -> str:
        """What the human monitor answers to a line."""
        return str(self._execute("human-monitor-command", {"command-line": line}))

    def save_memory(self, size: int, target: Path) -> None:
        """Write the first `size` bytes of RAM to a file."""
        self._execute("pmemsave", {"val": 0, "size": size, "filename": str(target)})

    def wait_for_line(self, line: bytes, seconds: float) -> None:
        """Wait until the console has said something.

        Raises:
            BuildError: it doesn't in time, or QEMU has ended.
        """
        deadline = time.monotonic() + seconds
        while line not in (said := self.console.read_bytes() if self.console.exists() else b""):
            if self._process.poll() is not None:
                raise BuildError(f"QEMU ended while the guest booted: {self._problem(said)}")
            if time.monotonic() > deadline:
                raise BuildError(f"the guest didn't boot within {seconds:.0f} s: {self._problem(said)}")
            time.sleep(0.05)

    def end(self) -> None:
        """Stop the process, and wait for it."""
        for end in self._ends:
            end.close()
        self._process.kill()
        self._process.wait()

    def _problem(self, said: bytes) -> str:
        log = self._log.read_text(errors="replace").strip().splitlines()
        lines = said.decode("ascii", "replace").strip().splitlines()
        return ascii((log or lines or ["it said nothing"])[-1])

    def _connect(self) -> TextIO:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(ANSWER_SECONDS)
            try:
                link.connect(str(self._folder / "qmp"))
            except OSError as error:
                link.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise BuildError(f"QEMU didn't start: {self._problem(b'')} ({error})") from None
                time.sleep(0.02)
            else:
                stream = link.makefile("rw", encoding="utf-8")
                self._ends += [stream, link]
                return stream

    def _greeting(self) -> object:
        version = self._receive()["QMP"]
        assert isinstance(version, dict)
        return version["version"]["package"] or version["version"]["qemu"]

    def _execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        self._stream.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
        self._stream.flush()
        while True:
            answer = self._receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise BuildError(f"QEMU refused {command}: {answer['error']}")

    def _receive(self) -> dict[str, object]:
        try:
            line = self._stream.readline(LINE_MAX)
        except TimeoutError:
            line = ""
        if not line:
            raise BuildError(f"QEMU doesn't answer: {self._problem(b'')}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


def _where(root: Path | None) -> tuple[str, dict[str, str], list[str]]:
    environment = dict(os.environ)
    if root is None:
        return PROGRAM, environment, []
    folders = [root / "usr" / _LIBRARIES, root / _LIBRARIES]
    folders += [path for path in folders[0].glob("*") if path.is_dir() and any(path.glob("*.so*"))]
    environment["LD_LIBRARY_PATH"] = ":".join(map(str, folders))
    data = [word for path in _DATA for word in ("-L", str(root / path))]
    return str(root / "usr/bin" / PROGRAM), environment, data
