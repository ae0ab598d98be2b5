"""Requests to the Hugging Face hub that are retried after temporary errors."""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

#: delay before each retry of a request [s]
RETRY_SECONDS = (1.0, 4.0, 16.0, 60.0)
#: a request fails if the hub neither sends nor accepts data for this long; by default the library waits forever [s]
TIMEOUT_SECONDS = 60.0
#: HTTP status codes that are not retried, because a retry would get the same answer
_FINAL_STATUSES = (400, 401, 403, 404, 413, 422)

Result = TypeVar("Result")


def set_timeout() -> None:
    """Make every later hub request of this program fail if the hub does not respond for `TIMEOUT_SECONDS`."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    def client() -> Any:
        # the library's own factory returns a client of httpx or of httpx2, depending on the release
        http_client = _http.default_client_factory()
        http_client.timeout = TIMEOUT_SECONDS
        return http_client

    set_client_factory(client)


def request_with_retries(request: Callable[[], Result]) -> Result:
    """Return the result of `request`. Network errors and server errors such as 500 are retried after `RETRY_SECONDS`.

    Raises:
        HTTPError, OSError: the request failed with an error that is not retried, or the last attempt failed.
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
    """Return the base class of the hub's network errors and error responses.

    The class comes from httpx or from httpx2, depending on the release of huggingface_hub.
    """
    from huggingface_hub import errors

    found: type[Exception] = vars(errors)["HTTPError"]
    return found


def _pause(seconds: float) -> None:
    main = threading.main_thread()
    if threading.current_thread() is main:
        time.sleep(seconds)
    else:
        # returns early when the main thread ends, so that a retry in the background does not delay the exit
        main.join(seconds)
