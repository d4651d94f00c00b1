"""Who asks: what the headers of a request tell."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Scope

from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.dialects.generate_requests import Caller

MAX_HEADER_CHARS = 256


class Callers:
    """Gives every request an id that no other request under way has."""

    def __init__(self) -> None:
        self._active_ids: set[str] = set()

    @contextmanager
    def caller(self, scope: Scope) -> Iterator[Caller]:
        """The caller, whose id is his while the context lasts.

        The client's own X-Request-Id is kept, unless another request of that id is under way.
        Raises: ApiError 400 for a header that cannot be used.
        """
        headers = dict(scope["headers"])
        request_id = _text(headers, "x-request-id") or uuid.uuid4().hex
        if request_id in self._active_ids:
            request_id = f"{request_id}-{uuid.uuid4().hex[:8]}"
        self._active_ids.add(request_id)
        try:
            yield Caller(
                request_id=request_id,
                session_id=_text(headers, "x-dynamo-session-id"),
                policy_family=_text(headers, "x-dynamo-meta-policy-class"),
            )
        finally:
            self._active_ids.discard(request_id)


def _text(headers: dict[bytes, bytes], name: str) -> str | None:
    value = headers.get(name.encode(), b"").decode("latin-1").strip()
    if len(value) > MAX_HEADER_CHARS or not value.isascii() or not value.isprintable():
        raise refuse(
            name, f"expected at most {MAX_HEADER_CHARS} printable ASCII characters", "invalid_value"
        )
    return value or None
