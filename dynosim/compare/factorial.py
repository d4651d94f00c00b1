"""Effects and interactions of factors that are each off or on, from one value per combination.

An effect is the mean with the factor on less the mean with it off. Two factors interact where the
effect of one depends on the other: their interaction is half of how much one's effect grows when
the other one is switched on, so one's effect is its main effect plus the interaction where the
other is on, and less it where it is off. The interaction of three is half of how much that of two
grows with the third, and so on.

As ratios the same is done with logarithms: an effect is a factor, 1 is none, and one's effect is
its main effect times the interaction where the other is on, and divided by it where it is off.

Contrasts by Yates' algorithm: Yates, F. (1937), The design and analysis of factorial experiments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log

Levels = tuple[bool, ...]
"""Of each factor in turn whether it is on."""


@dataclass(frozen=True, slots=True)
class FactorialEffect:
    """What the `factors` do: of one its main effect, of several their interaction."""

    factors: tuple[str, ...]
    value: float


def factorial_effects(
    factors: Sequence[str], responses: Mapping[Levels, float], *, as_ratios: bool = False
) -> list[FactorialEffect]:
    """All effects: main ones first, then interactions of two, and so on; in the factors' order.

    `responses` has a value for each of the 2^k combinations.
    Raises: ValueError if one is missing, too many, not finite or, as a ratio, not positive.
    """
    places = [_levels_at(place, len(factors)) for place in range(2 ** len(factors))]
    if len(set(factors)) < len(factors) or not factors:
        raise ValueError(f"factors: expected one or more, all different, got {list(factors)}")
    if set(responses) != set(places):
        raise ValueError(f"responses: expected one of each of {len(places)} combinations")
    values = [float(responses[levels]) for levels in places]
    if not all(isfinite(value) and (value > 0 or not as_ratios) for value in values):
        kind = "positive" if as_ratios else "finite"
        raise ValueError(f"responses: expected {kind} values, got {values}")
    contrasts = _contrasts([log(value) for value in values] if as_ratios else values)
    effects = []
    for levels, contrast in zip(places[1:], contrasts[1:], strict=True):
        mean = contrast / (len(places) // 2)
        names = tuple(name for name, is_on in zip(factors, levels, strict=True) if is_on)
        effects.append(FactorialEffect(names, exp(mean) if as_ratios else mean))
    order = {name: place for place, name in enumerate(factors)}
    return sorted(effects, key=lambda e: (len(e.factors), [order[name] for name in e.factors]))


def _levels_at(place: int, num_factors: int) -> Levels:
    """Yates' order: the first factor changes fastest."""
    return tuple(bool(place >> factor & 1) for factor in range(num_factors))


def _contrasts(values: list[float]) -> list[float]:
    """Of each place the sum of the values, those less in which an odd number of its factors is off.

    Sums and differences of neighbours, once for each factor.
    """
    for _ in range(len(values).bit_length() - 1):
        pairs = list(zip(values[::2], values[1::2], strict=True))
        values = [a + b for a, b in pairs] + [b - a for a, b in pairs]
    return values
