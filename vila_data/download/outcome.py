"""What one request comes to, if not to a body: a redirect, or a failure of a class of core.fates.IMAGE_ERRORS."""

from __future__ import annotations

from dataclasses import dataclass

from vila_data.core.fates import IMAGE_ERRORS
from vila_data.download.urls import WebURL


@dataclass(frozen=True, slots=True)
class Redirected:
    """An answer that names another URL; None where it cannot be read as one."""

    url: WebURL | None
    http_code: int


class FetchError(Exception):
    """A request that brought no body.

    retryable:     another attempt may succeed.
    retry_after_s: the server's wish, in seconds; None where it has none.
    connected:     a connection was made, as far as is known.
    """

    def __init__(
        self,
        error_class: str,
        http_code: int | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        connected: bool = True,
    ) -> None:
        if error_class not in IMAGE_ERRORS:
            raise ValueError(f"no such image error: {error_class}")
        super().__init__(error_class)
        self.error_class = error_class
        self.http_code = http_code
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.connected = connected
