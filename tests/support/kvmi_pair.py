"""A tool's and a kernel's end of a KVMI connection, joined in memory."""

from __future__ import annotations

from policyc.kvmi import (
    NEED_DATA,
    CommandReceived,
    Dialect,
    Features,
    GetVersion,
    GetVersionReply,
    Hello,
    HelloAnswer,
    KernelConnection,
    KernelEvent,
    Negotiated,
    Status,
    ToolConnection,
    ToolEvent,
)
from policyc.kvmi.messages import Command

HELLO = Hello(bytes(range(16)), "vm1", 1_600_000_000)


class Pair:
    """Both ends; `tool_says` and `kernel_says` carry the bytes over and give what the other side makes of them.

    Args:
        dialect: the kernel's.
        vcpu_count: how many vCPUs the machine has.
        chunk: how many bytes are delivered at a time; None for all at once.
    """

    def __init__(self, dialect: Dialect, vcpu_count: int = 2, chunk: int | None = None) -> None:
        self.dialect = dialect
        self.tool = ToolConnection()
        self.kernel = KernelConnection(dialect, vcpu_count)
        self.chunk = chunk

    def tool_says(self) -> list[KernelEvent | Status]:
        """Deliver what the tool has to send."""
        said: list[KernelEvent | Status] = []
        for data in self._chunks(b"".join(self.tool.data_to_send())):
            self.kernel.receive_data(data)
            while (event := self.kernel.next_event()) is not NEED_DATA:
                said.append(event)
        return said

    def kernel_says(self) -> list[ToolEvent | Status]:
        """Deliver what the kernel has to send."""
        said: list[ToolEvent | Status] = []
        for data in self._chunks(b"".join(self.kernel.data_to_send())):
            self.tool.receive_data(data)
            while (event := self.tool.next_event()) is not NEED_DATA:
                said.append(event)
        return said

    def open(self, *, singlestep: bool = False) -> Pair:
        """Shake hands and negotiate."""
        self.kernel.send_hello(HELLO)
        assert self.kernel_says() == [HELLO]
        self.tool.answer_hello()
        answer, asked = self.tool_says()
        assert isinstance(answer, HelloAnswer)
        assert isinstance(asked, CommandReceived)
        assert asked.command == GetVersion()
        size = 8184 if self.dialect.name == "kvmi-v12" else 0
        features = Features(singlestep=singlestep)
        self.kernel.answer(asked, GetVersionReply(max_message_size=size, features=features))
        known = self.kernel_says()
        if not known:
            assert self.tool_says() == []
            known = self.kernel_says()
        assert known == [Negotiated(self.dialect, features, 8184)]
        return self

    def ask(self, command: Command) -> CommandReceived:
        """Send a command and give it as the kernel received it."""
        self.tool.send(command)
        (received,) = self.tool_says()
        assert isinstance(received, CommandReceived)
        return received

    def _chunks(self, data: bytes) -> list[bytes]:
        size = self.chunk or max(len(data), 1)
        return [data[start : start + size] for start in range(0, len(data), size)]
