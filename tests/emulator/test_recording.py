"""Recordings of conversations: what was said comes out again, however it was cut, and whatever became of the file."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyc.emulator.recorded_text import Describer
from policyc.emulator.recorder import Recorder, open_recording
from policyc.emulator.recording import (
    MAX_LINE,
    RecordedMessage,
    RecordingError,
    conversations,
    dialect_of,
    split,
)
from policyc.kvmi import V7, V12, Dialect, Hello
from policyc.kvmi.framing import frame
from policyc.kvmi.handshake import encode_answer, encode_hello
from tests.support.kvmi_vectors import Conversation
from tests.support.kvmi_vectors import conversations as recorded

HELLO = encode_hello(Hello(bytes(range(16)), "small\x1b[2J"))
ANSWER = encode_answer(b"secret")


def read(content: bytes) -> list[list[tuple[bool, bytes | None]]]:
    return [[(m.outgoing, m.data) for m in messages] for messages in conversations(io.BytesIO(content))]


def written(talk: Conversation) -> bytes:
    """A recorded conversation as a file."""
    told = ["EOF" if line.data is None else f"x {line.data.hex()}" for line in talk.lines]
    ways = ["out" if line.outgoing else "in " for line in talk.lines]
    lines = (f"{number:04} {way} {text}\n" for number, (way, text) in enumerate(zip(ways, told, strict=True), 1))
    return "".join(lines).encode()


def record(*pieces: tuple[bool, bytes]) -> bytes:
    file = io.BytesIO()
    recorder = Recorder(file, V7)
    for outgoing, data in pieces:
        (recorder.tool_said if outgoing else recorder.kernel_said)(data)
    recorder.end()
    return file.getvalue()


def test_a_conversation__line_by_line() -> None:
    content = record(
        (False, HELLO),
        (True, ANSWER + frame(2, 1, b"")),
        (False, frame(2, 1, bytes(24)) + frame(1, 1, b"")),
        (True, frame(0, 1, bytes(16)) + frame(999, 2, b"")),
        (True, b""),
    )
    assert [[*line.split(maxsplit=2)[:2], line[9:37].rstrip()] for line in content.decode().splitlines()] == [
        ["0001", "in", "handshake"],
        ["0002", "out", "handshake"],
        ["0003", "out", "GET_VERSION"],
        ["0004", "in", "reply GET_VERSION"],
        ["0005", "in", "reply 1"],
        ["0006", "out", "event reply"],
        ["0007", "out", "999"],
        ["0008", "out", "EOF"],
    ]


MESSAGES = st.lists(
    st.tuples(st.booleans(), st.builds(frame, st.integers(0, 99), st.integers(0, 99), st.binary(max_size=40))),
    max_size=8,
)


@given(messages=MESSAGES, cut=st.data())
def test_any_conversation__comes_out_again_however_it_was_cut(
    messages: list[tuple[bool, bytes]], cut: st.DataObject
) -> None:
    file = io.BytesIO()
    recorder = Recorder(file, V12)
    said = [(False, HELLO), (True, ANSWER), *messages]
    for outgoing, data in said:
        at = cut.draw(st.integers(0, len(data)))
        for part in (data[:at], data[at:]):
            if part:
                (recorder.tool_said if outgoing else recorder.kernel_said)(part)
    recorder.end()
    assert read(file.getvalue()) == [[*said, (False, None)]]


@given(messages=MESSAGES, at=st.integers(0, 4000))
def test_a_recording_that_breaks_off__keeps_what_was_whole(messages: list[tuple[bool, bytes]], at: int) -> None:
    content = record((False, HELLO), (True, ANSWER), *messages)
    whole = [message for talk in read(content) for message in talk]
    left = [message for talk in read(content[:at]) for message in talk]
    assert left == whole[: content[:at].count(b"\n")]


def test_a_message_that_is_never_finished__is_kept_as_far_as_it_came() -> None:
    assert read(record((False, HELLO), (True, ANSWER + b"\2\0"))) == [
        [(False, HELLO), (True, ANSWER), (True, b"\2\0"), (False, None)]
    ]


def test_recording_goes_on__behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    for broken in (b"", b"0009 in  x 00112"):
        with open_recording(path) as file:
            recorder = Recorder(file, V7)
            recorder.kernel_said(HELLO)
            recorder.tool_said(b"")
            file.write(broken)
    with open_recording(path) as file:
        recorder = Recorder(file, V7)
        recorder.kernel_said(HELLO)
        recorder.flush()
    said = [(False, HELLO), (True, None)]
    assert read(path.read_bytes()) == [said, said, [(False, HELLO)]]


def test_a_file_with_something_else__is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_text("Dear Sir,\nor Madam\n")
    with pytest.raises(RecordingError, match="line 1 is none of a recording"):
        open_recording(path)
    assert path.read_text() == "Dear Sir,\nor Madam\n"


def test_a_file_that_takes_no_more__is_given_up() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        recorder = Recorder(file, V7)
        recorder.kernel_said(HELLO)
        recorder.flush()
        assert recorder.problem == "No space left on device"
        recorder.tool_said(ANSWER)
        recorder.end()


@pytest.mark.parametrize(
    "line",
    [
        b"0001 up  x 00\n",
        b"0001 in  x 0\n",
        b"0001 in  x 0g\n",
        b"0001 in  x\n",
        b"in  x 00\n",
        b"0001 in  \x1b[2J 00\n",
        b"99999999999999999999 in  x 00\n",
        b"0001 in  x " + b"00" * MAX_LINE + b"\n",
        b"0" * (MAX_LINE + 1),
    ],
)
def test_lines_of_no_recording__are_refused_by_their_number(line: bytes) -> None:
    with pytest.raises(RecordingError, match=r"^line 2 "):
        read(b"0001 in  x 00\n" + line)


@given(st.binary(max_size=400))
def test_any_bytes__are_read_or_refused(content: bytes) -> None:
    with suppress(RecordingError):
        read(content)


RECORDED = [(d, talk) for d in (V7, V12) for talk in recorded(d.name.removeprefix("kvmi-"))]


@pytest.mark.parametrize(("dialect", "talk"), RECORDED, ids=[f"{d.name}: {t.name}" for d, t in RECORDED])
def test_what_running_kernels_said__is_put_into_words(dialect: Dialect, talk: Conversation) -> None:
    content = written(talk)
    assert read(content) == [[(line.outgoing, line.data) for line in talk.lines]]
    describer = Describer(dialect)
    (messages,) = conversations(io.BytesIO(content))
    for message in messages:
        assert dialect_of(message) in (None, dialect)
        lines = list(describer.lines(message))
        assert len(lines) == max(1, sum(1 for _ in split(message)) if message.line > 2 else 1)
        assert all(line.isprintable() and len(line) < 700 for line in lines)


@given(st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=600)), max_size=6), st.sampled_from([V7, V12]))
def test_any_bytes_at_all__are_put_into_words_that_do_no_harm(said: list[tuple[bool, bytes]], dialect: Dialect) -> None:
    describer = Describer(dialect)
    for number, (outgoing, data) in enumerate(said, 1):
        assert all(line.isprintable() for line in describer.lines(RecordedMessage(number, outgoing, data)))


@pytest.mark.parametrize(
    ("outgoing", "data", "line"),
    [
        (
            False,
            HELLO,
            "     1 kernel introduces itself: 'small\\x1b[2J', uuid 000102030405060708090a0b0c0d0e0f, started 0",
        ),
        (True, ANSWER, "     1 tool   answers the handshake, with a secret"),
        (True, frame(17, 4, bytes(8) + b"\x10" + bytes(7)), "     1 tool   #4 ReadPhysical gpa=0 size=0x10"),
        (True, frame(0, 7, bytes(8) + b"\1" + bytes(7)), "     1 tool   answers event 7 of vCPU 0: RETRY"),
        (True, frame(77, 1, b"ab"), "     1 tool   #1 command 77, which kvmi-v7 doesn't have: 6162"),
        (False, frame(5, 3, b"\xea\xff\xff\xff" + bytes(4)), "     1 kernel #3 answers 5 with -22, 8 bytes"),
        (True, b"\2", "     1 tool   02: less than a header"),
        (False, None, "     1 kernel closes"),
    ],
)
def test_a_message_in_words(outgoing: bool, data: bytes | None, line: str) -> None:
    assert list(Describer(V7).lines(RecordedMessage(1, outgoing, data))) == [line]
