"""Exceptions of the live layer: what a client is told, and what an operator is told."""

from dynosim.errors import DynosimError


class LiveError(DynosimError):
    """A process, port, folder or peer that the operator must see to; exit code 1."""

    exit_code = 1


class ApiError(Exception):
    """A request that cannot be served, in OpenAI's terms.

    `status` is the HTTP status, `kind` OpenAI's error type, `code` a short machine-readable word,
    `param` the offending field, `retry_after_s` becomes the Retry-After header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


def unavailable(why: str) -> ApiError:
    """Nobody can serve the request at the moment."""
    return ApiError(503, why, kind="server_error", code="refused", retry_after_s=1)
