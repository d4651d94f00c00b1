"""What a client may ask of the choice of its worker, in the field's words, checked.

A trace's row and an HTTP request say it alike. Nothing is changed in silence: a name that is not
known, or a value that cannot be, is refused with the key it stands under.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from math import isfinite

Overrides = tuple[tuple[str, float], ...]
"""Fields of the router's cost function with other values for one request; see `CostSpec`."""

SWITCHES = ("assume_kv_reuse", "track_prefill_tokens")
FACTORS = (
    "overlap_score_credit",
    "overlap_score_credit_decay",
    "prefill_load_scale",
    "host_cache_hit_weight",
    "disk_cache_hit_weight",
    "active_request_weight",
    "temperature",
)
OTHER_NAMES = {
    "router_temperature": "temperature",
    "router_assume_kv_reuse": "assume_kv_reuse",
    "router_track_prefill_tokens": "track_prefill_tokens",
    "decode_active_request_weight": "active_request_weight",
}
LEGACY_WEIGHT = "overlap_score_weight"
"""Dynamo's old knob: the weight of prefill work, where 0 also means that caches do not count."""

OF_ALL_REQUESTS = ("shared_cache_multiplier",)


class WishError(ValueError):
    """A wish that cannot be; `key` is the one that it stands under, within the wishes."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


def read_overrides(given: Mapping[str, object]) -> Overrides:
    """A request's `router_config_override`; null is the same as leaving a key out.

    Raises: WishError for an unknown key, a value that cannot be, or a key that is given twice.
    """
    values: dict[str, float] = {}
    told: dict[str, str] = {}  # under which name
    for name, value in given.items():
        if value is None:
            continue
        for key, number in _override(name, value).items():
            if key in values:
                raise WishError(name, f"given beside {told[key]}: keep one of them")
            values[key], told[key] = number, name
    return tuple(sorted(values.items()))


def read_weights(given: Mapping[str, object]) -> tuple[tuple[str, float], ...]:
    """Preferred taints with their weights. Raises: WishError."""
    for taint, weight in given.items():
        if not _is_number(weight):
            raise WishError(taint, f"expected a finite number, got {_shown(weight)}")
    return tuple(sorted((taint, float(weight)) for taint, weight in given.items()))  # type: ignore[arg-type]


def _override(name: str, value: object) -> dict[str, float]:
    key = OTHER_NAMES.get(name, name)
    if key in SWITCHES:
        if not isinstance(value, bool):
            raise WishError(name, f"expected true or false, got {_shown(value)}")
        return {key: value}
    if key in OF_ALL_REQUESTS:
        raise WishError(name, f"not for one request: it is the key router.{key} of a simulation")
    if key not in FACTORS and key != LEGACY_WEIGHT:
        raise WishError(name, f"unknown key{_remedy(name)}")
    if not _is_number(value) or not value >= 0:  # type: ignore[operator]
        raise WishError(name, f"expected a finite number >= 0, got {_shown(value)}")
    number = float(value)  # type: ignore[arg-type]
    if key != LEGACY_WEIGHT:
        return {key: number}
    ignoring = {"overlap_score_credit": 0.0} if number == 0 else {}
    return {"prefill_load_scale": number, **ignoring}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _remedy(name: str) -> str:
    known = (*FACTORS, *SWITCHES, *OTHER_NAMES, LEGACY_WEIGHT)
    near = get_close_matches(name, known, 1)
    return f", did you mean {near[0]}?" if near else f" (known: {', '.join((*FACTORS, *SWITCHES))})"


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
