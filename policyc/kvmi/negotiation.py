"""Finding out which generation of KVMI the kernel speaks.

GET_VERSION has the same number everywhere and answers version 1 everywhere. What differs is the shape of its answer:

| Reply payload | Second word | Generation |
| --- | --- | --- |
| 16 bytes | | v6 |
| 24 bytes | 0 | v7 |
| 24 bytes | the largest message | v10, v11 or v12 |

The last three are told apart by CHECK_COMMAND of 22, which v12 alone doesn't have: it answers ENOENT. In v10 and v11
that number is SET_PAGE_ACCESS, and v12's number for it would ask for the last frame and protect nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from policyc.kvmi.codec import codec_of
from policyc.kvmi.dialects import V6, V7, V12, Dialect
from policyc.kvmi.errors import RemoteProtocolError, UnsupportedDialectError
from policyc.kvmi.framing import REPLY_HEAD
from policyc.kvmi.messages import CheckCommand, Done, GetVersion, GetVersionReply, Refused
from policyc.kvmi.vocabulary import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policyc.kvmi.messages import Command

__all__ = ["Negotiation", "Question"]

_SECOND_WORD: Final = slice(REPLY_HEAD.size + 4, REPLY_HEAD.size + 8)
_PROBED: Final = 22
"""The command that v10 and v11 have and v12 doesn't."""

_DIALECT_OF_SHAPE: Final[Mapping[tuple[int, bool], Dialect]] = {(16, False): V6, (24, False): V7, (24, True): V12}
"""By bytes of the reply to GET_VERSION, and whether its second word is set."""


@dataclass(frozen=True, slots=True)
class Question:
    """A command that is on its way, and how to read its answer."""

    command: Command
    dialect: Dialect
    seq: int

    @property
    def message(self) -> bytes:
        """The request."""
        return codec_of(self.dialect).command(self.command).encode(self.command, self.seq)

    @property
    def reply_id(self) -> int:
        """The message id of the answer."""
        return self.dialect.commands[type(self.command)].id


class Negotiation:
    """Asks one question after the other until the dialect is known.

    Args:
        wanted: the only dialect to accept, or None for any.

    Attributes:
        question: the command that waits for its answer.
    """

    def __init__(self, wanted: Dialect | None, seq: int) -> None:
        self._wanted = wanted
        self._version: GetVersionReply | None = None
        self.question = Question(GetVersion(), V7, seq)

    def answer(self, payload: bytes) -> tuple[Dialect, GetVersionReply] | None:
        """Take the payload of the answer in: the dialect, or None if `question` is now a second one.

        Raises:
            UnsupportedDialectError: v10 or v11, or not the dialect that was wanted.
            RemoteProtocolError: not an answer that any generation gives.
        """
        dialect = self.question.dialect if self._version else self._by_shape(payload)
        result = codec_of(dialect).command(self.question.command).decode_reply(payload, self.question.command)
        if isinstance(result, GetVersionReply):
            if self._wanted and dialect is not self._wanted:
                raise UnsupportedDialectError(self._wanted.name, dialect.name)
            if dialect is not V12:
                return dialect, result
            self._version = result
            self.question = Question(CheckCommand(_PROBED), dialect, self.question.seq + 1)
            return None
        if self._version and isinstance(result, Refused) and result.errno == ErrorCode.ENOENT:
            return dialect, self._version
        if isinstance(result, Done) or (isinstance(result, Refused) and result.errno == ErrorCode.EPERM):
            raise UnsupportedDialectError("kvmi-v12, or an older dialect", "kvmi-v10 or kvmi-v11")
        raise RemoteProtocolError("an answer to the version check", str(result))

    def _by_shape(self, payload: bytes) -> Dialect:
        dialect = _DIALECT_OF_SHAPE.get((len(payload), any(payload[_SECOND_WORD])))
        if dialect is None:
            shapes = "16 or 24 bytes in answer to GetVersion"
            raise RemoteProtocolError(shapes, f"{len(payload)}, second word {payload[_SECOND_WORD].hex() or 'missing'}")
        return dialect
