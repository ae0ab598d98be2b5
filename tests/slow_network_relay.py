"""Simulates a slow and lossy link: `python -m tests.slow_network_relay PORT INTERFACE MILLISECONDS LOSS_PERCENT`.

Creates two network interfaces and forwards Ethernet frames between them in both directions. It replaces `tc netem` on
kernels without it.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_LARGEST_FRAME = 65536


def make_interface(name: str) -> int:
    """Create a network interface. Returns a file descriptor: each read or write is one Ethernet frame."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return file


def relay(files: list[int], delay_seconds: float, loss: float) -> None:
    """Forward frames between two interfaces, in order, forever.

    Args:
        files: descriptors of the two interfaces.
        delay_seconds: delay of each frame.
        loss: fraction of frames that are dropped.
    """
    generator, waiting = random.Random(0), list[tuple[float, int, int, bytes]]()
    count = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for file in select.select(files, [], [], timeout)[0]:
            frame = os.read(file, _LARGEST_FRAME)
            if generator.random() >= loss:
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay_seconds, count, files[file == files[0]], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, receiver, frame = heapq.heappop(waiting)
            try:
                os.write(receiver, frame)
            except OSError:  # the receiving interface is down: the frame is lost
                continue


def main() -> None:
    *names, milliseconds, loss_percent = sys.argv[1:]
    files = [make_interface(name) for name in names]
    print("ready", flush=True)
    relay(files, float(milliseconds) / 1000, float(loss_percent) / 100)


if __name__ == "__main__":
    main()
