"""`policyc guest`: the guest alone, and at the other end of `policyc run`, each a process as users start them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from policyc.cli.guest import command as guest
from policyc.cli.guest_options import MISFITS
from policyc.emulator.image import small_system_map
from policyc.emulator.linux import attacks as linux_attacks
from policyc.emulator.routines import ROUTINES
from policyc.guest.readers import build_profile
from policyc.guest.store import load
from tests.support.policyc_command import Ran, call_policyc, run_policyc

POLICY = """\
policy "small"
for linux x86_64

text: deny write to kernel .text
rodata: deny write to kernel .rodata
call: on hypercall 34/24 log
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the guest's profile, and a plan for it."""
    (tmp_path / "small.policy").write_text(POLICY)
    made = call_policyc("guest", "profile", "-o", "small.profile", cwd=tmp_path)
    assert made == Ran(0, "", "small.profile: the profile of the small guest's kernel\n")
    compile = ("compile", "small.policy", "--profile", "small.profile", "-o", "plan.json")
    assert call_policyc(*compile, cwd=tmp_path).code == 0
    return tmp_path


# ---- what needs no guest


def test_profile__is_that_of_the_kernel(folder: Path) -> None:
    assert load(folder / "small.profile") == build_profile(small_system_map().encode())
    written = run_policyc("guest", "profile", "-o", "-", cwd=folder)
    assert written == Ran(0, (folder / "small.profile").read_text(), "")


def test_attacks__lists_them_all(tmp_path: Path) -> None:
    ran = call_policyc("guest", "attacks", cwd=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    shown = [line.split(maxsplit=2) for line in ran.out.splitlines()]
    assert shown == [[routine.kind.value, name, routine.what] for name, routine in ROUTINES.items()]


def test_attacks__lists_those_of_a_linux_guest(tmp_path: Path) -> None:
    ran = call_policyc("guest", "attacks", "--linux", cwd=tmp_path)
    shown = [line.split(maxsplit=2) for line in ran.out.splitlines()]
    assert shown == [[routine.kind.value, name, routine.what] for name, routine in linux_attacks.ROUTINES.items()]


def test_misfits__are_of_options_that_there_are() -> None:
    command = guest.commands["run"]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {option for misfit in MISFITS for option in misfit.options} <= options


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["d", "--slide", "random"], "--slide is for the small guest: a snapshot has its own"),
        (["d", "--cpu", "amd"], "--cpu is for the small guest: a snapshot has its own"),
        (["d", "--ram", "64"], "--ram is for the small guest: a snapshot has its own"),
        (["d", "--seed", "0"], "--seed is for the small guest: a snapshot has its own"),
        (["--workload"], "--workload is for a Linux guest, whose folder has to be named: the small one has no shell"),
        (["--record", "f"], "--record is about the conversation with a tool: name its --socket"),
        (["--name", "n" * 80], "--name is about the conversation with a tool: name its --socket"),
        (["--dialect", "v7"], "--dialect is about the conversation with a tool: name its --socket"),
        (["d", "--quirk", "hook-busy"], "--quirk is about the conversation with a tool: name its --socket"),
        (["--socket", "s", "--views", "--dialect", "v12"], "--views takes --dialect v7 and --cpu intel"),
        (["--socket", "s", "--views", "--cpu", "amd"], "--views takes --dialect v7 and --cpu intel"),
        (["--socket", "s", "--quirk", "amd-msr"], "--quirk amd-msr is a defect on AMD processors: say --cpu amd"),
        (["d", "--attack", "xchg"], "the guest knows no attack or act `xchg`"),
        (["--attack", "core-pattern"], "the guest knows no attack or act `core-pattern`"),
    ],
)
def test_run__refuses_what_its_guest_cant_be_told(tmp_path: Path, arguments: list[str], problem: str) -> None:
    ran = call_policyc("guest", "run", *arguments, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert problem in ran.err
    assert [*tmp_path.iterdir()] == []


def test_run__says_where_there_is_no_snapshot(tmp_path: Path) -> None:
    ran = run_policyc("guest", "run", "nowhere", cwd=tmp_path)
    assert ran == Ran(
        2,
        "",
        "error: `nowhere` has no snapshot that can be continued: manifest.json: no such file or directory\n"
        "  help: `policyc guest build-linux -o nowhere` builds one\n",
    )


def test_run__says_which_snapshot_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "manifest.json").write_bytes(b'{"format": \x01}')
    ran = run_policyc("guest", "run", "snap", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: `snap` has no snapshot that can be continued: manifest.json: not JSON: ")
    assert ran.err.endswith("\n  help: `policyc guest build-linux -o snap` builds one\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--record", "nowhere/x"], "error: `nowhere/x`: no such file or directory\n"),
        (["--allow-event", "pff"], "error: no event of kvmi-v7 is `pff`; did you mean `pf`?\n"),
        (["--vcpus", "2", "--online", "3"], "error: 3 of 2 vCPUs can't be online\n"),
    ],
)
def test_run__says_as_an_error_why_it_cant_start(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert run_policyc("guest", "run", "--socket", "s", *arguments, cwd=tmp_path) == Ran(2, "", said)


def test_run__leaves_no_recording_of_a_machine_that_cant_be_made(tmp_path: Path) -> None:
    options = ["--vcpus", "2", "--online", "3", "--record", "talk"]
    assert call_policyc("guest", "run", "--socket", "s", *options, cwd=tmp_path).code == 2
    assert [*tmp_path.iterdir()] == []


def test_build_linux__says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = call_policyc("guest", "build-linux", "-o", "linux", cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "the guest is built from Debian's packages, and there is no apt-get here" in ran.err
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose apt, once called, says so in the pipe `called` and takes its time."""
    tools = tmp_path / "tools"
    tools.mkdir()
    os.mkfifo(tools / "called")
    for name in ("apt-get", "apt-cache", "dpkg", "dpkg-deb"):
        (tools / name).write_text(f"#!/bin/sh\necho called >{tools}/called\nexec /bin/sleep 600\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    return tools


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("tools/apt-get", "/tools/apt-get is there, and no folder"),
        ("tools", "/tools holds something that is no snapshot"),
        ("/proc/snap", "error: no folder can be made in /proc: no such file or directory"),
    ],
)
def test_build_linux__looks_where_it_goes_before_it_fetches_anything(
    debian: Path, tmp_path: Path, output: str, said: str
) -> None:
    ran = run_policyc("guest", "build-linux", "-o", output, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.endswith(f"{said}\n")
    assert ran.err.count("\n") == 1


KERNELS_HELP = "  help: `apt-cache search --names-only '^linux-image-'` lists Debian's kernels\n"


@pytest.mark.parametrize("name", ["bash", "-y", "linux-image-", "linux-image-6.1.0-56-amd64-dbg"])
def test_build_linux__refuses_what_is_no_kernel_before_it_fetches_anything(
    debian: Path, tmp_path: Path, name: str
) -> None:
    ran = run_policyc("guest", "build-linux", "-o", "linux", f"--kernel-package={name}", cwd=tmp_path)
    said = f"error: `{name}` is no package of a kernel: those are called linux-image-*\n"
    assert ran == Ran(2, "", said + KERNELS_HELP)
    assert [*tmp_path.iterdir()] == [debian]


def test_build_linux__says_which_kernel_there_isnt(debian: Path, tmp_path: Path) -> None:
    (debian / "apt-get").write_text("#!/bin/sh\n")
    (debian / "apt-cache").write_text("#!/bin/sh\necho 'E: No packages found' >&2\nexit 100\n")
    ran = run_policyc("guest", "build-linux", "-o", "linux", "--kernel-package", "linux-image-none", cwd=tmp_path)
    said = "fetching the package lists\nerror: the package lists have no kernel `linux-image-none`\n"
    assert ran == Ran(2, "", said + KERNELS_HELP)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_build_linux__leaves_nothing_when_it_is_stopped(debian: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "policyc", "guest", "build-linux", "-o", "out/linux"]
    with (
        os.fdopen(os.open(debian / "called", os.O_RDWR)) as called,
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            assert select.select([called], [], [], 60)[0]
            assert [path.name[:7] for path in (tmp_path / "out").iterdir()] == [".linux-"]
            process.send_signal(number)
            assert process.wait(timeout=60) == (-number if number is signal.SIGTERM else 130)
        finally:
            process.kill()
    assert [*(tmp_path / "out").iterdir()] == []


def test_attacks__as_json(tmp_path: Path) -> None:
    listed = json.loads(call_policyc("guest", "attacks", "--format", "json", cwd=tmp_path).out)["routines"]
    assert [routine["name"] for routine in listed] == [*ROUTINES]
    assert listed[0] == {
        "kind": "attack",
        "name": "inline-hook",
        "what": ROUTINES["inline-hook"].what,
        "target": "schedule+0x5",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--attack", "syscal-hook"],
            "error: the guest knows no attack or act `syscal-hook`\n  help: did you mean `syscall-hook`?\n",
        ),
        (
            ["--attack", "zzz"],
            "error: the guest knows no attack or act `zzz`\n  help: `policyc guest attacks` lists what there is\n",
        ),
        (["--socket", "s", "--cookie-file", "missing"], "error: `missing`: no such file or directory\n"),
    ],
)
def test_run__refuses(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert call_policyc("guest", "run", *arguments, cwd=tmp_path) == Ran(2, "", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--slide", "far"], "`far` is neither `random` nor a number such as 0x200000"),
        (["--slide", "0x1000"], "`0x1000` is no multiple of 0x200000 from 0 to 0x3e000000"),
        (["--dialect", "v6"], "'v6' is not one of 'v7', 'v12'"),
        (["--ram", "1"], "1 is not in the range"),
        (["--tick", "nan"], "'nan' is not a number of seconds"),
        (["--tick", "0"], "0.0 is not in the range"),
    ],
)
def test_run__usage(tmp_path: Path, arguments: list[str], said: str) -> None:
    ran = call_policyc("guest", "run", *arguments, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_run__without_the_engine(tmp_path: Path) -> None:
    """The engine is an optional extra; without it everything else of `guest` works."""
    program = "import sys; sys.modules['unicorn'] = None; from policyc.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "guest"]
    ran = subprocess.run([*command, "run"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (
        2,
        "",
        "error: the guest needs the Unicorn engine, which isn't installed\n  help: pip install 'policyc[guest]'\n",
    )
    subprocess.run([*command, "attacks"], cwd=tmp_path, stdout=subprocess.DEVNULL, timeout=60, check=True)


# ---- the guest alone


def test_run__obeys_its_console(tmp_path: Path) -> None:
    """Without a tool nothing stops an attack."""
    ran = call_policyc("guest", "run", "--json", cwd=tmp_path, input="attack syscall-hook\nquit\n")
    assert (ran.code, ran.err) == (0, "")
    (attack,) = (said for said in map(json.loads, ran.out.splitlines()) if said["kind"] == "attack")
    assert (attack["name"], attack["outcome"], attack["events"]) == ("syscall-hook", "changed", 0)


# ---- the guest and the tool


@dataclass
class Pair:
    """`policyc run` on the plan, and guests that connect to it."""

    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "policyc", *arguments],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def tool(self, *arguments: str) -> subprocess.Popen[str]:
        """Returns once it listens."""
        process = self.start("run", "plan.json", "--socket", "s", "--format", "json", *arguments)
        until(process, "state", "LISTENING")
        return process

    def guest(self, *arguments: str) -> subprocess.Popen[str]:
        return self.start("guest", "run", "--socket", "s", "--json", *arguments)


def until(process: subprocess.Popen[str], key: str, value: str) -> list[dict[str, object]]:
    """The lines that `process` writes, up to the first that has `value` under `key`."""
    assert process.stdout is not None
    seen: list[dict[str, object]] = []
    for line in process.stdout:
        seen.append(json.loads(line))
        if seen[-1].get(key) == value:
            return seen
    raise AssertionError(f"{process.args!r} ended before {key} was {value}; it wrote {seen}")


@pytest.fixture
def pair(folder: Path) -> Iterator[Pair]:
    pair = Pair(folder)
    yield pair
    for process in pair.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("dialect", ["v7", "v12"])
def test_run_and_guest__attacks_are_stopped_and_recorded(pair: Pair, dialect: str) -> None:
    tool = pair.tool("--once", "--audit", "audit.ndjson")
    wanted = ("inline-hook", "syscall-hook", "hypercall")
    attacks = [word for name in wanted for word in ("--attack", name)]
    guest = pair.guest("--dialect", dialect, "--slide", "random", *attacks, "--once")
    said, complained = guest.communicate(timeout=60)
    recorded, _ = tool.communicate(timeout=60)

    outcomes = {line["name"]: line["outcome"] for line in map(json.loads, said.splitlines()) if "outcome" in line}
    assert outcomes == {"inline-hook": "unchanged", "syscall-hook": "unchanged", "hypercall": "done"}
    verdicts = [line for line in map(json.loads, recorded.splitlines()) if line["kind"] == "verdict"]
    assert [(line["rules"][0]["rule"], line["effect"]) for line in verdicts] == [
        ("text", "deny"),
        ("rodata", "deny"),
        ("call", "log"),
    ]
    # The guest went away while it was guarded: the tool can't know that this was meant well.
    assert (guest.returncode, tool.returncode, complained) == (0, 5, "")
    assert len((pair.folder / "audit.ndjson").read_text().splitlines()) == len(recorded.splitlines()) + 1


def test_run_and_guest__monitor_lets_everything_through(pair: Pair) -> None:
    tool = pair.tool("--once", "--monitor")
    guest = pair.guest("--attack", "syscall-hook", "--once")
    said, _ = guest.communicate(timeout=60)
    recorded, _ = tool.communicate(timeout=60)
    (attack,) = (line for line in map(json.loads, said.splitlines()) if line["kind"] == "attack")
    (verdict,) = (line for line in map(json.loads, recorded.splitlines()) if line["kind"] == "verdict")
    assert (attack["outcome"], verdict["would"], verdict["done"]) == ("changed", "deny", "let through")


def test_run__lets_the_guest_go_when_told_to(pair: Pair) -> None:
    """After SIGTERM the guest runs on, unguarded, and both say so."""
    tool = pair.tool()
    guest = pair.guest("--reconnect", "60", "--attack", "hypercall")
    until(tool, "state", "ARMED")
    tool.send_signal(signal.SIGTERM)
    assert (tool.wait(timeout=60), (pair.folder / "s").exists()) == (0, False)
    said, _ = guest.communicate("attack xchg\nquit\n", timeout=60)
    attack = [line for line in map(json.loads, said.splitlines()) if line.get("name") == "xchg"][-1]
    assert attack["outcome"] == "changed"


def test_run__a_plan_for_another_kernel_is_refused(pair: Pair) -> None:
    """The guest goes on as if nobody had asked, and the exit code says that it isn't guarded."""
    table = small_system_map().replace(" T schedule\n", " T renamed\n")
    moved = "".join(
        f"{int(line[:16], 16) + (0x10 if 'asm_exc' in line or 'entry_SYSCALL_64' in line else 0):016x}{line[16:]}"
        for line in table.splitlines(keepends=True)
    )
    (pair.folder / "other.map").write_text(moved)
    built = call_policyc("profile", "build", "other.map", "-o", "other.profile", cwd=pair.folder)
    assert built.code == 0
    compile = ("compile", "small.policy", "--profile", "other.profile", "-o", "plan.json")
    assert call_policyc(*compile, cwd=pair.folder).code == 0
    tool = pair.tool("--once")
    pair.guest("--reconnect", "60")
    recorded, _ = tool.communicate(timeout=60)
    assert tool.returncode == 4
    assert "REFUSED" in recorded
