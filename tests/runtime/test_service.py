"""The service over real sockets: whatever connects, it says what was wrong, hangs on nothing and goes on."""

from __future__ import annotations

import json
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from policyc.kvmi import Hello
from policyc.kvmi.handshake import encode_hello
from policyc.runtime import life, session
from policyc.runtime.audit import verify
from policyc.runtime.records import JsonObject
from policyc.runtime.service import PlanUnsupportedError, Service, ServiceOptions
from policyc.runtime.session import Ending, SessionEnd
from policyc.runtime.transport import Listener, TransportError
from tests.support.audit_schema import check_record
from tests.support.scripted_kernel import compile_plan

HELLO = encode_hello(Hello(bytes(16), "vm1"))
ANSWER_BYTES = 24
GET_VERSION_BYTES = 8
V7_VERSION = struct.pack("<HHI", 2, 24, 1) + struct.pack("<iIII8x", 0, 0, 1, 0)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent peer costs a test a moment instead of ten seconds."""
    monkeypatch.setattr(session, "PARTIAL_TIMEOUT", 0.2)
    monkeypatch.setattr(session, "MAX_IDLE", 0.05)
    monkeypatch.setattr(life, "HANDSHAKE_TIMEOUT", 0.4)


class Running:
    """A service in a thread of its own, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "guest.sock"
        self.audit = folder / "audit.ndjson"
        self.records: list[JsonObject] = []
        self.end: SessionEnd | None = None
        options = ServiceOptions(self.path, self.audit, once=True)
        self.service = Service(compile_plan("deny write to kernel .text"), options, self.records.append)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.end = self.service.run()

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(10)
        peer.connect(str(self.path))
        return peer

    def wait(self) -> SessionEnd:
        """How the connection ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.end is not None
        return self.end

    def stop(self) -> None:
        self.service.leave()
        self._thread.join(30)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    service = Running(tmp_path)
    yield service
    service.stop()


def greet(peer: socket.socket) -> None:
    """The handshake, up to where the kernel is asked for its version."""
    peer.sendall(HELLO)
    wanted = ANSWER_BYTES + GET_VERSION_BYTES
    while wanted:
        wanted -= len(peer.recv(wanted))


def garbage(peer: socket.socket) -> None:
    peer.sendall(b"\xde\xad\xbe\xef" * 64)


def half_a_hello(peer: socket.socket) -> None:
    peer.sendall(HELLO[:50])


def half_a_hello_then_gone(peer: socket.socket) -> None:
    peer.sendall(HELLO[:50])
    peer.close()


def nothing_at_all(peer: socket.socket) -> None:
    pass


def gone_at_once(peer: socket.socket) -> None:
    peer.close()


def gone_after_the_handshake(peer: socket.socket) -> None:
    greet(peer)
    peer.close()


def half_a_header(peer: socket.socket) -> None:
    greet(peer)
    peer.sendall(b"\x02\x00\x18")


def an_oversized_message(peer: socket.socket) -> None:
    greet(peer)
    peer.sendall(struct.pack("<HHI", 2, 0xFFFF, 1))


def another_commands_reply(peer: socket.socket) -> None:
    greet(peer)
    peer.sendall(struct.pack("<HHI", 3, 8, 1) + bytes(8))


def half_a_message_after_the_version(peer: socket.socket) -> None:
    greet(peer)
    peer.sendall(V7_VERSION + b"\x08\x00")


def gone_after_the_version(peer: socket.socket) -> None:
    greet(peer)
    peer.sendall(V7_VERSION)
    peer.close()


HOSTILE: dict[Callable[[socket.socket], None], str] = {
    garbage: "the peer broke the protocol",
    half_a_hello: "silent",
    half_a_hello_then_gone: "the peer broke the protocol",
    nothing_at_all: "silent",
    gone_at_once: "the peer closed the connection",
    gone_after_the_handshake: "the peer closed the connection",
    half_a_header: "silent",
    an_oversized_message: "the peer broke the protocol: expected a message of at most 8184 bytes, got 65535 bytes",
    another_commands_reply: "the peer broke the protocol",
    half_a_message_after_the_version: "the peer began a message and was silent",
    gone_after_the_version: "the peer closed the connection",
}


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda attack: attack.__name__)
def test_service__a_hostile_peer_gets_one_clear_end(running: Running, attack: Callable[[socket.socket], None]) -> None:
    with running.connect() as peer:
        attack(peer)
        end = running.wait()
    assert end.ending is Ending.NEVER_ARMED
    assert HOSTILE[attack] in end.reason
    lost = [record for record in running.records if record.get("state") == "LOST"]
    assert [record["fact"] for record in lost] == [end.reason]
    sound = verify(running.audit)
    assert (sound.records, sound.broken_line, sound.torn) == (len(running.records), None, False)


def test_service__the_next_guest_is_served_after_a_hostile_one(tmp_path: Path) -> None:
    options = ServiceOptions(tmp_path / "s")
    records: list[JsonObject] = []
    service = Service(compile_plan("on hypercall 34/24 log"), options, records.append)
    thread = threading.Thread(target=service.run)
    thread.start()
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(options.socket))
            garbage(peer)
            assert peer.recv(1) == b""
    service.leave()
    thread.join(30)
    assert [record["state"] for record in records].count("LOST") == 3
    assert not options.socket.exists()


def test_service__leaves_when_asked_while_a_guest_says_nothing(running: Running) -> None:
    with running.connect() as peer:
        peer.sendall(HELLO)
        running.service.leave()
        assert running.wait().ending is Ending.LEFT


def test_service__refuses_a_plan_that_it_cannot_carry_out(tmp_path: Path) -> None:
    plan = compile_plan("inject gp write to kernel .text\nobject: watch kernel:guarded_object every 5s")
    with pytest.raises(PlanUnsupportedError, match="this version can't carry out `object`: `watch`"):
        Service(plan, ServiceOptions(tmp_path / "s"), print)
    assert list(tmp_path.iterdir()) == []


# --- the socket ---


def test_listener__lets_owner_and_group_in_alone(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    listener.close()
    assert not (tmp_path / "s").exists()


def test_listener__takes_over_what_nobody_listens_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "s"))
    Listener(tmp_path / "s").close()


def test_listener__leaves_others_alone(tmp_path: Path) -> None:
    first = Listener(tmp_path / "s")
    with pytest.raises(TransportError, match="somebody listens on"):
        Listener(tmp_path / "s")
    first.close()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(TransportError, match="exists and is no socket"):
        Listener(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(("name", "fact"), [("missing/s", "can't listen"), ("x" * 200, "can't listen")])
def test_listener__says_what_is_wrong_with_a_path(tmp_path: Path, name: str, fact: str) -> None:
    with pytest.raises(TransportError, match=fact):
        Listener(tmp_path / name)


def test_audit__is_one_document_a_line(running: Running) -> None:
    with running.connect() as peer:
        garbage(peer)
        running.wait()
    lines = [json.loads(line) for line in running.audit.read_text().splitlines()]
    for line in lines:
        check_record(line)
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert {"time", "previous", "kind", "severity"} <= lines[0].keys()
