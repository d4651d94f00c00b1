"""What all sections of a configuration share: strictness, and rules that name their key."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

RULES = "dynosim_rules"
REFUSED = "dynosim_refused"

Count = Annotated[int, Field(ge=1, le=1 << 40)]
Amount = Annotated[int, Field(ge=0, le=1 << 40)]
NotNegative = Annotated[float, Field(ge=0)]
PositiveMs = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a run or sweep file: unknown keys refused, nothing coerced, nothing changed."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


Rule = tuple[str, bool, str, str]
"""(key, is broken, what is wrong, remedy)"""


def check_rules(rules: Iterable[Rule]) -> None:
    """Raises one pydantic error that carries every broken rule; see `explain`."""
    broken = [(key, text, remedy) for key, is_broken, text, remedy in rules if is_broken]
    if broken:
        raise PydanticCustomError(RULES, "rules are broken", {"broken": broken})


def refuse(text: str, remedy: str = "") -> PydanticCustomError:
    """An error about one value, in our words."""
    return PydanticCustomError(REFUSED, "refused", {"text": text, "remedy": remedy})
