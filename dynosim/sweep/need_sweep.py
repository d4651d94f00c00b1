"""A sweep that seeks the fewest GPUs which hold a load: which layouts, and what comes out.

Of every layout but for its number of workers the fewest that hold the load are sought; then how
much those carry (head-room). If no layout holds it within the budget, how much the largest of each
carries. The load that is needed is each trial's own: its multiples are multiples of the need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynosim.config.dimensions import Dimension
from dynosim.config.load_rules import DECODE_WORKERS, SOUGHT_KEYS, WORKERS
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.sweep_modes import DISAGG, mode_of
from dynosim.config.sweep_schema import NeedConfig
from dynosim.metrics.misses import misses_text
from dynosim.sweep.answer import IS_HELD
from dynosim.sweep.bound import scheduled_rps, scheduled_sessions_per_s
from dynosim.sweep.ledger import Ledger, Record
from dynosim.sweep.load_search import LoadSearch
from dynosim.sweep.load_sweep import load_plan, records_of, request_at, same_as
from dynosim.sweep.need_search import Family, NeedSearch
from dynosim.sweep.probe import check_has_rate, tiled_once
from dynosim.sweep.results import CAPACITY, table_of
from dynosim.sweep.search import Point, points_of
from dynosim.sweep.space import Trial, trial_at
from dynosim.sweep.status import OK
from dynosim.sweep.study import Probe
from dynosim.sweep.trial import cached_trace

if TYPE_CHECKING:
    import polars as pl

HEADROOM, LIMIT = "need_headroom", "need_limit"


def families_of(sweep: SweepConfig) -> list[Family]:
    """All layouts but for their numbers of workers, with the fewest, at the workload as it is.

    Of a disaggregated cluster it is the number of those that compute answers, beside each number of
    those that compute prompts.
    """
    others = tuple(d for d in sweep.dimensions if d.key not in SOUGHT_KEYS)
    points = points_of(replace(sweep, dimensions=others))
    return [_family(sweep, index, point) for index, point in enumerate(points)]


def _family(sweep: SweepConfig, index: int, point: Point) -> Family:
    """A layout with the fewest workers; the most are the space's, or what the budget allows."""
    is_split = mode_of(point, sweep.base) == DISAGG
    key = DECODE_WORKERS if is_split else WORKERS
    listed = next((d.samples() for d in sweep.dimensions if d.key == key), None)
    low = 1 if listed is None else min(listed)
    most = None if listed is None else max(listed)
    trial = trial_at(sweep, index, {**point, key: low})
    if trial.config is None:
        return Family(trial)
    budget = sweep.constraints.gpu_budget
    if budget is not None:
        each = trial.config.pools()[-1].engine.gpus_per_worker
        affordable = low + (budget - trial.config.num_gpus) // each
        most = affordable if most is None else min(most, affordable)
    assert most is not None, "a sweep that solves for workers has a budget, or bounds"
    return Family(trial, low, most)


def at_need(family: Family, sweep: SweepConfig) -> Family:
    """The family with what is needed as its workload's own load.

    Raises: TraceError for a workload without a rate; what loading it raises.
    """
    need = sweep.load.need
    config = family.trial.config
    assert need is not None
    if config is None:
        return family
    told = _own_load(config, need, sweep.load.min_requests)
    workload = config.workload.model_copy(update=told)
    config = config.model_copy(update={"workload": workload})
    return replace(family, trial=replace(family.trial, config=config))


def _own_load(config: RunConfig, need: NeedConfig, min_requests: int) -> dict[str, Any]:
    """Keys of the workload that make its own load the need."""
    if need.concurrency is not None:
        return {"concurrency": need.concurrency}
    trace = tiled_once(cached_trace(config), min_requests)
    own = scheduled_rps(trace) if need.rps is not None else scheduled_sessions_per_s(trace)
    check_has_rate(own, config)
    (wanted,) = need.given.values()
    return {"arrival_scale": config.workload.arrival_scale * wanted / own}


def need_request(sweep: SweepConfig, family: Family, workers: int | None) -> dict[str, Any]:
    """What a worker process needs to try so many workers at the load."""
    plan = load_plan(sweep)
    request = request_at(sweep, family.trial, plan.own_load)
    between = [family.low, family.high]
    return {**request, "key": family.key, "workers": workers, "between": between}


@dataclass(frozen=True, slots=True)
class Sized:
    """Layouts whose numbers of workers are found. `sought` are those whose capacity is sought."""

    sweep: SweepConfig  # its space has the numbers of workers
    trials: list[Trial]
    sought: list[Trial]


def sized(sweep: SweepConfig, families: Sequence[Family], search: NeedSearch) -> Sized:
    """The layouts with their fewest workers; where a layout does not hold the load, with the most.

    Sought are the capacities of those that hold it, or of all if none does.
    """
    trials, sought, held = [], [], []
    for family in families:
        fewest = None if family.trial.config is None else search.fewest(family.index)
        trial = with_workers(family, family.high if fewest is None else fewest)
        trials.append(trial)
        if trial.config is not None and family.index not in search.failures:
            sought.append(trial)
            held += [trial] if fewest is not None else []
    others = tuple(d for d in sweep.dimensions if d.key not in SOUGHT_KEYS)
    found = {key: {t.values[key] for t in trials if key in t.values} for key in SOUGHT_KEYS}
    solved = tuple(Dimension(key, tuple(sorted(n))) for key, n in found.items() if n)
    return Sized(replace(sweep, dimensions=(*others, *solved)), trials, held or sought)


def with_workers(family: Family, workers: int) -> Trial:
    """The same layout with another number of workers; one that cannot be run stays as it is."""
    trial = family.trial
    if trial.config is None:
        return trial
    cluster, changes = trial.config.cluster, {"workers": workers}
    if cluster.is_disagg:
        cluster = cluster.model_copy(update={"decode": cluster.decode.model_copy(update=changes)})
    else:
        cluster = cluster.model_copy(update=changes)
    config = trial.config.model_copy(update={"cluster": cluster})
    values = {**trial.values, family.key: workers}
    return replace(trial, values=values, config=config, known_as=trial.ledger_hash)


def capacity_ledger(ledger: Ledger, sought: Sequence[Trial]) -> Ledger:
    """The same ledger as a search for the capacities of these layouts sees it: of each the probe at
    the load that is needed, with which it begins, and those of its own."""
    probes: dict[int, list[Record]] = {}
    same = same_as(sought)
    for trial in sought:
        if same[trial.index] == trial.index:
            workers = next(trial.values[key] for key in SOUGHT_KEYS if key in trial.values)
            answers = ledger.probes.get(trial.index, [])
            probes[trial.index] = [a for a in answers if a.get("workers", workers) == workers]
    return replace(ledger, probes=probes)


def need_records(
    families: Sequence[Family], sizes: Sized, needs: NeedSearch, loads: LoadSearch
) -> dict[int, Record]:
    """What a trial's record says: the report at the load that is needed, if it is held."""
    capacities = records_of(loads, same_as(sizes.sought))
    records: dict[int, Record] = {}
    for family in families:
        failure = needs.failures.get(family.index)
        if failure is not None:
            record = {"status": failure["status"], "reason": failure["reason"], "report": {}}
        elif family.trial.config is not None:
            capacity = capacities.get(family.index, {"status": OK, "reason": "", "report": {}})
            report = _report(family, needs, capacity["report"], loads)
            record = {**capacity, "report": report}
        else:
            continue
        records[family.index] = record
    return records


def _report(
    family: Family, needs: NeedSearch, capacity: Mapping[str, Any], loads: LoadSearch
) -> dict[str, Any]:
    fewest, too_few = needs.fewest(family.index), needs.too_few(family.index)
    at_load = None if fewest is None else needs.probes[family.index][fewest]
    carried = capacity.get(CAPACITY)
    limit = None if too_few is None else limit_text(too_few)
    own_load = next(iter(loads.studies.values())).plan.own_load if loads.studies else 1.0
    unsought = {
        **dict.fromkeys(("capacity_rps", "capacity_attainment"), None),
        "capacity_load_failed": own_load,
        "capacity_reason": limit,
        "capacity_misses": limit,
    }
    return {
        CAPACITY: None,
        **(capacity or unsought),
        **({} if at_load is None else at_load.report),
        IS_HELD: fewest is not None,
        HEADROOM: None if carried is None else carried / own_load,
        LIMIT: limit,
        "need_attainment": None if at_load is None else at_load.attainment,
        "need_workers_too_few": _num_too_few(family, needs),
    }


def _num_too_few(family: Family, needs: NeedSearch) -> int | None:
    fewest = needs.fewest(family.index)
    if fewest is None:
        return family.high
    return fewest - 1 if fewest > family.low else None


def limit_text(probe: Probe) -> str:
    """Why a load was not carried."""
    if probe.verdict is None:
        missed = 1.0 - (probe.attainment_so_far or 0.0)
        return f"{100 * missed:.0f} % had missed the SLA when it was ended"
    return misses_text(probe.verdict) or str(probe.verdict["reason"])


def sizing_table(families: Sequence[Family], needs: NeedSearch) -> "pl.DataFrame":
    """A row for every number of workers that was tried at the load, by layout and workers."""
    tried = [
        (family, workers, probe)
        for family in families
        for workers, probe in sorted(needs.probes[family.index].items())
    ]
    solved = [key for key in SOUGHT_KEYS if any(family.key == key for family in families)]
    return table_of(
        {
            "trial_id": [family.index for family, _, _ in tried],
            **{
                key: [n if f.key == key else None for f, n, _ in tried]
                for key in solved or [WORKERS]
            },
            "offered_rps": [probe.offered_rps for _, _, probe in tried],
            "is_held": [probe.is_carried for _, _, probe in tried],
            "attainment": [probe.attainment for _, _, probe in tried],
            "is_stopped": [not probe.is_whole for _, _, probe in tried],
            "limit": [None if p.is_carried else limit_text(p) for _, _, p in tried],
        }
    )
