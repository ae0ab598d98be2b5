"""Tests the counted bytes of this process against bytes that it sends to itself."""

import ctypes
import socket
import struct
import time

import pytest

from scripts.benchmarks.socket_bytes import WireBytes, wire_bytes

PAYLOAD_BYTES = 12_345
#: linux/socket.h
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27


def bytes_of_a_transfer(loses_segments: bool = False) -> WireBytes:
    """The counted bytes while one socket sends PAYLOAD_BYTES to another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as near, server.accept()[0] as far:
            before = wire_bytes()
            if before is None:
                pytest.skip("this kernel does not count the bytes of a connection")
            far.settimeout(30)
            if loses_segments:
                drop_segments(far)
            near.sendall(b"x" * PAYLOAD_BYTES)
            if loses_segments:
                time.sleep(0.1)
                accept_segments(far)
            left = PAYLOAD_BYTES
            while left:
                left -= len(far.recv(left))
            after = wire_bytes()
    assert after is not None
    return after.since(before)


def drop_segments(receiver: socket.socket) -> None:
    """Attach a socket filter that drops every segment: its one instruction returns a length of 0."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HP", 1, ctypes.addressof(instruction))
    receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def accept_segments(receiver: socket.socket) -> None:
    receiver.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def test_sent_and_received_bytes_are_counted() -> None:
    found = bytes_of_a_transfer()
    assert (found.sent, found.received) == (PAYLOAD_BYTES, PAYLOAD_BYTES)


def test_retransmitted_bytes_are_counted_once() -> None:
    """TCP retransmits lost segments, even over loopback if the machine is busy."""
    found = bytes_of_a_transfer(loses_segments=True)
    assert (found.sent, found.received) == (PAYLOAD_BYTES, PAYLOAD_BYTES)
