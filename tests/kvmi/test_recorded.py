"""What running v7 and v12 kernels really sent: read completely, and said again by our own ends of the connection."""

from __future__ import annotations

import pytest

from policyc.addresses import Gva
from policyc.kvmi import (
    DIALECTS,
    V7,
    Action,
    Dialect,
    EventKind,
    GetInfo,
    Hello,
    NewValue,
    PfReply,
    RemoteProtocolError,
)
from policyc.kvmi.codec import codec_of
from policyc.kvmi.framing import HEADER
from policyc.kvmi.handshake import decode_answer, decode_hello, encode_answer, encode_hello
from tests.support.kvmi_replay import Replay
from tests.support.kvmi_vectors import Conversation, conversations, messages
from tests.support.kvmi_wire import (
    Answer,
    EventAnswer,
    Request,
    VcpuEvent,
    VmEvent,
    event_padding,
    padding_of,
    seq_of,
    without,
)

RECORDED = [(dialect, talk) for dialect in ("v7", "v12") for talk in conversations(dialect)]
MESSAGES = [(dialect, name) for dialect in ("v7", "v12") for name in messages(dialect)]

SLOPPY = {
    ("v7", "sweep.PAUSE_VCPU_padding.cmd"): "bytes that this kernel doesn't look at aren't zero",
    ("v7", "sweep.CONTROL_CMD_RESPONSE.batch"): "several messages in one",
    ("v7", "extra.event_reply.MSR_short24"): "the new value is left out",
    ("v7", "sweep.event_reply.PF_ctx"): "the data end after the bytes that are used",
    ("v7", "sweep.stray_reply_error"): "an error reply to an event reply",
}
"""Messages that a correct sender would write otherwise."""

ODD_COMMANDS = {
    ("v7", "sweep"): 41,
    ("v7", "ss"): 2,
    ("v7", "fatal.01.WRITE_size___payload"): 1,
    ("v7", "fatal.02.WRITE_empty_payload"): 1,
    ("v7", "fatal.04.hdr_size_8184__max_"): 1,
    ("v7", "fatal.07.vcpu_hdr_padding2_on_GET_VCPU_INFO"): 1,
    ("v7", "fatal.08.PAUSE_vcpu_hdr_padding1"): 1,
    ("v7", "fatal.13.CMD_RESPONSE_padding1"): 1,
    ("v7", "fatal.14.CMD_RESPONSE_padding2"): 1,
    ("v7", "fatal.62.SET_XSAVE_short"): 1,
    ("v12", "sweep"): 10,
}
"""How many commands of a conversation were malformed, or longer or shorter than their struct, on purpose."""


def machine(dialect: Dialect, name: str) -> Replay:
    """The VM and the permissions with which a conversation was recorded."""
    if name.startswith("deny_cmd"):
        return Replay(dialect, 1, commands=[])
    if name.startswith("deny_ev"):
        return Replay(dialect, 1, events=[])
    if name == "smp2":
        return Replay(dialect, 2)
    if name.startswith("create"):
        return Replay(dialect, 1, stopped=[3])
    return Replay(dialect, 1)


@pytest.mark.parametrize(("short", "talk"), RECORDED, ids=[f"{d}: {t.name}" for d, t in RECORDED])
def test_our_kernel_says_what_the_real_one_said(short: str, talk: Conversation) -> None:
    replay = machine(DIALECTS[f"kvmi-{short}"], talk.name)
    replay.run(talk)
    assert replay.checked == sum(1 for line in talk.lines if not line.outgoing and line.data) - (
        talk.lines[0].name == "handshake"
    )


@pytest.mark.parametrize(("short", "talk"), RECORDED, ids=[f"{d}: {t.name}" for d, t in RECORDED])
def test_commands_are_read_and_written_alike(short: str, talk: Conversation) -> None:
    """A real tool's commands come out of our encoder again, but for those that were sent to try the kernel's checks."""
    dialect = DIALECTS[f"kvmi-{short}"]
    odd = 0
    for line in talk.lines:
        if (
            line.outgoing
            and line.data
            and line.name != "handshake"
            and HEADER.unpack_from(line.data)[0] in dialect.command_by_id
        ):
            try:
                command = Request(GetInfo()).decode(dialect, line.data)
            except RemoteProtocolError:
                odd += 1
                continue
            again = command.encode(dialect, seq_of(line.data))
            assert command.decode(dialect, again) == command
            odd += again != line.data
    assert odd == ODD_COMMANDS.get((short, talk.name), 0)


def single(ending: str) -> list[tuple[str, str]]:
    return [(dialect, name) for dialect, name in MESSAGES if ending in name and (dialect, name) not in SLOPPY]


@pytest.mark.parametrize(("short", "name"), single(".cmd"))
def test_single_command_and_reply(short: str, name: str) -> None:
    dialect = DIALECTS[f"kvmi-{short}"]
    request, reply = messages(short)[name], messages(short)[name.replace(".cmd", ".reply")]
    message_id, _, seq = HEADER.unpack_from(request)
    if message_id not in dialect.command_by_id:
        assert (name, reply[8:12]) == ("sweep.GET_PAGE_ACCESS_unknown.cmd", (-1000).to_bytes(4, "little", signed=True))
        return
    item = Request(GetInfo()).decode(dialect, request)
    assert item.encode(dialect, seq).hex() == request.hex()
    answer = Answer(item.command, 0).decode(dialect, reply)
    layout = codec_of(dialect).command(item.command).reply.layout
    padding = padding_of(layout, dialect, 16) if layout else set()
    assert answer.encode(dialect, seq).hex() == without(reply, padding).hex()


@pytest.mark.parametrize(("short", "name"), single("event."))
def test_single_event(short: str, name: str) -> None:
    dialect = DIALECTS[f"kvmi-{short}"]
    data = messages(short)[name]
    kind = codec_of(dialect).events.decode(data).kind
    item = (VmEvent if dialect.events[kind].vm_level else VcpuEvent)(kind).decode(dialect, data)
    assert item.encode(dialect, seq_of(data)).hex() == without(data, event_padding(dialect, kind)).hex()


@pytest.mark.parametrize(("short", "name"), single("event_reply"))
def test_single_event_reply(short: str, name: str) -> None:
    dialect = DIALECTS[f"kvmi-{short}"]
    data = messages(short)[name]
    kind = dialect.event_by_id[data[17]].kind
    item = EventAnswer(kind, Action.CONTINUE).decode(dialect, data)
    assert item.encode(dialect, seq_of(data)).hex() == data.hex()


def test_an_event_reply_may_end_within_its_data() -> None:
    """The kernel takes any length up to the whole; what is missing counts as zero."""
    kind, data = EventKind.PF, messages("v7")["sweep.event_reply.PF_ctx"]
    assert EventAnswer(kind, Action.CONTINUE).decode(V7, data) == EventAnswer(
        kind, Action.CONTINUE, PfReply(Gva(0x30_0100))
    )
    assert codec_of(V7).events.decode_reply(EventKind.MSR, messages("v7")["extra.event_reply.MSR_short24"][8:]) == (
        Action.CONTINUE,
        NewValue(0),
    )


def test_handshake() -> None:
    hello = messages("v7")["sweep.00.handshake.qemu2introspector"]
    uuid = bytes.fromhex("112233445566778899aabbccddeeff01")
    assert decode_hello(hello) == Hello(uuid, "l2guest", 0x1A2_028D_6E68)
    assert encode_hello(decode_hello(hello)) == hello
    answer = messages("v7")["sweep.00.handshake.introspector2qemu"]
    assert decode_answer(answer) == bytes(20)
    assert encode_answer(None) == answer
