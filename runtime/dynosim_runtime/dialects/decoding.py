"""JSON bodies to typed requests; what is wrong becomes an error that names the field."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from dynosim_runtime.errors import ApiError

T = TypeVar("T")

_LOCATION = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"required field `(?P<field>[^`]+)`")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A request from its JSON. Raises: ApiError 400 that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(
            400, f"the request body is not valid JSON: {error}", code="invalid_json"
        ) from None


def _explain(text: str) -> ApiError:
    match = _LOCATION.match(text)
    assert match is not None, "the pattern matches any text"
    what, where = match["what"], match["where"] or ""
    missing = _FIELD.search(what)
    if missing is not None:
        param = ".".join(part for part in (where, missing["field"]) if part)
        return ApiError(400, f"{param}: required", param=param, code="missing_required_parameter")
    message = f"{where}: {what[:1].lower()}{what[1:]}" if where else what
    return ApiError(400, message, param=where or None, code="invalid_type")


def refuse(param: str, what: str, code: str = "unsupported_parameter") -> ApiError:
    """A 400 about one field."""
    return ApiError(400, f"{param}: {what}", param=param, code=code)


def refuse_unsupported(request: object, harmless: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse fields that would change the answer but have no effect here.

    `harmless`: the values, besides null, that change nothing, by field. Raises: ApiError 400.
    """
    for field, values in harmless.items():
        value = getattr(request, field)
        if value is not None and value not in values:
            raise refuse(field, "not supported by this server")
