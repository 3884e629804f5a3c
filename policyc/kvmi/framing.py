"""Where a message begins and ends: the eight-byte header, and the fixed heads that follow it."""

from __future__ import annotations

from struct import Struct

__all__ = ["EVENT_REPLY_HEAD", "HEADER", "HEADER_SIZE", "REPLY_HEAD", "VCPU_HEAD", "frame"]

HEADER = Struct("<HHI")
"""Message id, bytes after the header, sequence number: `struct kvmi_msg_hdr`."""

HEADER_SIZE = HEADER.size

REPLY_HEAD = Struct("<iI")
"""Error code and padding: `struct kvmi_error_code`."""

VCPU_HEAD = Struct("<HHI")
"""vCPU index and padding: `struct kvmi_vcpu_hdr`."""

EVENT_REPLY_HEAD = Struct("<HHIBBHI")
"""vCPU index, padding, action, event, padding: `struct kvmi_vcpu_hdr` and `struct kvmi_event_reply`."""


def frame(message_id: int, seq: int, payload: bytes) -> bytes:
    """A whole message: header and payload."""
    return HEADER.pack(message_id, len(payload), seq) + payload
