"""What is at a socket's path, who may connect, which QEMUs run, what the host says: real files, and a made-up /proc."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policyc.runtime import doctor_place
from policyc.runtime.doctor_host import Host, look_at_host
from policyc.runtime.doctor_invitation import libvirt_lines, qemu_arguments, qemu_lines
from policyc.runtime.doctor_place import Account, Place, find_place, survey_site
from policyc.runtime.doctor_processes import Process, Vmm, listener_of, process, running_vmms
from policyc.runtime.transport import Listener, Occupant, occupant

# ---- the path


def test_place__nothing(tmp_path: Path) -> None:
    assert find_place(tmp_path / "s") == Place(tmp_path / "s", Occupant.NOTHING)


def test_place__left_behind(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    assert find_place(tmp_path / "s") == Place(tmp_path / "s", Occupant.LEFT_BEHIND)
    assert (tmp_path / "s").exists()


def test_place__in_use_by_this_process(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s")
    found = find_place(tmp_path / "s")
    listener.close()
    assert found.occupant is Occupant.IN_USE
    assert found.holder is not None
    assert found.holder.pid == os.getpid()


def test_occupant__does_not_disturb_who_listens(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s")
    assert [occupant(tmp_path / "s") for _ in range(3)] == [Occupant.IN_USE] * 3
    assert listener.accept(0.0) is None
    listener.close()


def test_occupant__a_datagram_socket_is_in_use_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        assert occupant(tmp_path / "s") is Occupant.IN_USE


def make_link(path: Path) -> None:
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(Path.touch, "a file"), (Path.mkdir, "a directory"), (make_link, "a symbolic link"), (os.mkfifo, "a pipe")],
)
def test_place__something_else(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    make(tmp_path / "s")
    assert find_place(tmp_path / "s") == Place(tmp_path / "s", Occupant.OTHER, kind=kind)


def test_place__that_cant_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = find_place(tmp_path / "file" / "s")
    assert (found.occupant, found.problem) == (None, "Not a directory")


# ---- who may connect


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may search, and QEMU's account is that of nobody."""
    monkeypatch.setattr(doctor_place, "QEMU_ACCOUNTS", ("nobody", "an account that isn't there"))
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def of_nobody(accounts: tuple[Account, ...]) -> str | None:
    (found,) = [account for account in accounts if account.name == "nobody"]
    return found.obstacle


def test_site__of_a_socket(folder: Path) -> None:
    listener = Listener(folder / "s")
    site = survey_site(folder / "s")
    assert site.socket is not None
    assert site.socket.mode == "srw-rw----"
    assert site.directory is not None
    assert site.directory.mode == "drwxr-xr-x"
    assert len(site.accounts) == 2
    assert site.accounts[0].obstacle is None, "who made it may connect"
    obstacle = of_nobody(site.accounts)
    assert obstacle is not None
    assert obstacle.startswith("may not write to the socket, and isn't in the group `")
    (folder / "s").chmod(0o666)
    assert of_nobody(survey_site(folder / "s").accounts) is None
    listener.close()


def test_site__of_a_socket_that_isnt_there_yet(folder: Path) -> None:
    site = survey_site(folder / "s")
    assert site.socket is None
    assert of_nobody(site.accounts) is not None, "it would be made for owner and group"


def test_site__every_directory_has_to_be_searched(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    (folder / "closed" / "open").mkdir(mode=0o755)
    site = survey_site(folder / "closed" / "open" / "s")
    assert of_nobody(site.accounts) == f"may not search `{folder / 'closed'}`"


def test_site__without_a_directory(tmp_path: Path) -> None:
    site = survey_site(tmp_path / "missing" / "s")
    assert (site.socket, site.directory, site.accounts) == (None, None, ())


@pytest.mark.parametrize(
    ("mode", "owner", "group", "expected"),
    [
        (0o660, 1000, 50, True),
        (0o060, 1000, 50, False),
        (0o660, 7, 50, True),
        (0o606, 7, 50, False),
        (0o606, 7, 8, True),
        (0o660, 7, 8, False),
    ],
)
def test_rights__the_first_class_that_fits_decides(mode: int, owner: int, group: int, expected: bool) -> None:
    """As path_resolution(7) has it: an owner without the right isn't helped by his group."""
    assert doctor_place._grants(mode, owner, group, 1000, [1000, 50], stat.S_IWOTH) == expected


# ---- processes


def make_process(proc: Path, pid: int, name: str, *words: str) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "comm").write_text(f"{name}\n")
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))


QEMU = "/opt/qemu/bin/qemu-system-x86_64"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((QEMU, "-m", "4G"), (False, None, False)),
        (
            (
                QEMU,
                "-chardev",
                "socket,path=/run/policyc/guest.sock,id=c,reconnect=10",
                "-object",
                "introspection,id=k,chardev=c",
            ),
            (True, "/run/policyc/guest.sock", True),
        ),
        (
            (
                QEMU,
                "--object",
                "introspection,id=k,chardev=c,key=s",
                "--chardev",
                "socket,id=c,path=/tmp/a,,b",
                "-object",
                "secret,id=s,file=/x",
            ),
            (True, "/tmp/a,b", False),
        ),
        (
            (
                QEMU,
                "-object",
                "qom-type=introspection,id=k,chardev=c",
                "-chardev",
                "socket,type=vsock,cid=3,port=7,id=c,reconnect=3",
            ),
            (True, None, True),
        ),
        ((QEMU, "-object", "introspection,id=k"), (True, None, False)),
        (
            (QEMU, "-chardev", "socket,id=c,path=/s,reconnect=0", "-object", "introspection,chardev=c"),
            (True, "/s", False),
        ),
        ((QEMU, "-object"), (False, None, False)),
    ],
)
def test_vmms__what_a_command_line_says(tmp_path: Path, words: tuple[str, ...], expected: tuple[object, ...]) -> None:
    make_process(tmp_path, 4711, "qemu-system-x86", *words)
    is_introspected, where, reconnects = expected
    (found,) = running_vmms(tmp_path)
    assert found.process == Process(4711, "qemu-system-x86")
    assert (found.is_introspected, found.socket, found.reconnects) == (is_introspected, where, reconnects)


def test_vmms__others_arent_any(tmp_path: Path) -> None:
    make_process(tmp_path, 1, "init", "/sbin/init")
    make_process(tmp_path, 2, "kthreadd")
    make_process(tmp_path, 3, "vim", "vim", "qemu-system-x86_64.c")
    (tmp_path / "self").mkdir()
    (tmp_path / "9").mkdir()
    assert running_vmms(tmp_path) == ()
    assert running_vmms(tmp_path / "missing") == ()


def test_listener__is_found_by_its_socket(tmp_path: Path) -> None:
    make_process(tmp_path, 12, "other", "other")
    make_process(tmp_path, 34, "policyc", "policyc")
    (tmp_path / "34" / "fd").mkdir()
    (tmp_path / "34" / "fd" / "3").symlink_to("socket:[777]")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "unix").write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000: 00000003 00000000 00000000 0001 03  555\n"
        "0000: 00000003 00000000 00000000 0001 03  666 /run/s with space\n"
        "0000: 00000002 00000000 00010000 0001 01  777 /run/s with space\n"
    )
    assert listener_of(Path("/run/s with space"), tmp_path) == Process(34, "policyc")
    assert listener_of(Path("/run/other"), tmp_path) is None


def test_process__that_has_gone(tmp_path: Path) -> None:
    assert str(process(5, tmp_path)) == "process 5"
    assert str(Process(5, "qemu")) == "process 5 (`qemu`)"


# ---- the host


def test_host(tmp_path: Path) -> None:
    files = {
        "proc/sys/kernel/osrelease": "5.4.24-kvmi\n",
        "sys/module/kvm/parameters/introspection": "Y\n",
        "sys/kernel/mm/ksm/run": "1\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/module/apparmor/parameters/enabled": "Y\n",
        "sys/fs/selinux/enforce": "0",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    make_process(tmp_path / "proc", 77, "qemu-kvm", "/usr/libexec/qemu-kvm")
    assert look_at_host(tmp_path) == Host(
        release="5.4.24-kvmi",
        has_kvm=True,
        introspection=True,
        ksm=True,
        huge_pages="madvise",
        locks=("AppArmor",),
        vmms=(Vmm(Process(77, "qemu-kvm")),),
    )
    (tmp_path / "sys/module/kvm/parameters/introspection").write_text("N\n")
    assert look_at_host(tmp_path).introspection is False


def test_host__that_says_nothing(tmp_path: Path) -> None:
    assert look_at_host(tmp_path) == Host()


# ---- what to type elsewhere


def test_invitation__as_a_shell_and_as_libvirt_take_it() -> None:
    path, secret = Path("/run/it's, <this>/s"), Path("/etc/key")
    assert qemu_lines(path, secret) == [
        """-chardev 'socket,path=/run/it'"'"'s,, <this>/s,id=policyc,reconnect=10' \\""",
        "-object secret,id=policyc-key,file=/etc/key \\",
        "-object introspection,id=kvmi,chardev=policyc,key=policyc-key",
    ]
    assert libvirt_lines(path, None) == [
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
        "  <qemu:commandline>",
        '    <qemu:arg value="-chardev"/>',
        '    <qemu:arg value="socket,path=/run/it\'s,, &lt;this&gt;/s,id=policyc,reconnect=10"/>',
        '    <qemu:arg value="-object"/>',
        '    <qemu:arg value="introspection,id=kvmi,chardev=policyc"/>',
        "  </qemu:commandline>",
        "</domain>",
    ]


def test_invitation__is_read_as_it_was_meant(tmp_path: Path) -> None:
    """The options that are shown are understood by the code that looks for them in a QEMU that runs."""
    path = tmp_path / "a,b"
    words = [word for pair in qemu_arguments(path, Path("/etc/key")) for word in pair]
    make_process(tmp_path / "proc", 5, "qemu", QEMU, *words)
    assert running_vmms(tmp_path / "proc") == (Vmm(Process(5, "qemu"), True, str(path), True),)
