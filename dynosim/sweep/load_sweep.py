"""A sweep that seeks what every layout carries: which layouts, at which loads, and what comes out.

A layout's row holds the report of the largest load that it carries, and the keys of
`capacity_keys`. Layouts that cannot differ are tried once.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynosim.config.router import RouterConfig
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.files.digest import digest
from dynosim.metrics.carried import Bounds, SlaTarget
from dynosim.metrics.misses import misses_text
from dynosim.sweep.capacity import LoadCapacity, LoadRange
from dynosim.sweep.ledger import Record
from dynosim.sweep.load_search import LoadSearch
from dynosim.sweep.probe import probe_request
from dynosim.sweep.results import CAPACITY, FAILED_LOAD, NOT_PURSUED, table_of
from dynosim.sweep.same_plan import plan_data
from dynosim.sweep.space import Trial
from dynosim.sweep.status import OK
from dynosim.sweep.study import OWN_LOAD, LayoutStudy, LoadPlan, Probe

if TYPE_CHECKING:
    import polars as pl

IN_FLIGHT_KEYS = (
    "capacity_in_flight",
    "capacity_in_flight_per_worker",
    "capacity_requests_per_slot",
    "capacity_num_judged",
)


def load_plan(sweep: SweepConfig) -> LoadPlan:
    """The loads that the sweep's layouts are tried at.

    A closed loop without an SLA has no capacity: its ladder is all.
    """
    load, sla = sweep.load, sweep.constraints.sla
    low, high = load.ends
    is_closed = load.vary == "concurrency"
    own = own_concurrency(sweep) if is_closed else OWN_LOAD
    is_wanted = load.search == "curve" or load.need is None  # a size needs no picture
    is_curve = "curve" in load.model_fields_set or (is_wanted and not is_closed)
    return LoadPlan(
        LoadRange(low, high, load.tolerance, is_closed),
        1.0 if sla is None else sla.share,
        tuple(load.curve) if is_curve else (),
        load.ladder,
        is_sought=not is_closed or sla is not None,
        tries_own_load=own is not None,
        own_load=OWN_LOAD if own is None else float(own),
        goes_by_attainment=sla is None or sla.statistic is None,
    )


def own_concurrency(sweep: SweepConfig) -> int | None:
    """In flight, what the sweep needs to hold or its workload asks for; None: nothing is said."""
    if sweep.load.need is not None:
        return sweep.load.need.concurrency
    asked: int | None = sweep.base["workload"].get("concurrency")
    return asked


def target_of(sweep: SweepConfig) -> SlaTarget:
    """What is asked of a load: without an SLA only that it does not pile up."""
    sla = sweep.constraints.sla
    if sla is None:
        return SlaTarget(attainment=0.0)
    return SlaTarget(Bounds(sla.ttft_ms, sla.itl_ms, sla.e2e_ms), sla.share, sla.statistic)


def request_at(sweep: SweepConfig, layout: Trial, load: float | None) -> dict[str, Any]:
    """What a worker needs to try a layout at a load."""
    assert layout.config is not None and sweep.load.vary is not None
    return probe_request(
        layout.config,
        load,
        vary=sweep.load.vary,
        target=target_of(sweep),
        min_requests=sweep.load.min_requests,
        requests_per_slot=sweep.load.requests_per_slot,
        ends=sweep.load.ends,
    )


def same_as(trials: Sequence[Trial], first: dict[str, int] | None = None) -> dict[int, int]:
    """For each trial that can be run the first one that cannot differ from it, often itself.

    `first` has the first of each layout, of trials before these; those that are new are added.
    """
    first = {} if first is None else first
    return {
        trial.index: first.setdefault(_layout_digest(trial.config), trial.index)
        for trial in trials
        if trial.config is not None
    }


def _layout_digest(config: RunConfig) -> str:
    """Equal for configurations that serve alike: one worker gets all requests from any router that
    lets none wait."""
    data = plan_data(config)
    plain = RouterConfig.model_validate({}).model_dump(mode="json", exclude={"mode"})
    is_lone = not config.cluster.is_disagg and config.cluster.workers == 1
    if is_lone and {**data["router"], **plain} == data["router"]:
        del data["router"]
    return digest(data)


def records_of(search: LoadSearch, same: Mapping[int, int]) -> dict[int, Record]:
    """What a trial's record says, from the study of its layout; none where that is not over."""
    records: dict[int, Record] = {}
    for index, layout in same.items():
        failure = search.failures.get(layout)
        if failure is not None:
            records[index] = {
                "status": failure["status"],
                "reason": failure["reason"],
                "report": {},
            }
            continue
        study = search.studies[layout]
        if not search.is_finished(layout):
            continue
        report = capacity_keys(study)
        if layout in search.not_pursued:
            report[NOT_PURSUED] = search.not_pursued[layout]
        if layout != index:
            report["same_as"] = layout
        best = study.at_capacity
        records[index] = {
            "status": OK,
            "reason": "",
            "report": report if best is None else {**best.report, **report},
            "draws": study.draws,
        }
    return records


def probes_table(sweep: SweepConfig, trials: Sequence[Trial], search: LoadSearch) -> "pl.DataFrame":
    """A row for every load of every layout, by layout and load.

    One that was stopped early (`is_stopped`) has what was seen by then (`attainment_so_far`) in
    place of a report.
    """
    tried = [
        (trials[index], study.probes[load])
        for index, study in search.studies.items()
        for load in sorted(study.probes)
    ]
    columns: dict[str, list[Any]] = {"trial_id": [layout.index for layout, _ in tried]}
    for dimension in sweep.dimensions:
        columns[dimension.key] = [layout.values.get(dimension.key) for layout, _ in tried]
    columns |= {
        "load": [probe.load for _, probe in tried],
        "offered_rps": [probe.offered_rps for _, probe in tried],
        "is_carried": [probe.is_carried for _, probe in tried],
        "attainment": [probe.attainment for _, probe in tried],
        "is_stopped": [not probe.is_whole for _, probe in tried],
        "attainment_so_far": [probe.attainment_so_far for _, probe in tried],
        "in_flight": [probe.told("in_flight") for _, probe in tried],
        "num_judged": [probe.told("num_judged") for _, probe in tried],
        "reason": [None if probe.is_carried else _reason(probe) for _, probe in tried],
    }
    for name in dict.fromkeys(key for _, probe in tried for key in probe.report):
        columns.setdefault(name, [probe.report.get(name) for _, probe in tried])
    return table_of(columns)


def capacity_keys(study: LayoutStudy) -> dict[str, Any]:
    """What the study of a layout found, by key of its row.

    `capacity_load` is a multiple of the workload's load, or requests in flight; the first load that
    was not carried is `capacity_load_failed`. Why that was not, `capacity_reason` says. Whether
    the own load is carried follows from the capacity where it was not tried.
    """
    capacity, best = study.capacity, study.at_capacity
    failed = None if capacity.high is None else study.probes[capacity.high]
    own_load = study.plan.own_load
    own = study.probes.get(own_load)
    is_own_carried = None if own is None else own.is_carried
    if own is None and study.plan.tries_own_load:
        is_own_carried = _is_carried(capacity, own_load)
    judged = best if best is not None else failed
    sure = study.interval
    return {
        CAPACITY: capacity.low,
        FAILED_LOAD: capacity.high,
        "capacity_rps": None if best is None else best.offered_rps,
        "capacity_load_low": None if sure is None else sure[0],
        "capacity_load_high": None if sure is None else sure[1],
        "capacity_reason": _reason(failed),
        "capacity_misses": None
        if failed is None or failed.verdict is None
        else misses_text(failed.verdict) or None,
        "capacity_attainment": None if judged is None else judged.attainment,
        "capacity_is_monotone": capacity.is_monotone,
        "own_load_carried": is_own_carried,
        "own_load_attainment": None if own is None else own.attainment,
        "num_probes": len(study.probes),
        **_in_flight_keys(study),
    }


def _is_carried(capacity: LoadCapacity, load: float) -> bool | None:
    """What a capacity says of a load that was not tried; None: nothing."""
    if capacity.high is not None and load >= capacity.high:
        return False
    if capacity.low is None:
        return None
    return True if load <= capacity.low else None


def _in_flight_keys(study: LayoutStudy) -> dict[str, Any]:
    """Requests in the system at the capacity, of which the field gives the total and the share of
    a worker; and how many requests each slot served: of a closed loop's, or of those in flight."""
    best = study.at_capacity
    in_flight = None if best is None else best.told("in_flight")
    if best is None or not in_flight:
        return dict.fromkeys(IN_FLIGHT_KEYS)
    slots = best.load if study.plan.range.is_whole else in_flight
    values = (
        in_flight,
        in_flight / best.report["num_workers"],
        best.report["num_requests"] / slots,
        best.told("num_judged"),
    )
    return dict(zip(IN_FLIGHT_KEYS, values, strict=True))


def _reason(failed: Probe | None) -> str | None:
    if failed is None:
        return None
    if failed.verdict is None:
        return "hopeless long before its end"
    return str(failed.verdict["reason"])
