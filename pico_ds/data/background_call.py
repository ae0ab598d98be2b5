"""Calls a function in a background thread."""

from collections.abc import Callable
from threading import Thread
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Thread, Generic[Result]):
    """Calls a function in a background thread. `result` waits for the function and returns its result.

    The thread is not a daemon, because stopping a daemon thread inside native code can crash the process. The class
    does not use an executor, because an executor waits for its threads while the main thread is still alive, and
    `hub_requests` detects the end of the program by the end of the main thread.
    """

    def __init__(self, call: Callable[[], Result], name: str) -> None:
        super().__init__(name=name)
        self._call = call
        self._error: BaseException | None = None
        self._result: Result | None = None
        self.start()

    def run(self) -> None:
        """Call the function and store its result or its error."""
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001  `result` raises it
            self._error = error

    def result(self) -> Result:
        """Wait for the function and return its result.

        Raises:
            BaseException: the function raised this error.
        """
        self.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]
