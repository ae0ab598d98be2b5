"""A process that imports everything once and forks a child for every command.

Importing torch and DeepSpeed takes seconds of CPU time; a fork takes milliseconds. Only `fork_client.py` uses this
module. It starts one server per pytest worker.

The client sends one message for every command over a socket: JSON with `programs`, and three file descriptors: for
stdin, for stdout and stderr, and for the replies. The replies are two lines: the process id, and the exit code. When
the client closes the socket, the server kills all running commands and ends.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

#: all modules that scripts of the project import at any time
_MODULES = (
    *("torch", "torch._dynamo", "transformers", "datasets", "wandb", "plotly.graph_objects", "sklearn.linear_model"),
    *("seqeval.metrics", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer"),
)
#: after another rank failed and SIGTERM was sent, a rank is killed after this time [s]
_END_SECONDS = 30.0
_MESSAGE_BYTES = 2**17


def preload() -> None:
    """Import everything. Raise if a thread or a CUDA context was created, because a fork would break them."""
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in _MODULES:
        importlib.import_module(name)
    import torch

    import pico_ds

    package = Path(pico_ds.__file__).parent
    for path in sorted(package.rglob("*.py")):
        name = ".".join(("pico_ds", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        importlib.import_module(name)
    _run_first_uses()
    torch.set_num_threads(1)
    if torch.cuda.is_initialized():
        raise RuntimeError("an import initialised CUDA: a forked process could not use a GPU")
    if (threads := sum(1 for _ in Path("/proc/self/task").iterdir())) > 1:
        names = [thread.name for thread in threading.enumerate()]
        raise RuntimeError(f"an import started threads ({threads - 1}, of Python: {names}): a fork would lose them")
    # exclude these objects from garbage collection, so that their pages stay shared with the children
    gc.collect()
    gc.freeze()


def _run_first_uses() -> None:
    """Run code that imports further modules at its first call."""
    from pico_ds.config import MetaConfig, ModelConfig
    from pico_ds.meta.meta_model_builder import build_model_skeleton

    build_model_skeleton(
        ModelConfig(d_model=24, n_layers=1, attention_n_heads=2, attention_n_kv_heads=1), MetaConfig(), 3, 64
    )


def serve(control: socket.socket) -> None:
    """Fork a child for every request until the client closes the socket."""
    children: dict[int, tuple[int, int]] = {}  # process file descriptor -> process id, reply file descriptor
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 3)
                    if not message:
                        for pid, _ in children.values():
                            _kill_group(pid)
                        return
                    stdin, output, replies = descriptors
                    pid = os.fork()
                    if pid == 0:
                        for descriptor in (*children, *(other for _, other in children.values()), replies):
                            os.close(descriptor)
                        control.close()
                        os.setpgid(0, 0)
                        _redirect(stdin, output)
                        raise SystemExit(_launch(json.loads(message)["programs"]))
                    for descriptor in (stdin, output):
                        os.close(descriptor)
                    # the child also does this, but the client may kill the group before the child runs
                    with contextlib.suppress(ProcessLookupError):
                        os.setpgid(pid, pid)
                    process = os.pidfd_open(pid)
                    children[process] = pid, replies
                    selector.register(process, selectors.EVENT_READ)
                    os.write(replies, f"{pid}\n".encode())
                else:
                    process = int(key.fd)
                    selector.unregister(process)
                    pid, replies = children.pop(process)
                    # kill ranks that outlive their launcher
                    _kill_group(pid)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    os.close(process)
                    # the client may have stopped reading after a timeout
                    with contextlib.suppress(BrokenPipeError):
                        os.write(replies, f"{code}\n".encode())
                    os.close(replies)


def _launch(programs: list[dict[str, Any]]) -> int:
    """Run one program in this process, or several as child processes, as a launcher would. Returns the exit code."""
    if len(programs) == 1:
        return _run(programs[0])
    ranks = []
    for program in programs:
        pid = os.fork()
        if pid == 0:
            raise SystemExit(_run(program))
        ranks.append(pid)
    failed, deadline = False, None
    running = set(ranks)
    while running:
        for pid in sorted(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.discard(pid)
                failed |= status != 0
        if failed and deadline is None:
            deadline = time.monotonic() + _END_SECONDS
            _signal_all(running, signal.SIGTERM)
        elif deadline is not None and time.monotonic() > deadline:
            _signal_all(running, signal.SIGKILL)
        time.sleep(0.02)
    return int(failed)


def _run(program: dict[str, Any]) -> int:
    """Run a script or a module as `python` would. Returns the exit code."""
    environment, directory, arguments = program["environment"], program["directory"], program["arguments"]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    import numpy as np

    # otherwise all forked processes would use the same random numbers
    np.random.seed()  # noqa: NPY002
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], directory
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = arguments, str(Path(directory, arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            # Python ends in the same way after Ctrl-C
            atexit._run_exitfuncs()
            sys.stdout.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def _redirect(stdin: int, output: int) -> None:
    for source, target in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(stdin)
    os.close(output)


def _signal_all(pids: set[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    preload()
    control.send(b"ready")
    serve(control)


if __name__ == "__main__":
    main()
