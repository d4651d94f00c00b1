"""Columns of a sweep's tables beside the report's keys, and the keys of summary.json."""

from dynosim.config.report_keys import BOOLEAN, INTEGER, LIST, NUMBER, SECTION, TEXT, ReportKey


def _columns(
    unit: str, kind: str, columns: dict[str, str], *, is_stable: bool = True
) -> tuple[ReportKey, ...]:
    return tuple(
        ReportKey(name, unit, meaning, kind, is_sought=False, is_stable=is_stable)
        for name, meaning in columns.items()
    )


_REPEAT = _columns(
    "times",
    INTEGER,
    {"workload_repeat": "How often the workload was put end to end, to be long enough."},
)
TRIAL_COLUMNS = (
    *_columns("", INTEGER, {"trial_id": "Number of the trial, in the order of the space."}),
    *_columns(
        "",
        TEXT,
        {
            "status": "`ok`, `infeasible` (it cannot be run) or `failed`.",
            "reason": "Why it is not ok.",
            "config_hash": "Equal for equal configurations.",
        },
    ),
    *_columns(
        "",
        BOOLEAN,
        {
            "is_pareto": "Whether no other finished trial beats it in all objectives.",
            "is_sla_pareto": "The same among those that meet the SLA.",
            "meets_sla": "Whether it meets the SLA; null: it did not run.",
        },
    ),
)
CAPACITY_COLUMNS = (
    *_columns(
        "loads",
        NUMBER,
        {
            "capacity_load": "Largest load that is carried: a multiple of the workload's, or "
            "requests in flight; null: none is.",
            "capacity_load_failed": "First load above it that is not; null: none failed.",
            "capacity_load_low": "Lower end of its 95 % interval, were other sessions drawn.",
            "capacity_load_high": "Upper end of that interval.",
        },
    ),
    *_columns("requests/s", NUMBER, {"capacity_rps": "Requests offered at that load."}),
    *_columns(
        "",
        TEXT,
        {
            "capacity_reason": "Why the first load above it failed.",
            "capacity_misses": "Which bounds requests missed there, and how many.",
            "capacity_not_pursued": "Why the capacity was not sought to the end, if it was not.",
        },
    ),
    *_columns(
        "share",
        NUMBER,
        {
            "capacity_attainment": "Requests within the SLA at it, or where none is carried, at "
            "the lowest load.",
        },
    ),
    *_columns(
        "",
        BOOLEAN,
        {
            "capacity_is_monotone": "Whether no load was carried above one that failed.",
            "own_load_carried": "Whether the workload's own load is carried; null: not tried.",
        },
    ),
    *_columns("share", NUMBER, {"own_load_attainment": "Requests within the SLA at that load."}),
    *_columns(
        "requests",
        NUMBER,
        {
            "capacity_in_flight": "Requests in the system at the capacity, on average.",
            "capacity_in_flight_per_worker": "The same per worker.",
            "capacity_requests_per_slot": "Requests that each of these slots served in turn.",
        },
    ),
    *_columns("requests", INTEGER, {"capacity_num_judged": "Requests of the window there."}),
    *_columns("probes", INTEGER, {"num_probes": "Loads that were tried."}, is_stable=False),
    *_REPEAT,
    *_columns(
        "", INTEGER, {"same_as": "Trial that cannot differ from this one and was tried instead."}
    ),
)
SCREEN_COLUMNS = (
    *_columns("", INTEGER, {"screen_rank": "Place by the mean field; 1: the best."}),
    *_columns("requests/s", NUMBER, {"screen_rps": "Requests that it expects."}),
    *_columns(
        "tokens/s/GPU", NUMBER, {"screen_output_tok_s_per_gpu": "Output tokens that it expects."}
    ),
    *_columns(
        "ms",
        NUMBER,
        {
            "screen_ttft_ms": "Mean TTFT that it expects.",
            "screen_tpot_ms": "Mean TPOT that it expects.",
        },
    ),
    *_columns(
        "", TEXT, {"screen_limit": "What bounds it: batch, prefill, decode, link or the load."}
    ),
)
"""Where `search.screen` ranks all trials; null where no batch keeps the SLA."""
NEED_COLUMNS = (
    *_columns("", BOOLEAN, {"need_is_held": "Whether any number of workers holds the load."}),
    *_columns("loads", NUMBER, {"need_headroom": "The capacity as a multiple of that load."}),
    *_columns("", TEXT, {"need_limit": "Why one worker fewer does not hold it."}),
    *_columns("share", NUMBER, {"need_attainment": "Requests within the SLA at that load."}),
    *_columns(
        "workers",
        INTEGER,
        {"need_workers_too_few": "Most workers that do not hold it; null: the fewest do."},
    ),
)
"""Where `load.need` asks for the fewest GPUs for a load."""
SIZING_COLUMNS = (
    *_columns("", INTEGER, {"trial_id": "Number of the layout's trial."}),
    *_columns(
        "workers",
        INTEGER,
        {
            "cluster.workers": "Workers that were tried at the load, of an aggregated cluster.",
            "cluster.decode.workers": "Likewise its decode workers, of a disaggregated one.",
        },
    ),
    *_columns("requests/s", NUMBER, {"offered_rps": "Requests offered."}),
    *_columns("", BOOLEAN, {"is_held": "Whether they held it."}),
    *_columns("share", NUMBER, {"attainment": "Requests of the window within the SLA."}),
    *_columns("", BOOLEAN, {"is_stopped": "Whether it was stopped early, as they could not."}),
    *_columns("", TEXT, {"limit": "Why they did not hold it."}),
)
PROBE_COLUMNS = (
    *_columns("", INTEGER, {"trial_id": "Number of the layout's trial."}),
    *_columns("loads", NUMBER, {"load": "Multiple of the workload's load, or in flight."}),
    *_columns("requests/s", NUMBER, {"offered_rps": "Requests offered."}),
    *_columns("", BOOLEAN, {"is_carried": "Whether the layout carried it."}),
    *_columns("share", NUMBER, {"attainment": "Requests of the window within the SLA."}),
    *_columns("", BOOLEAN, {"is_stopped": "Whether it was stopped early, as it could not be."}),
    *_columns("share", NUMBER, {"attainment_so_far": "What was seen of one that was stopped."}),
    *_columns("requests", NUMBER, {"in_flight": "Requests in the system, on average."}),
    *_columns("requests", INTEGER, {"num_judged": "Requests of the window."}),
    *_REPEAT,
    *_columns("", TEXT, {"reason": "Why it was not carried."}),
)
SUMMARY_KEYS = (
    *_columns(
        "",
        TEXT,
        {
            "schema": "Name and version of this format.",
            "name": "Name of the sweep.",
            "sweep_hash": "Equal for equal sweeps; a resumed one must have it.",
            "core": "Whether the core ran compiled or interpreted.",
            "top_rule": "By which rule trials are recommended.",
        },
    ),
    *_columns("trials", INTEGER, {"num_trials": "Points of the space."}),
    *_columns(
        "points",
        INTEGER,
        {"num_same_points": "Combinations of values that come to a trial which another one has."},
    ),
    *_columns("trials", SECTION, {"counts": "How many ended how, by status."}),
    *_columns("trials", INTEGER, {"num_meeting_sla": "Trials that meet the SLA."}),
    *_columns("trials", INTEGER, {"not_run_more": "Trials that were not run and are not listed."}),
    *_columns(
        "",
        SECTION,
        {
            "objectives": "What was sought: report keys, `max` or `min`.",
            "constraints": "What trials had to keep.",
            "search": "How points were chosen.",
            "load": "At which loads they were tried, if loads were searched.",
            "answer": "What to deploy, what ties with it, and why, if loads were searched.",
            "need": "What it takes to hold the load that was asked for, if one was.",
            "screen": "How many trials the mean field left, and how wrong it was of them.",
        },
    ),
    *_columns(
        "",
        LIST,
        {
            "pareto": "The trials of the frontier.",
            "top": "The recommended trials, best first, each with its folder's run file.",
            "not_run": "Trials that were not run, each with the reason; at most 100.",
            "intervals_failed": "Trials whose intervals could not be made, each with the reason.",
            "warnings": "What makes the result less sure than it looks, if anything does.",
        },
    ),
)
OPTIONAL_SUMMARY_KEYS = (
    "num_same_points",
    "screen",
    "load",
    "answer",
    "need",
    "intervals_failed",
    "warnings",
)
"""Those of `SUMMARY_KEYS` that only some sweeps have."""
