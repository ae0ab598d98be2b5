"""One call in the background."""

from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Thread, Generic[Result]):
    """Calls a function; `result` waits for what it returns, or raises what it raised.

    No daemon, for a thread that is cut off in native code takes the process down with it; and no executor, which holds
    up the end of a program before its threads can know of it (`hub_requests` asks).
    """

    def __init__(self, call: Callable[[], Result], name: str) -> None:
        super().__init__(name=name)
        self._call = call
        self._error: BaseException | None = None
        self._result: Result | None = None
        self.start()

    def run(self) -> None:
        """Call it."""
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001  raised where the result is asked for
            self._error = error

    def result(self) -> Result:
        """What the call returned, once it has.

        Raises:
            BaseException: whatever the call raised.
        """
        self.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]
