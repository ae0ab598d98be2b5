"""Requests to the Hugging Face hub, repeated while repeating may help."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

#: what is waited before an attempt is repeated [s]
RETRY_SECONDS = (1.0, 4.0, 16.0, 60.0)
#: for which the hub may say nothing, or take nothing, before a request has failed; the library would wait forever [s]
TIMEOUT_SECONDS = 60.0
#: answers that another attempt will not change
_FINAL_STATUSES = (400, 401, 403, 404, 413, 422)

Result = TypeVar("Result")


def set_timeout() -> None:
    """From now on no request of this program to the hub waits longer than `TIMEOUT_SECONDS` for a sign of life."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def client() -> Any:
        # the library's own, of httpx or of httpx2 by release
        found = _http.default_client_factory()
        found.timeout = TIMEOUT_SECONDS
        return found

    set_client_factory(client)


def request_with_retries(request: Callable[[], Result]) -> Result:
    """What `request` returns; network errors and answers such as 500 are tried again after `RETRY_SECONDS`.

    Raises:
        HTTPError, OSError: as huggingface_hub raises them; refused, or still failing at the last attempt.
    """
    for wait_seconds in RETRY_SECONDS:
        try:
            return request()
        except (http_error(), OSError) as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code in _FINAL_STATUSES:
                raise
        _pause(wait_seconds)
    return request()


def http_error() -> type[Exception]:
    """The base of the hub's errors, of the network and of its answers: that of httpx or of httpx2, by release."""
    from huggingface_hub import errors

    found: type[Exception] = vars(errors)["HTTPError"]
    return found


def _pause(seconds: float) -> None:
    main = threading.main_thread()
    if threading.current_thread() is main:
        time.sleep(seconds)
    else:
        # a program that ends does not wait for a request in the background
        main.join(seconds)
