"""`dynosim validate`: the same workload through the twin and through a deployment, compared.

Exit code 0: every request that the twin completes was completed (verdicts are results, not
failures); 1: some were not, so that the two sides did not do the same work; 130: interrupted, with
what was finished kept.
"""

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from dynosim.atomic import check_folder, write_files
from dynosim.config import RunConfig
from dynosim.errors import ConfigError
from dynosim.metrics.tables import request_table
from dynosim.records import RequestStatus
from dynosim.runner import RunOutcome, load_trace
from dynosim.runner import run as simulate
from dynosim.validate.prediction import inside_shares, load_of
from dynosim_runtime.launch.options import deploy_options
from dynosim_runtime.launch.specs import Engine
from dynosim_runtime.loadgen.load import LoadRun
from dynosim_runtime.loadgen.measured import record_table, request_log
from dynosim_runtime.plan import load_plan
from dynosim_runtime.validation.compare import TOLERANCE, compare_reports, compare_requests
from dynosim_runtime.validation.measure import (
    LoadOptions,
    Measured,
    measure_aiperf,
    measure_started,
    measure_url,
)
from dynosim_runtime.validation.measurement_log import measurement_log
from dynosim_runtime.validation.plot import write_comparison_png
from dynosim_runtime.validation.show import print_comparison

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
MAX_FAILURES_LISTED = 20


def validate(
    plan: Path,
    overrides: list[str],
    *,
    url: str | None,
    trace: Path | None,
    out: Path | None,
    mock: bool,
    real: bool,
    model: Path | None,
    engine: Engine | None,
    engine_python: Path | None,
    speedup: float,
    warmup: int,
    aiperf: Path | None,
    as_json: bool,
) -> int:
    """Compare the plan's prediction with what a deployment does; returns the exit code.

    Raises: ConfigError or TraceError for bad input; LiveError if the deployment does not serve.
    """
    _check_choice(url=url, mock=mock, real=real, aiperf=aiperf, speedup=speedup)
    if out is not None:
        check_folder(out)
    config = load_plan(plan, [*overrides, *_trace_overrides(trace)])
    workload = load_trace(config)
    predicted = simulate(config, trace=workload)
    options = LoadOptions(
        model=model, speedup=speedup, warmup=warmup, shows_progress=sys.stderr.isatty()
    )
    if aiperf is not None:
        measured = measure_aiperf(config, aiperf)
    elif url is not None:
        measured = asyncio.run(measure_url(config, workload, url, options))
    else:
        deploy = deploy_options(
            config,
            plan,
            mock=mock,
            real=real,
            out=None if out is None else out / "deployment",
            model=model,
            engine=engine,
            engine_python=engine_python,
            speedup=speedup,
            port=0,
        )
        measured = asyncio.run(measure_started(config, workload, deploy, options))
    document = _document(config, predicted, measured, speedup)
    if out is not None:
        _write(out, document, predicted, measured)
    if as_json:
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print_comparison(document)
        if out is not None:
            print(f"report: {out / 'validation.json'}", file=sys.stderr)
    return _exit_code(document)


def _check_choice(
    *, url: str | None, mock: bool, real: bool, aiperf: Path | None, speedup: float
) -> None:
    """Raises: ConfigError unless exactly one measured side is named."""
    named = [
        option
        for option, is_given in (
            ("--url", url is not None),
            ("--mock", mock),
            ("--real", real),
            ("--aiperf", aiperf is not None),
        )
        if is_given
    ]
    if len(named) != 1:
        got = " and ".join(named) or "none"
        raise ConfigError(
            f"validate: give one of --url URL, --mock, --real or --aiperf PATH (got {got})"
        )
    if not 0 < speedup < float("inf"):
        raise ConfigError(f"--speedup {speedup:g}: expected a number above 0")
    if speedup != 1 and (real or aiperf is not None):
        raise ConfigError("--speedup: only simulated engines (--mock, or --url of one) can hurry")


def _trace_overrides(trace: Path | None) -> list[str]:
    if trace is None:
        return []
    return [
        f"workload.trace={trace.absolute()}",
        "workload.synthetic=null",
        "workload.format=null",
    ]


def _document(
    config: RunConfig, predicted: RunOutcome, measured: Measured, speedup: float
) -> dict[str, Any]:
    """validation.json."""
    comparisons = compare_reports(predicted.report, measured.report)
    document: dict[str, Any] = {
        "name": config.name,
        "measured_at": measured.source,
        "workload": predicted.trace.source,
        "concurrency": config.workload.concurrency,
        "num_requests": len(predicted.trace),
        "tolerance": TOLERANCE,
        "speedup": speedup,
        "prompt_seed": measured.prompt_seed,
        "metrics": [comparison.as_dict() for comparison in comparisons],
        "requests": {},
        "notes": _notes(predicted, measured, speedup),
        "num_unserved": 0,
        "failures": [],
        "was_interrupted": False,
        "lateness_ms": None,
        "measured": measured.report,
        "predicted": predicted.report,
        "steps_in_range": inside_shares(predicted.timing, predicted.result.steps),
        "load": load_of(predicted.result).to_dict() if config.cluster.workers == 1 else None,
        "config": config.model_dump(mode="json", exclude_none=True),
    }
    if measured.run is not None:
        document |= _request_keys(predicted, measured.run)
    return document


def _request_keys(predicted: RunOutcome, run: LoadRun) -> dict[str, Any]:
    """What can be said only with a record of every request."""
    records = run.records
    is_same = (
        len(records) == len(predicted.trace)
        and [record.input_tokens for record in records] == predicted.trace.input_tokens.tolist()
    )
    unserved = [record for record in records if record.status != "completed"]
    if is_same:
        expected = predicted.result.requests.status == RequestStatus.COMPLETED
        unserved = [
            record
            for record, is_expected in zip(records, expected.tolist(), strict=True)
            if is_expected and record.status != "completed"
        ]
    errors = compare_requests(predicted.result.requests, request_log(run)) if is_same else {}
    lateness = run.lateness()
    return {
        "requests": {name: asdict(value) for name, value in errors.items()},
        "num_unserved": len(unserved),
        "failures": [
            {"request_id": record.request_id, "status": record.status, "error": record.error}
            for record in unserved[:MAX_FAILURES_LISTED]
        ],
        "was_interrupted": run.was_interrupted,
        "lateness_ms": lateness.statistics if lateness.count else None,
    }


def _notes(predicted: RunOutcome, measured: Measured, speedup: float) -> list[str]:
    notes = list(predicted.timing.notes)
    if predicted.report.get("saturated"):
        notes.append(
            f"the twin is saturated by this load{_sustained(predicted)}: a small error of step "
            "times becomes a large one of waiting times"
        )
    shares = inside_shares(predicted.timing, predicted.result.steps)
    outside = {name: share for name, share in shares.items() if share < 1}
    if outside:
        said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in outside.items())
        notes.append(f"steps inside the range that their times were measured on: {said}")
    if speedup != 1:
        notes.append(
            f"the deployment runs {speedup:g} times faster than its step times say: the load was "
            "offered as much faster, and measured times are multiplied by that; so is what HTTP "
            "and the host add"
        )
    if measured.run is None:
        notes.append("only summaries were measured: no ITL, no comparison request by request")
    elif len(measured.run.records) != len(predicted.trace):
        notes.append(
            f"{len(measured.run.records):,} requests were measured, {len(predicted.trace):,} "
            "predicted: are these the same workload?"
        )
    return notes


def _sustained(predicted: RunOutcome) -> str:
    """What the twin's engine sustains, for a sentence; empty where that is not known."""
    if predicted.config.cluster.workers != 1:
        return ""
    sustained = load_of(predicted.result).sustained_tok_s
    return "" if sustained is None else f" (it sustains {sustained:.0f} output tokens/s)"


def _write(out: Path, document: dict[str, Any], predicted: RunOutcome, measured: Measured) -> None:
    """All files, or none."""
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    writers = {
        "validation.json": lambda path: path.write_bytes(text),
        "predicted.parquet": lambda path: request_table(
            predicted.result, predicted.trace
        ).write_parquet(path),
    }
    if measured.run is not None:
        table = record_table(measured.run.records)
        log, gaps_ms = request_log(measured.run), measured.run.gaps_ms
        title = f"{document['name'] or 'run'}: predicted and measured"
        measurements = measurement_log(predicted.config, predicted.trace, measured.run)
        if measurements is not None:
            writers["measurements.jsonl"] = lambda path: path.write_bytes(measurements)
        writers |= {
            "requests.parquet": table.write_parquet,
            "requests.jsonl": table.write_ndjson,
            "distributions.png": lambda path: write_comparison_png(
                path, predicted.result, log, gaps_ms, title=title
            ),
        }
    write_files(out, writers)


def _exit_code(document: dict[str, Any]) -> int:
    if document["was_interrupted"]:
        return EXIT_INTERRUPTED
    return EXIT_FAILURE if document["num_unserved"] else 0
