"""A cable that delays and drops: `python -m tests.frame_relay PORT INTERFACE MILLISECONDS LOSS_PERCENT`.

Makes two interfaces and passes Ethernet frames between them, both ways. For kernels without `tc netem`.
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
    """A file whose reads and writes are the frames of a new interface."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return file


def relay(files: list[int], delay_seconds: float, loss: float) -> None:
    """Pass frames on, each `delay_seconds` late, in their order, but for those that get lost; never returns."""
    dice, waiting = random.Random(0), list[tuple[float, int, int, bytes]]()
    count = 0
    while True:
        wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for file in select.select(files, [], [], wait)[0]:
            frame = os.read(file, _LARGEST_FRAME)
            if dice.random() >= loss:
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay_seconds, count, files[file == files[0]], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, out, frame = heapq.heappop(waiting)
            try:
                os.write(out, frame)
            except OSError:  # that end is down: nobody would get it
                continue


def main() -> None:
    *names, milliseconds, loss_percent = sys.argv[1:]
    files = [make_interface(name) for name in names]
    print("ready", flush=True)
    relay(files, float(milliseconds) / 1000, float(loss_percent) / 100)


if __name__ == "__main__":
    main()
