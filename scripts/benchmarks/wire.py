"""Bytes that this process sends and receives, as the kernel counts them: what the collectives do below gloo."""

import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

#: bytes_received, bytes_sent and bytes_retrans of `struct tcp_info` (linux/tcp.h, since 4.19)
_RECEIVED_AT, _SENT_AT, _SENT_AGAIN_AT = 128, 200, 208
_INFO_BYTES = _SENT_AGAIN_AT + 8


@dataclass(frozen=True)
class WireBytes:
    """Of all TCP connections that are open, since they were opened; what was sent again for a loss counts once."""

    sent: int
    received: int

    def since(self, before: "WireBytes") -> "WireBytes":
        """What was added; connections must not have been closed in between."""
        return WireBytes(self.sent - before.sent, self.received - before.received)


def wire_bytes() -> WireBytes | None:
    """Of this process up to now; None where the kernel does not say."""
    if sys.platform != "linux":
        return None
    sent = received = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if not str(descriptor.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(descriptor.name))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        except OSError:  # closed meanwhile, or not of TCP
            continue
        if len(info) < _INFO_BYTES:
            return None
        sent += struct.unpack_from("Q", info, _SENT_AT)[0] - struct.unpack_from("Q", info, _SENT_AGAIN_AT)[0]
        received += struct.unpack_from("Q", info, _RECEIVED_AT)[0]
    return WireBytes(sent, received)
