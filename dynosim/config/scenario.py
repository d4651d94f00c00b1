"""The `scenario:` list: what happens to the cluster in the course of a run, and when."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from dynosim.config.base import (
    Count,
    NotNegative,
    Rule,
    Section,
    Share,
    as_stated,
    check_rules,
    refuse,
)
from dynosim.config.engine import EngineKnobs

_PERCENT = "%"


def _amount(value: Any) -> Any:
    """A number of workers, or a share: `25%` is 0.25."""
    if isinstance(value, str):
        number = value.removesuffix(_PERCENT)
        if number == value or not number.replace(".", "", 1).isdigit():
            raise refuse(f"{value!r} is no number of workers", "write 1, or a share like 25%")
        value = float(number) / 100
    if isinstance(value, float) and not 0 <= value <= 1:
        raise refuse(f"a share of {value:g}", "write whole workers, or a share from 0% to 100%")
    if isinstance(value, int) and not 0 <= value <= 65536:
        raise refuse(f"{value} workers", "write a number from 0 to 65536")
    return value


WorkersOrShare = Annotated[int | float, BeforeValidator(_amount)]
Seconds = Annotated[float, Field(gt=0)]

ACTIONS = (
    "launch",
    "drain",
    "fail",
    "hang",
    "spot_loss",
    "slow",
    "partition",
    "lose_frontend",
    "lose_events",
    "delay_events",
    "rolling_update",
    "canary",
)
ON_WORKERS = ("drain", "fail", "hang", "spot_loss", "slow")
ON_KV_EVENTS = ("lose_events", "delay_events")
ALL_WORKERS = "all"
_LOSSES = ("fail", "hang", "spot_loss")
_BELONGS_TO: dict[str, tuple[str, ...]] = {
    "count": ("launch",),
    "detect_s": ("hang",),
    "notice_s": ("spot_loss",),
    "factor": ("slow",),
    "for_s": ("slow", "partition", "lose_frontend", *ON_KV_EVENTS, "canary"),
    "share": ("lose_events",),
    "delay_ms": ("delay_events",),
    "replace": _LOSSES,
    "replace_after_s": _LOSSES,
    "takeover_s": _LOSSES,
}
_NEEDS = {
    "detect_s": ("hang",),
    "notice_s": ("spot_loss",),
    "factor": ("slow",),
    "for_s": ("partition", "lose_frontend", *ON_KV_EVENTS),
    "delay_ms": ("delay_events",),
}


NEW_ENGINE_KEYS = (
    "num_gpu_blocks",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "policy",
    "watermark",
    "scheduler_reserve_full_isl",
    "max_num_active_seqs",
)
"""Keys of `engine:` in which workers of a new generation may differ: what its scheduler goes by, so
that both name blocks alike and hold the same model in the same way."""


class NewWorkersConfig(Section):
    """In what workers of a new generation differ from those they come after."""

    engine: Annotated[EngineKnobs, PlainSerializer(as_stated)] = EngineKnobs.model_construct()
    """Keys of `engine:` that are others for new workers: blocks, seats, tokens, order."""
    step_time_factor: Annotated[float, Field(gt=0)] = 1.0
    """How many times as long as the run file's step times those of new workers are. Unit:
    factor."""

    @model_validator(mode="after")
    def _new_workers_rules(self) -> Self:
        stated = [key for key in EngineKnobs.model_fields if key in self.engine.model_fields_set]
        rules: list[Rule] = [
            (f"engine.{key}", key not in NEW_ENGINE_KEYS, "the same for all generations of workers",
             f"remove it; new ones may differ in {_any_of(NEW_ENGINE_KEYS)}")
            for key in stated
        ]  # fmt: skip
        rules.append(
            ("engine.num_gpu_blocks",
             "num_gpu_blocks" in stated and self.engine.num_gpu_blocks == "auto",
             "auto is what the workers before have", "write how many, or remove it"),
        )  # fmt: skip
        check_rules(rules)
        return self

    @property
    def is_the_same(self) -> bool:
        """Whether new workers are what those before them are."""
        return not self.engine.model_fields_set and self.step_time_factor == 1


class RollingUpdateConfig(NewWorkersConfig):
    """All workers are replaced, few at a time."""

    pools: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Pools whose workers are replaced; null: all."""
    max_surge: WorkersOrShare = 0.25
    """How many workers there may be more than before, rounded up. Unit: workers, or share."""
    max_unavailable: WorkersOrShare = 0.25
    """How many of them may be missing, rounded down. Unit: workers, or share."""
    generations: Literal["mixed", "isolated"] = "mixed"
    """Whether old and new workers serve a request together, or each request is of one of them."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of each pool that is replaced. Unit: share."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_stuck = not self.max_surge and not self.max_unavailable
        check_rules(
            [
                ("max_surge", is_stuck, "0, as is max_unavailable: no worker could be replaced",
                 "raise one of them"),
            ]
        )  # fmt: skip
        return self


class CanaryConfig(NewWorkersConfig):
    """New workers get a share of the requests."""

    share: Share
    """Part of the requests that they get. Unit: share."""
    workers: Count = 1
    """New workers of each pool. Unit: workers."""


class ScenarioEventConfig(Section):
    """One thing that happens.

    A worker is named by its pool and its number there, as `decode/0` (`workers/0` of an aggregated
    cluster), all workers of a place by that, as `node=a`.
    """

    at_s: NotNegative
    """Time from the start of the run. Unit: s."""
    launch: str | None = None
    """Pool in which workers start."""
    drain: str | None = None
    """Worker or place that takes no more requests and goes when it has done what it has."""
    fail: str | None = None
    """Worker or place that crashes; its requests move on at once."""
    hang: str | None = None
    """Worker or place that does nothing any more; its requests wait until that is detected."""
    spot_loss: str | None = None
    """Worker or place that is given notice, drains, and is gone when that has run out."""
    slow: str | None = None
    """Worker or place whose steps take longer."""
    partition: bool = False
    """Whether prefill and decode workers are cut off from each other."""
    lose_frontend: Annotated[int, Field(ge=0)] | None = None
    """Number of the frontend that is gone, with the requests that it has."""
    lose_events: str | None = None
    """Worker or place whose KV events do not get to the routers, or `all`."""
    delay_events: str | None = None
    """Worker or place whose KV events get to the routers late, or `all`."""
    rolling_update: RollingUpdateConfig | None = None
    """Workers are replaced, few at a time."""
    canary: CanaryConfig | None = None
    """New workers get a share of the requests, none of which is served by both."""
    count: Count = 1
    """How many workers start. Unit: workers."""
    detect_s: Seconds | None = None
    """Time until it is noticed that workers hang. Unit: s."""
    notice_s: NotNegative | None = None
    """Time from the notice to the loss. Unit: s."""
    factor: Annotated[float, Field(gt=0)] | None = None
    """How much longer steps take. Unit: factor."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of the events that is lost. Unit: share."""
    delay_ms: Annotated[float, Field(gt=0)] | None = None
    """Time that events take beside what they usually do. Unit: ms."""
    for_s: Seconds | None = None
    """How long it lasts; null: to the end. Unit: s."""
    replace: Literal["start", "takeover", "none"] = "start"
    """What comes after a lost worker: a new one that starts up, a standby that takes over (its
    cache is empty), or nothing."""
    replace_after_s: NotNegative = 0.0
    """Time from the loss to that. Unit: s."""
    takeover_s: NotNegative | None = None
    """Time that a standby takes until it serves. Unit: s."""

    @property
    def action(self) -> str:
        """Which of `ACTIONS` it is."""
        return next(key for key in ACTIONS if self._is_stated(key))

    @property
    def new_workers(self) -> NewWorkersConfig | None:
        """What it says of a new generation of workers; None: there is none."""
        return self.rolling_update or self.canary

    @property
    def launches_workers(self) -> bool:
        """Whether workers start up by it, as the pool says of starts."""
        if self.action in _LOSSES:
            return self.replace == "start"
        return self.action in ("launch", "rolling_update", "canary")

    @property
    def named_worker(self) -> tuple[str, int] | None:
        """The pool of the single worker that it is about, and its number; None: it is not."""
        value = getattr(self, self.action)
        if self.action not in (*ON_WORKERS, *ON_KV_EVENTS) or value == ALL_WORKERS or "=" in value:
            return None
        pool, _, number = value.partition("/")
        return pool, int(number)

    def _is_stated(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        stated = [key for key in ACTIONS if self._is_stated(key)]
        if len(stated) != 1:
            what = " and ".join(stated) or "nothing"
            rule = ("at_s", True, f"{what} happens", f"state one of {', '.join(ACTIONS)}")
            check_rules([rule])
        (action,) = stated
        rules: list[Rule] = [
            (key, self._is_stated(key) and action not in actions,
             f"stated, but what happens is {action}",
             f"remove it; it belongs to {_any_of(actions)}")
            for key, actions in _BELONGS_TO.items()
        ]  # fmt: skip
        rules += [
            (key, action in actions and not self._is_stated(key), f"missing; {action} needs it",
             f"add `{key}: ...`")
            for key, actions in _NEEDS.items()
        ]  # fmt: skip
        is_standby = self.replace == "takeover"
        rules += [
            ("takeover_s", is_standby and self.takeover_s is None, "missing; a standby takes over",
             "add `takeover_s: 10`"),
            ("takeover_s", not is_standby and self.takeover_s is not None,
             f"stated, but replace is {self.replace}", "remove it, or set replace: takeover"),
        ]  # fmt: skip
        check_rules(rules)
        return self


def _any_of(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def scenario_rules(
    events: list[ScenarioEventConfig],
    pools: Mapping[str, int],
    places: Mapping[str, set[str]],
    *,
    frontends: int,
    may_grow: bool,
    deafness: tuple[str, str] | None = None,
) -> Iterator[Rule]:
    """What is wrong with events in a cluster of such pools (workers by name) and places.

    `may_grow`: more workers may come than the events themselves start. `deafness` is why routers
    would not notice lost KV events, and the remedy.
    """
    known, before_s = dict(pools), 0.0
    for number, event in enumerate(events):
        at, action = f"scenario.{number}", event.action
        yield (f"{at}.at_s", event.at_s < before_s,
               f"{event.at_s:g}, but the event before it is at {before_s:g}",
               "put the events in the order of their times")  # fmt: skip
        before_s = max(before_s, event.at_s)
        value = getattr(event, action)
        if action in ON_WORKERS:
            yield from _target_rules(f"{at}.{action}", value, known, places, may_grow=may_grow)
        if action in ON_KV_EVENTS:
            if value != ALL_WORKERS:
                yield from _target_rules(f"{at}.{action}", value, known, places, may_grow=may_grow)
            why, remedy = deafness or ("", "")
            yield (f"{at}.{action}", deafness is not None, why, remedy)
        for pool in _pools_named(event):
            yield _pool_rule(at, action, pool, pools)
        if action == "launch" and value in known:
            known[value] += event.count
        yield (f"{at}.partition", action == "partition" and "decode" not in pools,
               "there are no prefill and decode workers to be cut off from each other",
               "set cluster.mode: disagg, or remove it")  # fmt: skip
        if action == "lose_frontend":
            yield (f"{at}.lose_frontend", value >= frontends,
                   f"{value}, but frontends are numbered from 0 to {frontends - 1}",
                   "name another, or raise router.frontends")  # fmt: skip
            yield (
                f"{at}.lose_frontend",
                frontends == 1,
                "the only frontend",
                "set router.frontends: 2",
            )


def _pools_named(event: ScenarioEventConfig) -> tuple[str, ...]:
    if event.launch is not None:
        return (event.launch,)
    update = event.rolling_update
    return () if update is None or update.pools is None else update.pools


def _pool_rule(at: str, action: str, pool: str, pools: Mapping[str, int]) -> Rule:
    key = f"{at}.{action}" if action == "launch" else f"{at}.{action}.pools"
    return (key, pool not in pools, f"no pool {pool}", f"the pools are {', '.join(pools)}")


def _target_rules(
    key: str,
    target: str,
    pools: Mapping[str, int],
    places: Mapping[str, set[str]],
    *,
    may_grow: bool,
) -> Iterator[Rule]:
    domain, is_place, value = target.partition("=")
    if is_place:
        yield (key, domain not in places, f"no worker says its {domain}",
               f"state cluster.topology.{domain}, or name a worker")  # fmt: skip
        values = places.get(domain, {value})
        yield (key, value not in values, f"no worker is in {domain} {value}",
               f"{domain} is one of {', '.join(sorted(values))}")  # fmt: skip
        return
    pool, slash, number = target.partition("/")
    is_worker = bool(slash) and number.isdigit()
    yield (key, not is_worker, f"{target!r} names no worker", "write POOL/NUMBER or DOMAIN=VALUE")
    if not is_worker:
        return
    yield (key, pool not in pools, f"no pool {pool}", f"the pools are {', '.join(pools)}")
    count = pools.get(pool, 0)
    yield (key, not may_grow and pool in pools and int(number) >= count,
           f"there is never a worker {target}", f"{pool} has {count}, numbered from 0")  # fmt: skip
