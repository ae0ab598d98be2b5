"""Makes DeepSpeed treat the CPU as a device whose operations return before they are finished, as those of a GPU."""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from deepspeed.accelerator import get_accelerator


@contextmanager
def asynchronous_accelerator() -> Iterator[Counter[str]]:
    """Count the waits of the host for streams, events and the device, by the function of DeepSpeed that waits."""
    waits: Counter[str] = Counter()

    def wait(*_: Any, **__: Any) -> None:
        waits[_caller()] += 1

    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def wait_stream(self, other: Any) -> None: ...

        def wait_event(self, event: Any) -> None: ...

        synchronize: Callable[..., None] = wait

    class Event:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def record(self, *_: Any) -> None: ...

        def query(self) -> bool:
            return True

        synchronize: Callable[..., None] = wait

    no_record = mock.patch.object(torch.Tensor, "record_stream")
    with (
        no_record,
        mock.patch.multiple(
            type(get_accelerator()),
            is_synchronized_device=lambda _: False,
            Stream=Stream,
            Event=Event,
            stream=lambda *_: nullcontext(),
            current_stream=lambda *_: Stream(),
            default_stream=lambda *_: Stream(),
            synchronize=wait,
        ),
    ):
        yield waits


def _caller() -> str:
    """The innermost function of DeepSpeed on the stack."""
    for frame in reversed(traceback.extract_stack()):
        if "/deepspeed/" in frame.filename:
            return f"{frame.filename.rsplit('/', 1)[-1]}::{frame.name}"
    return "outside of DeepSpeed"
