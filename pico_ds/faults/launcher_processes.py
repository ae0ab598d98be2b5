"""The launcher processes above this rank. If one of them dies, nothing supervises the rank any more."""

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
#: SSH server processes, one per connection
_CONNECTIONS = frozenset({"sshd", "sshd-session", "dropbear"})
#: number of words of a command line that may name the program, as in `python -u -m torch.distributed.run`
_PROGRAM_WORDS = 4


class LauncherChain:
    """The ancestors of this process up to its topmost launcher.

    A shell or a terminal above the launcher is not in the chain, because a user may close it. If `ssh` runs the command
    on another node, the chain ends with the SSH server process of the connection.
    """

    def __init__(self, ancestors: Sequence[int]) -> None:
        """
        Args:
            ancestors: process ids, starting with the parent.
        """
        self._links = list(zip([os.getpid(), *ancestors], ancestors, strict=False))

    @classmethod
    def of_this_process(cls) -> "LauncherChain":
        """Return the current chain, which is empty if no launcher started this process."""
        try:
            ancestors = psutil.Process().parents()
        except psutil.Error:
            ancestors = []
        is_rank = int(os.environ.get("WORLD_SIZE", "1")) > 1
        length = _length([(process.name(), _command_line(process)) for process in ancestors], is_rank)
        return cls([process.pid for process in ancestors[:length]])

    @property
    def is_broken(self) -> bool:
        """Whether a process of the chain has died, so that its child has a different parent."""
        return any(_parent_of(child) != parent for child, parent in self._links)


def _length(ancestors: Iterable[tuple[str, list[str]]], is_rank: bool) -> int:
    """Return the number of ancestors in the chain.

    Args:
        ancestors: names and command lines, starting with the parent.
        is_rank: whether the environment shows that there are other ranks, so that the parent is a launcher.
    """
    length, only_shells = int(is_rank), True
    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    for position, (name, command) in enumerate(ancestors, start=1):
        if is_launcher(command, name):
            length, only_shells = position, True
        elif name in _CONNECTIONS:
            # include the connection if only the shells of a remote command are in between, and SIGHUP is not ignored
            return position if length and only_shells and not ignores_hangup else length
        elif not (Path(command[0]).name in _SHELLS and "-c" in command if command else False):
            only_shells = False
    return length


def is_launcher(command: Sequence[str], name: str = "") -> bool:
    """Return whether a process starts ranks.

    Args:
        command: command line of the process; empty if it cannot be read.
        name: name of the process in the kernel.
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
