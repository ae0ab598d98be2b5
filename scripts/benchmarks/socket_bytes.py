"""Reads from the kernel how many bytes this process sends and receives, including the traffic of gloo collectives."""

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
    """Bytes sent and received over all open TCP connections since they were opened. Retransmissions are not counted."""

    sent: int
    received: int

    def since(self, before: "WireBytes") -> "WireBytes":
        """Return the bytes added since `before`. No connection may have been closed in between."""
        return WireBytes(self.sent - before.sent, self.received - before.received)


def wire_bytes() -> WireBytes | None:
    """Return the bytes of this process so far, or None if the kernel does not report them."""
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
        except OSError:  # the socket was closed in the meantime, or does not use TCP
            continue
        if len(info) < _INFO_BYTES:
            return None
        sent += struct.unpack_from("Q", info, _SENT_AT)[0] - struct.unpack_from("Q", info, _SENT_AGAIN_AT)[0]
        received += struct.unpack_from("Q", info, _RECEIVED_AT)[0]
    return WireBytes(sent, received)
