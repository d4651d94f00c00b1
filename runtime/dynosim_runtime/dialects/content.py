"""Message contents, which may be a text or a list of typed parts."""

from collections.abc import Collection
from typing import Any

from dynosim_runtime.dialects.decoding import refuse


def joined_text(content: object, where: str, part_types: Collection[str]) -> str:
    """The text of a content: itself, or its text parts, one under the other.

    Parts of other types (pictures, files, ...) are refused. Raises: ApiError 400 that names the
    part.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refuse(where, "expected a text or a list of parts", "invalid_type")
    return "\n".join(
        text_of_part(part, f"{where}[{index}]", part_types) for index, part in enumerate(content)
    )


def text_of_part(part: object, where: str, part_types: Collection[str]) -> str:
    """The text of one part. Raises: ApiError 400."""
    if isinstance(part, str):
        return part
    kind = object_type(part, where)
    if kind not in part_types:
        raise refuse(where, f"parts of type {kind!r} are not supported: this server takes text")
    assert isinstance(part, dict), "object_type has checked it"
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise refuse(f"{where}.text", "expected a text", "invalid_type")
    return text


def object_type(part: Any, where: str) -> str:
    """The `type` of a part, block or item. Raises: ApiError 400 if it has none."""
    if not isinstance(part, dict):
        raise refuse(where, "expected an object", "invalid_type")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise refuse(f"{where}.type", "required", "missing_required_parameter")
    return kind
