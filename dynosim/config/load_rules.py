"""What the load section of a sweep means, and whether it can be had with the rest of the file."""

from typing import Any

from dynosim.config.problems import Problem
from dynosim.config.sweep_modes import AGG, DISAGG, MODE, mode_of
from dynosim.config.sweep_schema import LoadConfig, SweepKeys

WORKERS, DECODE_WORKERS = "cluster.workers", "cluster.decode.workers"
SOUGHT_KEYS = (WORKERS, DECODE_WORKERS)
"""The keys that `load.need` solves for: of an aggregated and of a disaggregated cluster."""
PREFILL_WORKERS = "cluster.prefill.workers"


def resolved_load(keys: SweepKeys, base: dict[str, Any]) -> LoadConfig:
    """The load section with what is meant where it says nothing."""
    load, workload = keys.load, base.get("workload")
    is_closed = isinstance(workload, dict) and workload.get("concurrency") is not None
    is_closed |= load.need is not None and load.need.concurrency is not None
    search = "curve" if keys.constraints.sla is None else "capacity"
    if any(key.split(".")[0] == "workload" for key in keys.space) and load.need is None:
        search = "fixed"
    if _is_staged(workload) and load.need is None:
        search = "fixed"
    meant = {
        "search": load.search or search,
        "vary": load.vary or ("concurrency" if is_closed else "rate"),
    }
    given = load.model_fields_set
    return LoadConfig.model_construct(given, **{**dict(load), **meant})


def load_problems(keys: SweepKeys, base: dict[str, Any]) -> list[Problem]:
    """A load that is searched must be one that can be varied."""
    workload = base.get("workload")
    given = sorted(keys.load.model_fields_set - {"search"})
    if keys.load.search == "fixed" and given:
        varied = next(key for key in keys.space if key.split(".")[0] == "workload")
        remedy = f"remove it, or take {varied} out of the space"
        return [Problem(("load", given[0]), f"has no effect: {varied} varies", remedy)]
    if keys.load.search == "fixed" or not isinstance(workload, dict):
        return []
    problems = []
    if _is_staged(workload):
        remedy = "set `load.search: fixed`, or give one rate in place of the stages"
        problems.append(
            Problem(("load", "search"), "workload.stages are loads of their own", remedy)
        )
    swept = [key for key in keys.space if key.startswith("workload.")]
    if swept:
        remedy = "take it out of the space, or set `load.search: fixed`"
        problems.append(Problem(("space", swept[0]), "varies beside the load", remedy))
    if keys.load.vary == "rate" and workload.get("concurrency") is not None:
        remedy = "set `load.vary: concurrency`, or remove workload.concurrency"
        problems.append(Problem(("load", "vary"), "a closed loop has no rate", remedy))
    problems += _kind_problems(keys.load) + _closed_problems(keys)
    return problems + _need_problems(keys, base)


def _is_staged(workload: Any) -> bool:
    return isinstance(workload, dict) and workload.get("stages") is not None


def _kind_problems(load: LoadConfig) -> list[Problem]:
    """Keys that only one kind of load obeys."""
    given, is_closed = load.model_fields_set, load.vary == "concurrency"
    asked = set() if load.need is None else set(load.need.given)
    is_other = bool(asked) and (asked == {"concurrency"}) != is_closed
    is_part = is_closed and any(end != int(end) for end in load.range or ())
    broken = [
        ("concurrencies", "concurrencies" in given and not (is_closed and load.search == "curve"),
         "are loads of a closed loop's curve",
         "add `search: curve` and `vary: concurrency`, or remove them"),
        ("requests_per_slot", "requests_per_slot" in given and not is_closed,
         "only a closed loop has slots", "use min_requests, or add `vary: concurrency`"),
        ("need", is_other, f"{next(iter(asked), '')} is not what vary: {load.vary} varies",
         "use concurrency with `vary: concurrency`, else rps or sessions_per_s"),
        ("range", is_part, "concurrency is counted in whole requests", "round them"),
    ]  # fmt: skip
    return [Problem(("load", key), text, remedy) for key, is_broken, text, remedy in broken
            if is_broken]  # fmt: skip


def _closed_problems(keys: SweepKeys) -> list[Problem]:
    """A closed loop never piles up: only an SLA says how much is too much."""
    load = keys.load
    is_endless = load.vary == "concurrency" and keys.constraints.sla is None
    if not is_endless or (load.search == "curve" and load.need is None):
        return []
    remedy = "add `constraints: {sla: {ttft_ms: 2000}}`, or set `load.search: curve`"
    return [Problem(("load", "vary"), "without an SLA any concurrency is carried", remedy)]


def _need_problems(keys: SweepKeys, base: dict[str, Any]) -> list[Problem]:
    """Workers are solved for: within a budget, and from no number that stands in the file."""
    if keys.load.need is None:
        return []
    problems, here = [], ("load", "need")
    sought = _sought_keys(keys, base)
    for key in sought:
        if _stated(base, key):
            remedy = f"remove {key}, or load.need"
            problems.append(Problem(here, "finds how many workers it takes", remedy))
    is_split = DECODE_WORKERS in sought
    if is_split and PREFILL_WORKERS not in keys.space and not _stated(base, PREFILL_WORKERS):
        text = "finds how many decode workers it takes beside so many that prefill"
        problems.append(Problem(here, text, f"add `{PREFILL_WORKERS}: [1, 2, 4]` to the space"))
    is_bounded = all(key in keys.space for key in sought)
    if keys.constraints.gpu_budget is None and not is_bounded:
        remedy = "add `constraints: {gpu_budget: 64}`"
        problems.append(Problem(here, "must know how many GPUs there are", remedy))
    if keys.search.screen is not None:
        remedy = "remove search.screen, or load.need"
        problems.append(Problem(here, "tries numbers of workers by itself, unscreened", remedy))
    if keys.search.method != "grid":
        remedy = "use `search: {method: grid}`, or remove load.need"
        problems.append(Problem(here, "tries every point of the space", remedy))
    return problems


def _sought_keys(keys: SweepKeys, base: dict[str, Any]) -> list[str]:
    """What is solved for in the modes of the space."""
    modes = keys.space.get(MODE)
    if isinstance(modes, dict):
        modes = modes.get("choices")
    listed = modes if isinstance(modes, list) else [mode_of({}, base)]
    return [key for key, mode in zip(SOUGHT_KEYS, (AGG, DISAGG), strict=True) if mode in listed]


def _stated(base: dict[str, Any], key: str) -> bool:
    """Whether the file itself says something of a dotted key."""
    data: Any = base
    for part in key.split("."):
        data = data.get(part) if isinstance(data, dict) else None
    return data is not None
