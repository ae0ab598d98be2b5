"""The processes that started this one as a rank. If one of them dies, nobody watches the rank any more."""

import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

#: programs that start ranks, or that keep a remote command running
_PROGRAMS = frozenset(
    {
        *("deepspeed", "ds", "torchrun", "accelerate", "srun", "slurmstepd", "pdsh"),
        *("mpirun", "mpiexec", "mpiexec.hydra", "orterun", "orted", "prterun", "prted", "hydra_pmi_proxy"),
        *("deepspeed.launcher.launch", "deepspeed.launcher.runner", "torch.distributed.run"),
    }
)
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish", "csh", "tcsh"})
#: a server's process for one connection
_CONNECTIONS = frozenset({"sshd", "sshd-session", "dropbear"})
#: words of a command line that may name the program: `python -u -m torch.distributed.run` is the longest
_PROGRAM_WORDS = 4


class LauncherChain:
    """The ancestors of this process up to its topmost launcher.

    A shell or a terminal above the launcher is not in the chain, because a user may close it. The chain of a command
    that `ssh` runs on another node ends with the server's process for the connection.
    """

    def __init__(self, ancestors: Sequence[int]) -> None:
        """
        Args:
            ancestors: process ids, the parent first.
        """
        self._links = list(zip([os.getpid(), *ancestors], ancestors, strict=False))

    @classmethod
    def of_this_process(cls) -> "LauncherChain":
        """The chain as it is now; empty if no launcher started this process."""
        try:
            ancestors = psutil.Process().parents()
        except psutil.Error:
            ancestors = []
        is_rank = int(os.environ.get("WORLD_SIZE", "1")) > 1
        length = _length([(one.name(), _command_line(one)) for one in ancestors], is_rank)
        return cls([one.pid for one in ancestors[:length]])

    @property
    def is_broken(self) -> bool:
        """Whether a process of the chain has died: its child has another parent then."""
        return any(_parent_of(child) != parent for child, parent in self._links)


def _length(ancestors: Iterable[tuple[str, list[str]]], is_rank: bool) -> int:
    """How many ancestors are in the chain.

    Args:
        ancestors: names and command lines, the parent first.
        is_rank: whether the environment says that there are other ranks, so that the parent is a launcher.
    """
    length, only_shells = int(is_rank), True
    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    for place, (name, command) in enumerate(ancestors, start=1):
        if is_launcher(command, name):
            length, only_shells = place, True
        elif name in _CONNECTIONS:
            # between them are only the shells that a remote command is run by, and nobody asked to outlive it
            return place if length and only_shells and not ignores_hangup else length
        elif not (Path(command[0]).name in _SHELLS and "-c" in command if command else False):
            only_shells = False
    return length


def is_launcher(command: Sequence[str], name: str = "") -> bool:
    """Whether a process is one that starts ranks.

    Args:
        command: its command line; empty if it cannot be read.
        name: as the kernel has it.
    """
    words = [Path(word).name for word in command[:_PROGRAM_WORDS]]
    if not words or words[0].lstrip("-") in _SHELLS:
        return name in _PROGRAMS
    return name in _PROGRAMS or not _PROGRAMS.isdisjoint(words)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _parent_of(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None
