"""Coverage-guided fuzzing of both ends of a KVMI connection with atheris.

    pip install atheris
    python -m tests.fuzz.fuzz_kvmi CORPUS [libFuzzer options]

CORPUS is a folder; computed and recorded messages are put into it as seeds. The first byte of an input chooses dialect
and end, the second how the rest is cut into pieces. Whatever comes, an end may only give events, say that it needs more
or is closed, or raise `RemoteProtocolError`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from policyc.addresses import Gpa
from policyc.kvmi import (
    CLOSED,
    DIALECTS,
    NEED_DATA,
    CommandReceived,
    GetInfo,
    GetRegisters,
    Hello,
    KernelConnection,
    ReadPhysical,
    RemoteProtocolError,
    ToolConnection,
)
from policyc.kvmi.handshake import encode_answer
from tests.support.kvmi_pair import Pair
from tests.support.kvmi_vectors import computed, conversations

LARGEST_MESSAGE = 8 + 8184


def one_input(data: bytes) -> None:
    """Feed one input to the end that it chooses."""
    dialect, end = CHOICES[data[0] % len(CHOICES)] if data else CHOICES[0]
    connection = ENDS[end](dialect)
    step = data[1] * 8 + 1 if len(data) > 1 else 1
    for start in range(2, len(data), step):
        connection.receive_data(data[start : start + step])
        if not goes_on(connection):
            return
        assert connection.unread < LARGEST_MESSAGE


def goes_on(connection: ToolConnection | KernelConnection) -> bool:
    """Take all events; False once the connection is at its end."""
    try:
        for event in iter(connection.next_event, NEED_DATA):
            if event is CLOSED:
                return False
            assert repr(event).isprintable()
            if isinstance(event, CommandReceived) and isinstance(connection, KernelConnection):
                connection.refuse(event, -22)
    except RemoteProtocolError as error:
        complaint = str(error)
    else:
        return True
    assert complaint.isprintable()
    return False


def open_tool(dialect: str) -> ToolConnection:
    """A tool's end with some commands under way."""
    tool = Pair(DIALECTS[dialect]).open().tool
    for command in (GetInfo(), GetRegisters(0, (1, 2)), ReadPhysical(Gpa(0), 8)):
        tool.send(command)
    return tool


def open_kernel(dialect: str) -> KernelConnection:
    """A kernel's end after the handshake."""
    kernel = new_kernel(dialect)
    kernel.receive_data(encode_answer(None))
    kernel.next_event()
    return kernel


def new_tool(dialect: str) -> ToolConnection:
    """A tool's end that has said nothing yet."""
    return ToolConnection(DIALECTS[dialect])


def new_kernel(dialect: str) -> KernelConnection:
    """A kernel's end that has only introduced its machine."""
    kernel = KernelConnection(DIALECTS[dialect], 2)
    kernel.send_hello(Hello(bytes(16)))
    return kernel


ENDS: Mapping[str, Callable[[str], ToolConnection | KernelConnection]] = {
    "tool": open_tool,
    "kernel": open_kernel,
    "new tool": new_tool,
    "new kernel": new_kernel,
}
CHOICES = [(dialect, end) for dialect in DIALECTS for end in ENDS]


def seeds() -> dict[str, bytes]:
    """Inputs to begin with, by name: the computed vectors and the recorded conversations of moderate length."""
    found = {}
    for number, vector in enumerate(computed()):
        choice = number % len(CHOICES)
        found[f"computed-{number}"] = bytes([choice, 255]) + vector.data
    for name in ("v7", "v12"):
        for talk in conversations(name):
            for outgoing, end in ((False, "tool"), (True, "kernel")):
                choice = CHOICES.index((f"kvmi-{name}", end))
                lines = [line.data for line in talk.lines if line.outgoing is outgoing and line.data]
                found[f"{name}-{talk.name}-{end}"] = (bytes([choice, 255]) + b"".join(lines))[:20000]
    return found


def main() -> None:
    """Fuzz until something breaks or the options say stop."""
    atheris = import_module("atheris")
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (corpus / name).write_bytes(data)
    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
