"""What /v1/models tells of the model that an engine serves."""

import msgspec

from dynosim_runtime.adapters.engine_http import EngineCallError, EngineHttp


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


async def max_model_len(http: EngineHttp) -> int:
    """Tokens of a request's prompt and answer together. Raises: EngineCallError."""
    length = (await _first_model(http)).max_model_len
    if length is None:
        raise EngineCallError(f"{http.shown_url}/v1/models tells no max_model_len")
    return length


async def model_name(http: EngineHttp) -> str:
    """The name by which requests ask for the model. Raises: EngineCallError."""
    return (await _first_model(http)).id


async def _first_model(http: EngineHttp) -> _Model:
    text = await http.get_text("/v1/models")
    try:
        models = msgspec.json.decode(text, type=_Models).data
    except msgspec.MsgspecError as error:
        raise EngineCallError(f"{http.shown_url}/v1/models: {error}") from None
    if not models:
        raise EngineCallError(f"{http.shown_url}/v1/models lists no model")
    return models[0]
