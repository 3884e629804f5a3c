"""The connection as a VMM keeps it, with a clock of the test's own."""

from __future__ import annotations

import socket
from pathlib import Path

from policyc.emulator.link import UNSENT_MAX, Link
from tests.support.emulator_process import listening


def test_it_tries_again_after_its_time(tmp_path: Path) -> None:
    link = Link(tmp_path / "tool.sock", 10.0)
    assert not link.connect(100.0)
    assert (link.attempts, link.problem) == (1, f"{tmp_path}/tool.sock: No such file or directory")
    assert link.next_try() == 110.0
    with listening(tmp_path / "tool.sock") as server:
        assert not link.connect(109.9)
        assert link.attempts == 1
        assert link.connect(110.0)
        assert (link.connected, link.next_try(), link.problem) == (True, None, None)
        peer, _ = server.accept()
        with peer:
            assert link.receive() is None
            peer.sendall(b"hello")
            assert link.receive() == b"hello"
            assert link.send(b"world")
            assert peer.recv(10) == b"world"
        assert link.receive() == b""
        link.close(200.0)
        assert (link.connected, link.next_try()) == (False, 210.0)
        assert not link.connect(205.0)


def test_a_path_without_a_listener(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "tool.sock"))
    link = Link(tmp_path / "tool.sock", 1.0)
    assert not link.connect(0.0)
    assert link.problem == f"{tmp_path}/tool.sock: Connection refused"


def test_what_the_socket_does_not_take_is_kept_until_it_does(tmp_path: Path) -> None:
    with listening(tmp_path / "tool.sock") as server:
        link = Link(tmp_path / "tool.sock", 1.0)
        link.connect(0.0)
        peer, _ = server.accept()
        sent = bytes(range(256)) * 8192
        with peer:
            assert link.send(sent)
            assert link.sending
            received = b""
            while len(received) < len(sent):
                received += peer.recv(1 << 20)
                assert link.send(b"")
            assert (received, link.sending) == (sent, False)
        link.close(0.0)


def test_a_tool_that_stops_reading_is_given_up(tmp_path: Path) -> None:
    with listening(tmp_path / "tool.sock") as server:
        link = Link(tmp_path / "tool.sock", 1.0)
        link.connect(0.0)
        peer, _ = server.accept()
        with peer:
            assert not link.send(bytes(UNSENT_MAX + (1 << 20)))
        link.close(0.0)


def test_a_tool_that_is_gone(tmp_path: Path) -> None:
    link = Link(tmp_path / "tool.sock", 1.0)
    assert not link.send(b"x")
    with listening(tmp_path / "tool.sock") as server:
        link.connect(0.0)
        server.accept()[0].close()
        assert not link.send(b"x" * 100)
        link.close(0.0)
