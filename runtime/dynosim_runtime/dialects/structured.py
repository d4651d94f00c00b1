"""The form that an answer is to have: OpenAI's words for it, and vLLM's, old and new."""

from typing import Any, Literal

from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.errors import ApiError
from dynosim_runtime.requests import StructuredOutput

Kind = Literal["json", "regex", "choice", "grammar"]

GUIDED: dict[str, Kind] = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
TYPES: dict[Kind, tuple[type, ...]] = {
    "json": (dict, str),
    "regex": (str,),
    "choice": (list,),
    "grammar": (str,),
}


def structured_of(request: object) -> StructuredOutput | None:
    """What a request's fields ask for. Raises: ApiError 400 for two forms, or what is none."""
    wishes = {
        "response_format": _response_format(getattr(request, "response_format", None)),
        "structured_outputs": _structured_outputs(getattr(request, "structured_outputs", None)),
    }
    for field, kind in GUIDED.items():
        value = getattr(request, field, None)
        wishes[field] = None if value is None else _form(kind, value, field)
    given = {field: wish for field, wish in wishes.items() if wish is not None}
    if len(given) > 1:
        raise refuse(list(given)[1], f"excludes {next(iter(given))}", "invalid_value")
    return next(iter(given.values()), None)


def _response_format(value: Any) -> StructuredOutput | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutput(kind="json_object")
    if kind != "json_schema":
        raise refuse("response_format.type", 'expected "text", "json_object" or "json_schema"')
    described = value.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    return _form("json", schema, "response_format.json_schema.schema")


def _structured_outputs(value: Any) -> StructuredOutput | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise refuse("structured_outputs", "expected an object", "invalid_type")
    given = {name: form for name, form in value.items() if form is not None}
    if given == {"json_object": True}:
        return StructuredOutput(kind="json_object")
    for kind in TYPES:
        if given.keys() == {kind}:
            return _form(kind, given[kind], f"structured_outputs.{kind}")
    raise refuse("structured_outputs", f"expected one of json_object, {', '.join(TYPES)}")


def _form(kind: Kind, form: object, field: str) -> StructuredOutput:
    is_typed = isinstance(form, TYPES[kind])
    if not is_typed or (not form and kind != "json"):
        raise _wrong(kind, field)
    if isinstance(form, list) and not all(isinstance(text, str) and text for text in form):
        raise _wrong(kind, field)
    return StructuredOutput(kind=kind, form=form)


def _wrong(kind: Kind, field: str) -> ApiError:
    expected = {"json": "a JSON schema", "choice": "a list of texts"}.get(kind, "a text")
    return refuse(field, f"expected {expected}", "invalid_type")
