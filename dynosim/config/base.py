"""What all sections of a configuration share: strictness, and rules that name their key."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

RULES = "dynosim_rules"
REFUSED = "dynosim_refused"
_PLUGINS_OFF = "PYDANTIC_DISABLE_PLUGINS"

Count = Annotated[int, Field(ge=1, le=1 << 40)]
Amount = Annotated[int, Field(ge=0, le=1 << 40)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveMs = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a run or sweep file: unknown keys refused, nothing coerced, nothing changed.

    What checks a section is built when it is first used: most are only read as a part of another.
    A section that is a default is therefore made by `model_construct`, which checks nothing.
    """

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        defer_build=True,
    )

    @classmethod
    def of(cls, data: Any) -> Self:
        """The section that the data describe. Raises: ValidationError."""
        if not cls.__pydantic_complete__:
            with _no_plugins():
                cls.model_rebuild()
        return cls.model_validate(data)


@contextmanager
def _no_plugins() -> Iterator[None]:
    """Keeps pydantic from seeking plugins in all that is installed; for this one model only."""
    before = os.environ.get(_PLUGINS_OFF)
    os.environ[_PLUGINS_OFF] = "__all__"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PLUGINS_OFF]
        else:
            os.environ[_PLUGINS_OFF] = before


Rule = tuple[str, bool, str, str]
"""(key, is broken, what is wrong, remedy)"""


def check_rules(rules: Iterable[Rule]) -> None:
    """Raises one pydantic error that carries every broken rule; see `explain`."""
    broken = [(key, text, remedy) for key, is_broken, text, remedy in rules if is_broken]
    if broken:
        raise PydanticCustomError(RULES, "rules are broken", {"broken": broken})


def stated_in(section: Section) -> dict[str, Any]:
    """The keys that were written, with their values."""
    return {key: getattr(section, key) for key in section.model_fields_set}


def as_stated(section: Section) -> dict[str, Any]:
    """Only what was stated: a default written out would override what others share."""
    return section.model_dump(mode="json", exclude_unset=True)


def refuse(text: str, remedy: str = "") -> PydanticCustomError:
    """An error about one value, in our words."""
    return PydanticCustomError(REFUSED, "refused", {"text": text, "remedy": remedy})


def _positive_rate(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
        raise refuse(
            f"a link of {value:g} GB/s moves nothing",
            "state what it achieves in one direction, or leave it out for the preset's rate",
        )
    return value


Rate = Annotated[Annotated[float, Field(gt=0)], BeforeValidator(_positive_rate)]
