"""Nodes on one machine: namespaces with a network, a hostname and processes of their own, on one switch.

Nothing is left behind, however the process that made them ends: a namespace lives as long as its first process, and the
kernel kills that one, and all others in it, with its parent.
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
_OWN = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
_INTERFACE = "eth0"
_START_SECONDS = 10.0


def why_no_namespaces() -> str | None:
    """Why this machine cannot have nodes; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with cluster(2) as nodes:
            done = nodes[0].run("cat", f"/sys/class/net/{_INTERFACE}/operstate")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"network namespaces are not allowed here: {str(said).strip()}"
    return None if done.strip() == "up" else f"links between network namespaces stay down here: {done.strip()}"


def why_no_netem() -> str | None:
    """Why the kernel cannot delay and drop packets by itself; None where it can."""
    with cluster(1) as nodes:
        try:
            nodes[0].run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
        except subprocess.CalledProcessError as error:
            return f"tc netem: {error.stderr.strip()}"
    return None


class _Namespace:
    """Namespaces that a process of ours keeps."""

    #: what a command is in
    kinds = ("--net", "--uts", "--mount", "--pid")

    def __init__(self, name: str, hosts: Path) -> None:
        self.name = name
        setup = f"hostname {name} && mount --bind {hosts} /etc/hosts && ip link set lo up && echo up && exec sleep inf"
        self._keeper = subprocess.Popen(
            [*_DIES_WITH_PARENT, *_OWN, "sh", "-c", setup], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
        """Run a command to its end; returns what it printed."""
        return subprocess.run(
            [*self.enter, *command], check=True, capture_output=True, text=True, timeout=_START_SECONDS
        ).stdout

    def start(self, *command: str, log: IO[bytes], **others: str) -> "subprocess.Popen[bytes]":
        """Start a command from the repository's root."""
        environment = {**os.environ, **others}
        place = ["env", f"--chdir={REPOSITORY}"]  # to enter a mount namespace is to be at its root
        return subprocess.Popen([*self.enter, *place, *command], env=environment, stdout=log, stderr=log)

    def close(self) -> None:
        """Kill every process in here, and let go of the network."""
        self._keeper.kill()
        # comes back when the first process of the namespace, which holds the other end of the pipes, has gone
        self._keeper.communicate()


class _Switch(_Namespace):
    """What the nodes are plugged into; commands in here see their processes, to give them interfaces."""

    kinds = ("--net",)


class Node(_Namespace):
    """One of the machines of a cluster; it can be cut off, killed and brought back."""

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
        # a new interface is known to the others by the old one's address at once
        self.run("ip", "link", "set", _INTERFACE, "address", f"02:00:00:00:00:{self.number + 1:02x}", "up")

    def cut(self) -> None:
        """Pull the cable: packets go nowhere, and nobody is told."""
        self._switch.run("ip", "link", "set", self._port, "down")

    def mend(self) -> None:
        """Plug it in again."""
        self._switch.run("ip", "link", "set", self._port, "up")

    def switch_off(self) -> None:
        """Power is lost: the others hear nothing of it."""
        self.cut()
        self.close()

    def delay_by_kernel(self, milliseconds: float, loss_percent: float) -> None:
        """Delay what this node sends, and drop some of it."""
        how = ["delay", f"{milliseconds}ms", "loss", f"{loss_percent}%"]
        self.run("tc", "qdisc", "replace", "dev", _INTERFACE, "root", "netem", *how)

    def delay_by_relay(self, milliseconds: float, loss_percent: float) -> None:
        """The same to and from this node, by a process that passes frames on: for kernels without netem."""
        self.run("ip", "link", "delete", _INTERFACE)
        command = [*self._switch.enter, sys.executable, "-m", "tests.frame_relay", self._port, _INTERFACE]
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
        """Kill every process in here, and let go of the network."""
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
        """A node that was switched off is there again, with nothing running."""
        self[number].close()
        # sockets that still wait for an answer keep the network of a dead node, and so its port
        port = f"port{number}"
        self._switch.run("sh", "-c", f"ip link delete {port} || ! ip link show {port}")
        self[number] = Node(number, self._switch, self._hosts)
        return self[number]


def address(number: int) -> str:
    """Of a node; of TEST-NET-1, which nobody has."""
    return f"192.0.2.{number + 1}"


@contextlib.contextmanager
def cluster(count: int) -> Iterator[Nodes]:
    """Nodes `node0`, `node1`, ... that know each other by name, with one interface, `eth0`, each."""
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
