"""Bytes of this process' connections, against bytes that it sends to itself."""

import socket

import pytest

from pico_ds.benchmark.wire import wire_bytes


def test_bytes_that_are_sent_and_received_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as near, server.accept()[0] as far:
            before = wire_bytes()
            if before is None:
                pytest.skip("this kernel does not count the bytes of a connection")
            near.sendall(b"x" * 12_345)
            left = 12_345
            while left:
                left -= len(far.recv(left))
            after = wire_bytes()
    assert after is not None
    found = after.since(before)
    assert (found.sent, found.received) == (12_345, 12_345)
