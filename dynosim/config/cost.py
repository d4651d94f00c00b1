"""The `cost` section: what GPUs cost."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from dynosim.config.base import Section, check_rules

Price = Annotated[float, Field(gt=0)]


class CostConfig(Section):
    """Prices and surroundings of GPUs. None is built in: without a price no money is reported."""

    gpu_hour: dict[str, Price] = Field(default_factory=dict)
    """Price of an hour of one GPU, by its name. Unit: currency/hour."""
    currency: str = "USD"
    """What prices are in; a word that is shown beside them."""
    pue: Annotated[float, Field(ge=1, le=5)] = 1.0
    """Power of the building for each watt of its GPUs. Unit: factor."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.gpu_hour:
            _check_names(self.gpu_hour)
        return self

    def price_of(self, hardware: str | None) -> float | None:
        """Of an hour of one GPU; None where none is given."""
        from dynosim.silicon.hardware import usual_name

        if hardware is None or not self.gpu_hour:
            return None
        return {usual_name(name): price for name, price in self.gpu_hour.items()}.get(
            usual_name(hardware)
        )


def _check_names(prices: dict[str, Price]) -> None:
    from dynosim.silicon.hardware import known_hardware, usual_name

    known = known_hardware()
    check_rules(
        (f"gpu_hour.{name}", usual_name(name) not in known, "is no GPU that is known",
         f"use one of {', '.join(known)}")
        for name in prices
    )  # fmt: skip
