"""Errors as OpenAI's and as Anthropic's clients read them."""

from typing import Any

from dynosim_runtime.errors import ApiError

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

UNREAD = (408, 413)  # the body is not read to its end


def openai_error(error: ApiError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """`{"type": "error", "error": {type, message}}`."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    kind = ANTHROPIC_TYPES.get(error.status, fallback)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers that go with an error: when to come back; and goodbye to who sends what is no end."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return headers | {"Connection": "close"} if error.status in UNREAD else headers


def internal_error() -> ApiError:
    """What a client is told of a fault of ours; the log has the rest."""
    return ApiError(
        500,
        "the server failed on this request; its log tells why",
        kind="server_error",
        code="internal_error",
    )
