"""How a command's handler is put into a table: by its class, with the type checker knowing both."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from policyc.kvmi import Command, ErrorCode, ReplyData

if TYPE_CHECKING:
    from collections.abc import Callable

    from policyc.emulator.introspection import Introspection

__all__ = ["CommandError", "Rows", "needs_views", "switch"]

C = TypeVar("C", bound=Command)
T = TypeVar("T")


class CommandError(Exception):
    """The command is refused with this error number."""

    def __init__(self, errno: ErrorCode) -> None:
        super().__init__(errno.name)
        self.errno = errno


class Rows:
    """Handlers by command; a handler answers with the reply's data or raises `CommandError`."""

    def __init__(self) -> None:
        self._handlers: dict[type[Command], Callable[[Introspection, Command], ReplyData]] = {}

    def add(self, kind: type[C]) -> Callable[[Callable[[Introspection, C], ReplyData]], None]:
        """Decorate the handler of a command."""

        def decorate(handler: Callable[[Introspection, C], ReplyData]) -> None:
            def handle(session: Introspection, command: Command) -> ReplyData:
                assert isinstance(command, kind)
                return handler(session, command)

            self._handlers[kind] = handle

        return decorate

    def handler(self, kind: type[Command]) -> Callable[[Introspection, Command], ReplyData] | None:
        """The handler of a command, if it is in this table."""
        return self._handlers.get(kind)


def needs_views(session: Introspection, errno: ErrorCode = ErrorCode.EOPNOTSUPP) -> None:
    """Refuse a command on a host without EPT views, as a running kernel of kvmi-v7 did."""
    if not session.views:
        raise CommandError(errno)


def switch(members: set[T], member: T, *, enable: bool) -> None:
    """Put a member into a set, or take it out."""
    if enable:
        members.add(member)
    else:
        members.discard(member)
