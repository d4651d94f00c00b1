"""The description of a synthetic workload and what it must obey."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from dynosim.errors import ConfigError
from dynosim.workload.arrivals import check_arrivals
from dynosim.workload.distributions import Distribution, as_distribution
from dynosim.workload.priorities import PriorityShare, check_priorities

_DISTRIBUTIONS = ("isl", "osl", "turn_isl", "turns", "think_time_ms")
STAGES_SAY = ("requests", "sessions", "rate_rps")
"""What load stages say in place of the spec."""
REQUESTS_MAX = 50_000_000
"""More would need over 5 GB for the columns of the trace alone."""
_ZERO, _ONE = Distribution(mean=0.0), Distribution(mean=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSpec:
    """A synthetic workload. Exactly one of `requests` and `sessions` says how much of it."""

    requests: int | None = None  # in all; the last session may be cut
    sessions: int | None = None
    isl: Distribution  # tokens of a session's first prompt, the shared prefix included
    osl: Distribution  # tokens of each answer
    turn_isl: Distribution | None = None  # new user tokens of a later turn; None: as isl
    turns: Distribution = _ONE  # per session
    think_time_ms: Distribution = _ZERO  # from an answer's end to the next turn
    arrival: str = "poisson"  # of sessions: poisson, gamma, constant, closed (all at 0)
    rate_rps: float | None = None  # requests/s in the long run, all turns counted
    burstiness: float = 1.0  # gamma's shape: below 1 comes in bursts, 1 is Poisson
    shared_prefix_ratio: float = 0.0  # share of the first prompt that a group has in common
    shared_prefix_tokens: int | None = None  # instead of the ratio: the same for every session
    prefix_groups: int = 1
    prefix_group_skew: float = 0.0  # 0: groups equally likely; 1: Zipf
    max_context_tokens: int | None = None  # a session ends before prompt + answer exceed it
    block_size: int = 512  # prompt tokens behind one hash id
    priorities: tuple[PriorityShare, ...] = ()  # of sessions; none: all alike

    def check(self, *, is_staged: bool = False) -> None:
        """Raises: ConfigError naming the key whose value cannot be used.

        Where load stages say how much comes and when (`is_staged`), nothing else may.
        """
        if is_staged:
            self._check_staged()
        elif (self.requests is None) == (self.sessions is None):
            raise ConfigError("requests, sessions: give exactly one of them")
        for key in ("requests", "sessions", "prefix_groups", "block_size", "max_context_tokens"):
            _require_at_least(key, getattr(self, key), 1)
        for key in ("requests", "sessions"):
            check_size(key, getattr(self, key) or 0, REQUESTS_MAX, key)
        check_size("prefix_groups", self.prefix_groups, REQUESTS_MAX, "groups")
        _require_at_least("shared_prefix_tokens", self.shared_prefix_tokens, 0)
        _require_at_least("prefix_group_skew", self.prefix_group_skew, 0)
        if not 0.0 <= self.shared_prefix_ratio <= 1.0:
            raise ConfigError(
                f"shared_prefix_ratio: expected 0 to 1, got {self.shared_prefix_ratio}"
            )
        if self.shared_prefix_ratio and self.shared_prefix_tokens is not None:
            raise ConfigError("shared_prefix_ratio, shared_prefix_tokens: give only one of them")
        for key in _DISTRIBUTIONS:
            if (distribution := getattr(self, key)) is not None:
                distribution.check(key, least=0.0 if key == "think_time_ms" else 1.0)
        if self.turns.dist == "empirical":
            raise ConfigError("turns.dist: a trace does not tell turns: choose another one")
        rate_rps = 1.0 if is_staged else self.rate_rps
        check_arrivals(self.arrival, rate_rps=rate_rps, burstiness=self.burstiness)
        check_priorities(self.priorities)

    def _check_staged(self) -> None:
        for key in STAGES_SAY:
            if getattr(self, key) is not None:
                raise ConfigError(f"{key}: the load stages say it (remove one of the two)")
        if self.arrival == "closed":
            raise ConfigError("arrival: a closed loop has no load stages (remove one of the two)")


def as_spec(value: object, *, is_staged: bool = False) -> SyntheticSpec:
    """A checked spec from a mapping or from any object with the spec's fields as attributes.

    Attributes that are absent or None mean the default. Raises: ConfigError.
    """
    if isinstance(value, SyntheticSpec):
        value.check(is_staged=is_staged)
        return value
    names = [field.name for field in fields(SyntheticSpec)]
    if isinstance(value, Mapping):
        given: dict[str, Any] = dict(value)
        check_keys(given)
    else:
        given = {name: getattr(value, name) for name in names if hasattr(value, name)}
    given = {key: item for key, item in given.items() if item is not None}
    for key in ("isl", "osl"):
        if key not in given:
            raise ConfigError(
                f"{key}: missing: tokens per {'prompt' if key == 'isl' else 'answer'}"
            )
    for key in _DISTRIBUTIONS:
        if key in given:
            given[key] = as_distribution(given[key], key)
    shares = enumerate(given.get("priorities") or ())
    given["priorities"] = tuple(PriorityShare.of(one, f"priorities[{at}]") for at, one in shares)
    spec = SyntheticSpec(**given)
    spec.check(is_staged=is_staged)
    return spec


def check_size(key: str, size: float, size_max: int, what: str) -> None:
    """Refuse a workload before memory for it is asked for. Raises: ConfigError naming `key`."""
    if size > size_max:
        raise ConfigError(
            f"{key}: asks for {size:,.0f} {what}, at most {size_max:,} fit in memory (ask for less)"
        )


def check_keys(keys: Iterable[Any]) -> None:
    """Raises: ConfigError for a key that a synthetic workload does not have."""
    names = [field.name for field in fields(SyntheticSpec)]
    for key in keys:
        if key not in names:
            close = get_close_matches(str(key), names, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
            raise ConfigError(f"{key}: unknown key of a synthetic workload, {hint}")


def _require_at_least(key: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:
        raise ConfigError(f"{key}: expected at least {least}, got {value}")
