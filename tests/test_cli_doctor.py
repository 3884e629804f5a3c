"""`policyc doctor`: what it prints and how it ends, without a guest, with the small guest, and with what is none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import click
import pytest
from jsonschema import Draft202012Validator

from policyc.cli.doctor import command
from policyc.cli.doctor_text import report_lines
from policyc.kvmi import Hello
from policyc.kvmi.handshake import encode_hello
from policyc.runtime import doctor
from policyc.runtime.doctor_findings import findings_of
from policyc.runtime.transport import Listener
from tests.support.doctor_cases import CASES
from tests.support.policyc_command import Ran, call_policyc, run_policyc
from tests.test_cli_examples import examples_of

JsonObject = dict[str, object]

SCHEMA = json.loads(resources.files("policyc.runtime").joinpath("schema/doctor-1.json").read_text())


@contextmanager
def guest(folder: Path, *options: str) -> Iterator[None]:
    """The small guest, which tries to connect ten times a second."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "policyc", "guest", "run", "--socket", str(folder / "guest.sock")),
            *("--reconnect", "0.1", "--settle", "3000", *options),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # A guest that is spoken to does nothing by itself; by its answer it has booted.
        process.stdin.write("status\n")
        process.stdin.flush()
        while "guest running" not in process.stdout.readline():
            assert process.poll() is None
        yield
    finally:
        process.terminate()
        process.wait(30)
        process.stdin.close()
        process.stdout.close()


def consult(folder: Path, *options: str) -> tuple[int, JsonObject]:
    """The exit code, and the document, which fits the schema."""
    ran = call_policyc("doctor", "--socket", "guest.sock", "--json", *options, cwd=folder)
    assert ran.err == ""
    document = json.loads(ran.out)
    assert list(Draft202012Validator(SCHEMA).iter_errors(document)) == []
    assert isinstance(document, dict)
    return ran.code, document


def codes(document: JsonObject, *levels: str) -> list[str]:
    found = document["findings"]
    assert isinstance(found, list)
    return list(dict.fromkeys(each["code"] for each in found if each["level"] in levels))


def part(document: JsonObject, name: str) -> JsonObject:
    found = document[name]
    assert isinstance(found, dict)
    return found


# ---- the small guest, over a real socket


@pytest.mark.parametrize("dialect", ["v7", "v12"])
@pytest.mark.parametrize("is_deaf", [False, True], ids=["hears", "deaf"])
def test_guest__the_write_test(tmp_path: Path, dialect: str, is_deaf: bool) -> None:
    with guest(tmp_path, "--dialect", dialect, *(["--quirk", "v7-gfn-bit1"] if is_deaf else [])):
        code, document = consult(tmp_path, "--wait", "30", "--probe")
    found = part(document, "guest")
    assert part(document, "connection")["dialect"] == f"kvmi-{dialect}"
    test = part(found, "write_test")
    frames = test["frames"]
    assert isinstance(frames, list)
    assert frames
    assert {(frame["bit_1"], frame["outcome"]) for frame in frames} == {(True, "silent" if is_deaf else "reported")}
    assert (test["verdict"], test["reason"], test["unrestored"]) == ("deaf" if is_deaf else "reported", None, [])
    assert (code, codes(document, "broken", "weak")) == ((1, ["writes-pass"]) if is_deaf else (0, []))


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [("v7", ["no-descriptor-events", "no-single-step"]), ("v12", ["no-msr-events", "no-single-step"])],
)
def test_guest__on_amd(tmp_path: Path, dialect: str, expected: list[str]) -> None:
    with guest(tmp_path, "--dialect", dialect, "--cpu", "amd"):
        code, document = consult(tmp_path, "--wait", "30")
    assert (code, codes(document, "broken", "weak")) == (1, expected)
    cpu = part(part(document, "guest"), "cpu")
    assert (cpu["vendor"], cpu["page_rights"]) == ("AuthenticAMD", ["rwx", "rw-", "r-x", "r--", "---"])


def test_guest__is_left_as_it_was(tmp_path: Path) -> None:
    """It comes again and again, and each time nothing is left of the time before."""
    with guest(tmp_path, "--dialect", "v12"):
        first = consult(tmp_path, "--wait", "30", "--probe")
        second = consult(tmp_path, "--wait", "30", "--probe")
    assert (first[0], second[0]) == (0, 0)
    assert part(first[1], "guest")["kernel"] == part(second[1], "guest")["kernel"]
    assert not (tmp_path / "guest.sock").exists()


def test_guest__its_profile_and_another(tmp_path: Path) -> None:
    assert call_policyc("guest", "profile", "-o", "small.profile", cwd=tmp_path).code == 0
    with guest(tmp_path, "--slide", "0x2000000"):
        code, document = consult(tmp_path, "--wait", "30", "--profile", "small.profile")
    profile = part(part(document, "guest"), "profile")
    assert (code, profile["match"], profile["slide"], profile["boot"]) == (0, True, "0x2000000", "running")


def test_guest__that_wants_a_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"one")
    (tmp_path / "other").write_bytes(b"another")
    with guest(tmp_path, "--cookie-file", str(tmp_path / "secret")):
        without = consult(tmp_path, "--wait", "30")
        wrong = consult(tmp_path, "--wait", "30", "--cookie-file", "other")
        right = consult(tmp_path, "--wait", "30", "--cookie-file", "secret")
    assert (without[0], codes(without[1], "broken")) == (4, ["refused-after-hello"])
    assert "secret-unknown" in codes(without[1], "note")
    assert (wrong[0], codes(wrong[1], "broken")) == (4, ["refused-after-hello"])
    assert "secret-differs" in codes(wrong[1], "note")
    assert (right[0], right[1]["stage"]) == (0, "examined")


@pytest.mark.parametrize("words", examples_of(command), ids=" ".join)
def test_example__works(tmp_path: Path, words: list[str]) -> None:
    assert call_policyc("guest", "profile", "-o", "kernel.profile", cwd=tmp_path).code == 0
    with guest(tmp_path):
        ran = call_policyc(*words, cwd=tmp_path)
    assert (ran.code, ran.err) == (0, ""), ran.out
    assert "kvmi-v7" in ran.out


# ---- no guest


def text(ran: Ran) -> str:
    """What was printed, in one line."""
    return " ".join(ran.out.split())


@pytest.mark.parametrize("left_behind", [False, True])
def test_nobody__comes(tmp_path: Path, left_behind: bool) -> None:
    if left_behind:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "guest.sock"))
    ran = call_policyc("doctor", "--socket", "guest.sock", "--wait", "0.05", cwd=tmp_path)
    assert (ran.code, ran.err) == (4, "")
    found = "a socket that nobody uses any more" if left_behind else "nothing"
    assert f"found there {found} " in text(ran)
    assert "rights srw-rw---- " in text(ran)
    assert f"-chardev socket,path={tmp_path}/guest.sock,id=policyc,reconnect=10 \\\n" in ran.out
    assert "\n  -object introspection,id=kvmi,chardev=policyc\n" in ran.out
    assert "broken  nobody connected within 0.05 seconds\n" in ran.out
    assert ran.out.endswith(".\n")
    assert not (tmp_path / "guest.sock").exists()


def test_nobody__document(tmp_path: Path) -> None:
    code, document = consult(tmp_path, "--wait", "0")
    assert (code, document["stage"], document["connection"], document["guest"]) == (4, "nobody", None, None)
    assert part(document, "socket")["found"] == "nothing"
    assert part(document, "socket")["listened"] is True


def test_nobody__with_a_secret_qemu_is_told_it_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"secret")
    ran = call_policyc("doctor", "--socket", "s", "--wait", "0", "--cookie-file", "key", cwd=tmp_path)
    assert f"-object secret,id=policyc-key,file={tmp_path}/key \\\n" in ran.out
    assert "-object introspection,id=kvmi,chardev=policyc,key=policyc-key\n" in ran.out


def test_socket__in_use(tmp_path: Path) -> None:
    """Whoever listens there doesn't notice."""
    listener = Listener(tmp_path / "guest.sock")
    code, document = consult(tmp_path)
    assert (code, codes(document, "broken")) == (74, ["socket-in-use"])
    holder = part(document, "socket")["holder"]
    assert isinstance(holder, dict)
    assert holder["pid"] == os.getpid()
    assert listener.accept(0.0) is None
    listener.close()


def test_socket__a_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "guest.sock").write_text("precious")
    code, document = consult(tmp_path)
    assert (code, codes(document, "broken"), part(document, "socket")["kind"]) == (74, ["socket-taken"], "a file")
    assert (tmp_path / "guest.sock").read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "fact"),
    [
        ("missing/guest.sock", "make the directory"),
        ("x" * 150, "at most 107 bytes"),
        ("file/guest.sock", "Not a directory"),
    ],
)
def test_socket__that_cant_be_made(tmp_path: Path, path: str, fact: str) -> None:
    (tmp_path / "file").write_text("")
    ran = call_policyc("doctor", "--socket", path, cwd=tmp_path)
    assert (ran.code, ran.err) == (74, "")
    assert fact in text(ran)


# ---- what connects and is no guest


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "HANDSHAKE_TIMEOUT", 0.1)


@contextmanager
def peer(folder: Path, *said: bytes, stays: bool) -> Iterator[None]:
    """Somebody who connects as soon as there is a socket, says this, and stays or goes."""
    done = threading.Event()

    def connect() -> None:
        while not done.is_set():
            with socket.socket(socket.AF_UNIX) as end:
                try:
                    end.connect(str(folder / "guest.sock"))
                except OSError:
                    done.wait(0.01)
                    continue
                end.sendall(b"".join(said))
                if stays:
                    done.wait(30)
                return

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(30)


HELLO = encode_hello(Hello(bytes(16), "vm"))


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize(
    ("said", "stays", "expected"),
    [
        (b"", True, "no-hello"),
        (b"", False, "no-hello"),
        (b"\xde\xad\xbe\xef" * 40, True, "no-hello"),
        (HELLO[:20], True, "no-hello"),
        (HELLO, True, "refused-after-hello"),
    ],
)
def test_peer__that_is_no_guest(tmp_path: Path, said: bytes, stays: bool, expected: str) -> None:
    with peer(tmp_path, said, stays=stays):
        code, document = consult(tmp_path, "--wait", "30")
    assert (code, codes(document, "broken")) == (4, [expected])
    process = part(document, "connection")["peer"]
    assert isinstance(process, dict)
    assert process["pid"] == os.getpid()


# ---- being called wrongly, and being stopped


@pytest.mark.parametrize(
    ("arguments", "code", "fact"),
    [
        (("--wait", "nan"), 2, "not a number of seconds"),
        (("--wait", "-1"), 2, "--wait"),
        (("--cookie-file", "missing"), 2, "`missing`: no such file or directory"),
        (("--profile", "missing"), 2, "`missing`: no such file or directory"),
        (("--profile", "file"), 3, "`file`: "),
    ],
)
def test_usage(tmp_path: Path, arguments: tuple[str, ...], code: int, fact: str) -> None:
    (tmp_path / "file").write_text("no profile")
    ran = call_policyc("doctor", "--socket", "s", *arguments, cwd=tmp_path)
    assert (ran.code, ran.out) == (code, "")
    assert fact in ran.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
@pytest.mark.parametrize("is_connected", [False, True])
def test_stopped__leaves_no_socket_behind(
    tmp_path: Path, number: signal.Signals, code: int, is_connected: bool
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "policyc", "doctor", "--socket", str(tmp_path / "s"), "--wait", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with socket.socket(socket.AF_UNIX) as end:
        while is_connected and end.connect_ex(str(tmp_path / "s")):
            assert process.poll() is None
        while not is_connected and not (tmp_path / "s").exists():
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (code, b"", b"")
    assert not (tmp_path / "s").exists()


def test_help__names_every_exit_code(tmp_path: Path) -> None:
    ran = run_policyc("doctor", "--help", cwd=tmp_path)
    said = text(ran)
    for number in ("Exit code 0", "1 that something", "4 that no guest", "74 that the socket"):
        assert number in said


# ---- the text, whole


def shown(name: str) -> str:
    case = CASES[name]()
    return "".join(f"{click.unstyle(line)}\n" for line in report_lines(case, findings_of(case), None, 100))


NOBODY = """\
Socket
  path            /run/policyc/guest.sock
  found there     nothing
  rights          srw-rw---- policyc kvm
  directory       /run/policyc drwxrws--- policyc kvm
  may connect     policyc; libvirt-qemu

This host
  KVM             introspection is on
  QEMU            process 4711 (`qemu-system-x86`), introspected to /tmp/introspector
  QEMU            process 1 (`a name <U+001B>[2J<U+202E> of a process`), introspected

QEMU's options
  -chardev socket,path=/run/policyc/guest.sock,id=policyc,reconnect=10 \\
  -object introspection,id=kvmi,chardev=policyc

The same in libvirt's XML, with QEMU's patched binary as <emulator>
  <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:commandline>
      <qemu:arg value="-chardev"/>
      <qemu:arg value="socket,path=/run/policyc/guest.sock,id=policyc,reconnect=10"/>
      <qemu:arg value="-object"/>
      <qemu:arg value="introspection,id=kvmi,chardev=policyc"/>
    </qemu:commandline>
  </domain>

What follows
  broken  nobody connected within 10 seconds
          help: QEMU connects to the socket, and tries every `reconnect` seconds: --wait longer than
                that
  weak    process 4711 (`qemu-system-x86`) connects to `/tmp/introspector`, not to
          `/run/policyc/guest.sock`
          help: name that path with --socket, or change QEMU's
  weak    process 1 (`a name <U+001B>[2J<U+202E> of a process`) connects to something that is no
          unix socket, not to `/run/policyc/guest.sock`
          help: name that path with --socket, or change QEMU's
  weak    process 1 (`a name <U+001B>[2J<U+202E> of a process`) has a chardev without `reconnect`:
          it doesn't try again
          help: add `reconnect=10` to the chardev
  note    a QEMU that says `invalid object type: introspection` isn't the patched one
          help: under libvirt, set `<emulator>` to the patched binary
  note    a QEMU that says `missing reconnect` wants `reconnect=10` on the chardev
  note    the tool listens and QEMU connects; either may start first
  note    QEMU waits 10 seconds for the answer to its hello, then hangs up and tries again after
          `reconnect` seconds

No guest was examined: 1 broken, 3 weak.
"""

DEAF = """\
Socket
  path            /run/policyc/guest.sock
  found there     nothing
  rights          srw-rw---- policyc kvm
  directory       /run/policyc drwxrws--- policyc kvm
  may connect     policyc; libvirt-qemu

This host
  kernel          Linux 5.15.0-kvmi
  KVM             introspection is on
  KSM             off
  huge pages      never

Connection
  peer            process 4711 (`qemu-system-x86`)
  hello           96 bytes, as QEMU of branches kvmi-v5 to kvmi-v7 sends
  VM              scripted
  UUID            00010203-0405-0607-0809-0a0b0c0d0e0f
  dialect         kvmi-v7: GET_VERSION was answered with features and no message size
  longest message 8184 bytes
  features        none

Guest
  memory ends at  0x4000000 (64 MiB)
  vCPUs           1 started (0)
  TSC             2400 MHz
  processor       GenuineIntel family 0x6 model 0x5e stepping 3, A processor <U+001B>[2J for tests
  page rights     rwx rw- r-x r-- --- --x
  runs            a kernel, 64-bit at this moment, LSTAR 0xffffffff85200080

Commands
  allowed         GET_VERSION CHECK_COMMAND CHECK_EVENT GET_INFO VCPU_GET_INFO PAUSE_VCPU
                  CONTROL_VM_EVENTS CONTROL_EVENTS CONTROL_CR CONTROL_MSR GET_REGISTERS
                  SET_REGISTERS GET_CPUID GET_XSAVE READ_PHYSICAL WRITE_PHYSICAL SET_PAGE_ACCESS
                  GET_MAP_TOKEN GET_MTRR_TYPE CONTROL_SPP GET_MAX_GFN INJECT_EXCEPTION
                  CONTROL_CMD_RESPONSE SET_VE_INFO SET_PAGE_SVE SET_EPT_VIEW DISABLE_VE GET_EPT_VIEW
                  TRANSLATE_GVA CONTROL_EPT_VIEW GET_XCR SET_XSAVE CHANGE_GFN CONTROL_SINGLESTEP
  denied          SET_PAGE_WRITE_BITMAP

Events
  allowed         UNHOOK CR MSR XSETBV BREAKPOINT HYPERCALL PF TRAP DESCRIPTOR CREATE_VCPU PAUSE
                  SINGLESTEP CMD_ERROR CPUID

Write test
  frame 0x1006    bit 1 set: its content changed and no event came
  frame 0x1008    bit 1 clear: a write came as an event (1 event)

What follows
  broken  writes pass silently on protected frames whose number has bit 1 set, half of all frames:
          frame 0x1006; others were reported
          help: some versions of virt/kvm/introspection/kvmi.c pass two arguments in swapped order:
                use a kernel without that
  weak    no single-stepping, the kernel doesn't offer it: an instruction that KVM can't emulate
          can't be stepped over
  note    this processor holds pages that may be executed and not read: `compile --cpu intel` allows
          it
  note    no processor holds a page that may be written and not read: who denies reads denies writes
          as well
  note    this kernel doesn't let page rights be read back: what it accepts can't be verified
  note    page rights are per VM, never per vCPU; events are per vCPU, and one without them passes
          everything silently
  note    a vCPU stands still until its event is answered, and there is no time limit: a tool that
          sets rights has to answer as long as it is connected
  note    several VMs may share one socket: each has a connection of its own, and is told from the
          others by its UUID
  note    no VMM can allow SET_PAGE_WRITE_BITMAP in a kvmi-v7 kernel; nothing here needs it
  note    everything is lifted when the connection ends, and when the guest is reset, migrated or
          saved
  good    policyc speaks this kernel's dialect, and everything that enforcement can't be without is
          allowed

Findings: 1 broken, 1 weak.
"""

GONE = """\
What follows
  broken  the VMM introduced its guest, was answered, and that was all: the peer closed the
          connection
          help: the notes below are the usual reasons, and nobody says which
  note    a QEMU that was given a `key` hangs up on a tool that doesn't prove the secret, without a
          word
          help: name the file with that secret by --cookie-file
  note    a kernel that refuses what QEMU hands over makes it hang up too: `kvm.introspection` is
          off, or the last connection isn't cleaned up yet because a vCPU sleeps
          help: look into the kernel's log and QEMU's

No guest was examined: 1 broken.
"""


@pytest.mark.parametrize(("name", "expected"), [("nobody, elsewhere", NOBODY), ("deaf", DEAF)])
def test_text__whole(name: str, expected: str) -> None:
    assert shown(name) == expected


def test_text__what_follows_from_a_hang_up() -> None:
    assert shown("gone after the hello").endswith(GONE)


def test_text__all_is_well() -> None:
    said = shown("v12 on Intel")
    assert said.endswith("\nNothing was found that weakens enforcement.\n")
    assert "QEMU's options" not in said


@pytest.mark.parametrize("name", CASES)
def test_text__keeps_to_its_width_and_is_safe(name: str) -> None:
    for line in shown(name).splitlines():
        assert line.isprintable()
        assert len(line) <= 100


def test_text__colours_headings_and_levels_alone() -> None:
    case = CASES["deaf"]()
    lines = list(report_lines(case, findings_of(case), None, 100))
    assert lines[0] == "\x1b[1mSocket\x1b[0m"
    styled = [line for line in lines if "\x1b" in line]
    headings = sum(not line.startswith(" ") and "\x1b" in line for line in lines)
    assert len(styled) == headings + len(findings_of(case))
    assert any(line.startswith("  \x1b[31m\x1b[1mbroken\x1b[0m  writes pass") for line in lines)


def test_text__in_a_pipe_has_no_colour(tmp_path: Path) -> None:
    ran = call_policyc("doctor", "--socket", "s", "--wait", "0", cwd=tmp_path)
    assert "\x1b" not in ran.out
