"""Whole messages to bytes and back, compiled once per dialect from its rows; keeps no state between messages."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from policyc.kvmi.body import Body
from policyc.kvmi.errors import LocalProtocolError, RemoteProtocolError
from policyc.kvmi.event_codec import EventCodec
from policyc.kvmi.framing import HEADER, REPLY_HEAD, VCPU_HEAD, frame
from policyc.kvmi.messages import Command, Refused, ReplyData, VcpuCommand
from policyc.kvmi.refusals import refusal

if TYPE_CHECKING:
    from policyc.kvmi.dialects import CommandRow, Dialect

__all__ = ["Codec", "CommandCodec", "codec_of"]


class CommandCodec:
    """One command of a dialect: its request and its reply."""

    def __init__(self, row: CommandRow, dialect: Dialect) -> None:
        self.row = row
        self.id = row.id
        self._dialect = dialect
        self.request = Body(dialect.structs[row.request] if row.request else None, row.message, dialect)
        reply = dialect.structs[row.reply] if row.reply else None
        self.reply: Body[ReplyData] = Body(reply, row.message.reply_type, dialect)

    def encode(self, command: Command, seq: int) -> bytes:
        """The whole request.

        Raises:
            LocalProtocolError: a value doesn't fit, or the message is longer than the dialect allows.
        """
        struct, tail = self.request.encode_parts(command)
        vcpu = _vcpu_head(command) if self.row.vcpu_header else b""
        size = len(vcpu) + len(struct) + len(tail)
        if size > self._dialect.max_sent_size:
            raise LocalProtocolError(f"a message of at most {self._dialect.max_sent_size} bytes", f"{size}")
        return b"".join((HEADER.pack(self.id, size, seq), vcpu, struct, tail))

    def decode(self, payload: bytes) -> Command:
        """The request, from its payload; missing bytes count as zero and surplus ones are ignored, as kernels do.

        Raises:
            RemoteProtocolError: a counter promises more than the payload holds, or a value has no meaning.
        """
        if not self.row.vcpu_header:
            return self.request.decode(payload.ljust(self.request.size, b"\0"))
        payload = payload.ljust(VCPU_HEAD.size + self.request.size, b"\0")
        return self.request.decode(payload[VCPU_HEAD.size :], vcpu=VCPU_HEAD.unpack_from(payload)[0])

    def encode_reply(self, result: ReplyData | int, seq: int) -> bytes:
        """The whole reply: data, or a negative error number alone.

        Raises:
            LocalProtocolError: the data isn't this command's, or doesn't fit.
        """
        if isinstance(result, int):
            return frame(self.id, seq, REPLY_HEAD.pack(result, 0))
        expected = self.row.message.reply_type
        if not isinstance(result, expected):
            raise LocalProtocolError(f"a {expected.__name__}", repr(result))
        return frame(self.id, seq, REPLY_HEAD.pack(0, 0) + self.reply.encode(result))

    def decode_reply(self, payload: bytes, command: Command) -> ReplyData | Refused:
        """The answer to `command`.

        Raises:
            RemoteProtocolError: the size isn't what the answer to this very command has.
        """
        if len(payload) < REPLY_HEAD.size:
            raise RemoteProtocolError(f"a reply of at least {REPLY_HEAD.size} bytes", f"{len(payload)}")
        error = REPLY_HEAD.unpack_from(payload)[0]
        size = REPLY_HEAD.size
        if error == 0:
            size += self.reply.size + self.reply.element * command.reply_items
        if error > 0 or len(payload) != size:
            name = type(command).__name__
            raise RemoteProtocolError(f"{size} bytes in answer to {name}", f"{len(payload)} with error code {error}")
        if error:
            return refusal(command, error)
        data = payload[REPLY_HEAD.size :]
        if self.reply.length(data) != len(data):
            raise RemoteProtocolError(f"as many elements as {type(command).__name__} asked for", "another count")
        return self.reply.decode(data)


class Codec:
    """All of a dialect's messages.

    Attributes:
        dialect: whose.
        commands: by class.
        by_id: the same, by message id.
        events: events and their replies.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.commands = {row.message: CommandCodec(row, dialect) for row in dialect.commands.values()}
        self.by_id = {codec.id: codec for codec in self.commands.values()}
        self.events = EventCodec(dialect)

    def command(self, command: Command) -> CommandCodec:
        """The codec of a command.

        Raises:
            LocalProtocolError: the dialect has no such command.
        """
        codec = self.commands.get(type(command))
        if codec is None:
            raise LocalProtocolError(f"a command of {self.dialect.name}", type(command).__name__)
        return codec


@cache
def codec_of(dialect: Dialect) -> Codec:
    """The codec of a dialect, made at first use."""
    return Codec(dialect)


def _vcpu_head(command: Command) -> bytes:
    vcpu = command.vcpu if isinstance(command, VcpuCommand) else -1
    if not 0 <= vcpu <= 0xFFFF:
        raise LocalProtocolError("a vCPU index of 16 bits", f"{command!r}")
    return VCPU_HEAD.pack(vcpu, 0, 0)
