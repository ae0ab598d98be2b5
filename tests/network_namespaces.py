"""Simulates the nodes of a cluster on one machine by Linux namespaces.

Each node has its own network interface, hostname and processes, and all nodes are connected by one switch. All
namespaces disappear when the process that created them ends: the kernel then kills the first process of each namespace,
and with it all others.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from tests.launching import REPOSITORY

_DIES_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]
_UNSHARE = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
_INTERFACE = "eth0"
_START_SECONDS = 10.0


def why_no_namespaces() -> str | None:
    """The reason why this machine cannot simulate nodes, or None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with cluster(2) as nodes:
            state = nodes[0].run("cat", f"/sys/class/net/{_INTERFACE}/operstate")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        return f"network namespaces are not allowed on this machine: {str(reason).strip()}"
    return None if state.strip() == "up" else f"links between network namespaces stay down: {state.strip()}"


def why_no_netem() -> str | None:
    """The reason why the kernel cannot delay and drop packets (`tc netem`), or None if it can."""
    with cluster(1) as nodes:
        try:
            nodes[0].run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        except subprocess.CalledProcessError as error:
            return f"tc netem: {error.stderr.strip()}"
    return None


class _Namespace:
    """A set of namespaces, which exists until `close`."""

    #: the namespaces that commands enter
    kinds = ("--net", "--uts", "--mount", "--pid")

    def __init__(self, name: str, hosts: Path) -> None:
        self.name = name
        setup = f"hostname {name} && mount --bind {hosts} /etc/hosts && ip link set lo up && echo up && exec sleep inf"
        self._keeper = subprocess.Popen(
            [*_DIES_WITH_PARENT, *_UNSHARE, "sh", "-c", setup],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stderr is not None
        if self._keeper.stdout.readline() != "up\n":
            self._keeper.kill()
            raise RuntimeError(self._keeper.stderr.read())
        (init,) = psutil.Process(self._keeper.pid).children()
        self.pid = init.pid
        self.enter = ["nsenter", "--target", str(self.pid), *self.kinds, "--"]

    def run(self, *command: str) -> str:
        """Run a command and wait for its end. Returns its standard output. Raises if it fails."""
        return subprocess.run(
            [*self.enter, *command], check=True, capture_output=True, text=True, timeout=_START_SECONDS
        ).stdout

    def start(self, *command: str, log: IO[bytes], **variables: str) -> "subprocess.Popen[bytes]":
        """Start a command in the root of the repository, with additional environment variables."""
        environment = {**os.environ, **variables}
        change_directory = ["env", f"--chdir={REPOSITORY}"]  # nsenter starts commands in /
        return subprocess.Popen([*self.enter, *change_directory, *command], env=environment, stdout=log, stderr=log)

    def close(self) -> None:
        """Kill every process of the namespace, and remove its network."""
        self._keeper.kill()
        # returns when the first process of the namespace, which holds the other end of the pipes, has ended
        self._keeper.communicate()


class _Switch(_Namespace):
    """The network switch of all nodes. Its commands see all processes, so that they can move interfaces into nodes."""

    kinds = ("--net",)


class Node(_Namespace):
    """A node of a cluster. It can be disconnected, slowed down and killed."""

    def __init__(self, number: int, switch: _Switch, hosts: Path) -> None:
        super().__init__(f"node{number}", hosts)
        self.number, self.address = number, address(number)
        self._switch, self._hosts, self._port = switch, hosts, f"port{number}"
        self._relay: subprocess.Popen[str] | None = None
        link = ["ip", "link", "add", self._port, "type", "veth", "peer", "name", _INTERFACE, "netns", str(self.pid)]
        self._switch.run(*link)
        self._connect()

    def _connect(self) -> None:
        self._switch.run("ip", "link", "set", self._port, "master", "switch", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", _INTERFACE)
        # a fixed address, so that the other nodes also reach a new interface of this node at once
        self.run("ip", "link", "set", _INTERFACE, "address", f"02:00:00:00:00:{self.number + 1:02x}", "up")

    def cut(self) -> None:
        """Disconnect the node. Packets are lost, and no connection is closed."""
        self._switch.run("ip", "link", "set", self._port, "down")

    def reconnect(self) -> None:
        """Connect the node again after `cut`."""
        self._switch.run("ip", "link", "set", self._port, "up")

    def switch_off(self) -> None:
        """Simulate a loss of power: all processes die, and the other nodes see no closed connection."""
        self.cut()
        self.close()

    def delay_by_kernel(self, milliseconds: float, loss_percent: float) -> None:
        """Delay packets that this node sends, and drop a part of them, by `tc netem`."""
        netem = ["delay", f"{milliseconds}ms", "loss", f"{loss_percent}%"]
        self.run("tc", "qdisc", "replace", "dev", _INTERFACE, "root", "netem", *netem)

    def delay_by_relay(self, milliseconds: float, loss_percent: float) -> None:
        """Delay and drop packets to and from this node by `tests.slow_network_relay`, for kernels without netem."""
        self.run("ip", "link", "delete", _INTERFACE)
        command = [*self._switch.enter, sys.executable, "-m", "tests.slow_network_relay", self._port, _INTERFACE]
        self._relay = subprocess.Popen(
            [*_DIES_WITH_PARENT, *command, str(milliseconds), str(loss_percent)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._relay.stdout is not None
        assert self._relay.stdout.readline() == "ready\n"
        self._switch.run("ip", "link", "set", _INTERFACE, "netns", str(self.pid))
        self._connect()

    def close(self) -> None:
        """Kill every process of the namespace, and remove its network."""
        if self._relay is not None:
            self._relay.kill()
            self._relay.communicate()
            self._relay = None
        super().close()


class Nodes(list[Node]):
    """The nodes of a cluster."""

    def __init__(self, count: int, switch: _Switch, hosts: Path) -> None:
        super().__init__(Node(number, switch, hosts) for number in range(count))
        self._switch, self._hosts = switch, hosts

    def replace(self, number: int) -> Node:
        """Replace a switched-off node by a new node without processes. Returns the new node."""
        self[number].close()
        # open sockets can keep the network namespace of a dead node alive, and with it the port
        port = f"port{number}"
        self._switch.run("sh", "-c", f"ip link delete {port} || ! ip link show {port}")
        self[number] = Node(number, self._switch, self._hosts)
        return self[number]


def address(number: int) -> str:
    """The IP address of a node, from TEST-NET-1 (RFC 5737), which is reserved for documentation."""
    return f"192.0.2.{number + 1}"


@contextlib.contextmanager
def cluster(count: int) -> Iterator[Nodes]:
    """Yields nodes with hostnames `node0`, `node1`, ... that resolve on every node. Their interface is `eth0`."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="hosts-"))
        names = [f"{address(number)} node{number}" for number in range(count)]
        file.write("\n".join(["127.0.0.1 localhost", *names]) + "\n")
        file.flush()
        switch = _Switch("switch", Path(file.name))
        stack.callback(switch.close)
        switch.run("ip", "link", "add", "switch", "type", "bridge")
        switch.run("ip", "link", "set", "switch", "up")
        nodes = Nodes(count, switch, Path(file.name))
        stack.callback(lambda: [node.close() for node in nodes])
        yield nodes
