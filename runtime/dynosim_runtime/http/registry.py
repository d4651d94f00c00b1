"""The models that a frontend serves at this moment, by name."""

import time
from collections.abc import Iterator

import msgspec

from dynosim_runtime.errors import ApiError, unavailable
from dynosim_runtime.tokenize.tokenizer import Tokenizer

MAX_ECHO_CHARS = 200  # of a name that a client made up


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that at least one worker serves."""

    name: str  # as clients write it; may hold slashes
    tokenizer: Tokenizer
    max_model_len: int  # tokens, prompt and answer together
    created_s: int  # Unix time


class ModelRegistry:
    """Changed at run time, as workers come and go."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        self._absent: dict[str, str] = {}  # models that will be back, and why they are not there

    def add(
        self, name: str, tokenizer: Tokenizer, max_model_len: int, *, created_s: int | None = None
    ) -> None:
        """Serve a model, or change how it is served; its age stays unless `created_s` is given."""
        known = self._models.get(name)
        if created_s is None:
            created_s = int(time.time()) if known is None else known.created_s
        self._absent.pop(name, None)
        self._models[name] = ServedModel(
            name=name, tokenizer=tokenizer, max_model_len=max_model_len, created_s=created_s
        )

    def remove(self, name: str, absence: str | None = None) -> None:
        """Serve a model no longer; nothing happens if it was not served.

        `absence` tells why, of a model that may be back: clients should try again.
        """
        self._models.pop(name, None)
        if absence is not None:
            self._absent[name] = absence

    @property
    def absence(self) -> str | None:
        """Why no model is served; None if that is not known."""
        return next(iter(self._absent.values()), None)

    def get(self, name: str) -> ServedModel:
        """The model of this name. Raises: ApiError 404; 503 if it may be back."""
        model = self._models.get(name)
        if model is None and name in self._absent:
            raise unavailable(self._absent[name])
        if model is None:
            served = ", ".join(self._models) or "none at the moment"
            raise ApiError(
                404,
                f"The model {name[:MAX_ECHO_CHARS]!r} does not exist (served: {served})",
                kind="invalid_request_error",
                code="model_not_found",
                param="model",
            )
        return model

    def only(self) -> ServedModel:
        """The only model: what requests without a name mean. Raises: ApiError if there are more."""
        if not self._models and self.absence is not None:
            raise unavailable(self.absence)
        if len(self._models) != 1:
            raise ApiError(
                400,
                f"model: required, since {len(self._models)} models are served",
                code="missing_required_parameter",
                param="model",
            )
        return next(iter(self._models.values()))

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)
