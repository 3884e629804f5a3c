"""The two ways a KVMI conversation can go wrong: the peer's fault, or ours.

The blame is in the type. A refused command is neither: it is an answer, and comes as a `Refused` value.

- `ProtocolError`
    - `LocalProtocolError`: the caller asked for something the protocol doesn't allow; nothing was sent
    - `RemoteProtocolError`: the peer broke the protocol; the connection is in `State.ERROR` and can only be closed
        - `UnsupportedDialectError`: the peer speaks a generation of KVMI that is known and not spoken here
"""

from __future__ import annotations

__all__ = ["LocalProtocolError", "ProtocolError", "RemoteProtocolError", "UnsupportedDialectError"]


class ProtocolError(Exception):
    """What was expected and what came instead.

    Args:
        expected: what the protocol asks for, in words.
        got: what came, in words; peer-supplied bytes appear only as numbers.
    """

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got


class LocalProtocolError(ProtocolError):
    """We were about to break the protocol; nothing was sent and the connection goes on as before."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol; no more can be read from or sent to it."""


class UnsupportedDialectError(RemoteProtocolError):
    """The peer speaks a generation of KVMI that this package recognises and refuses."""
