"""`dynosim validate`: the same workload through the twin and through a deployment, compared.

Exit code 0: every request that the twin completes was completed (verdicts are results, not
failures); 1: some were not, so that the two sides did not do the same work; 130: interrupted, with
what was finished kept.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson

from dynosim.atomic import check_folder, parquet_writer, write_files
from dynosim.build.workload import load_trace
from dynosim.errors import EXIT_FAILURE, EXIT_INTERRUPTED, ConfigError
from dynosim.experiment.intervals import DEFAULT_REPLAYS
from dynosim.experiment.prediction import read_prediction
from dynosim.experiment.run import RunOutcome
from dynosim.experiment.run import run as simulate
from dynosim.files.result_folder import VALIDATION, check_results
from dynosim.metrics.tables import request_table
from dynosim_runtime.config import load_plan
from dynosim_runtime.launch.options import deploy_options
from dynosim_runtime.launch.specs import Engine
from dynosim_runtime.measure.deployment import (
    LoadOptions,
    Measured,
    measure_aiperf,
    measure_started,
    measure_url,
)
from dynosim_runtime.measure.load import check_sendable
from dynosim_runtime.measure.measured import record_table, request_log
from dynosim_runtime.measure.measurement_log import measurement_log
from dynosim_runtime.validate.document import validation_document
from dynosim_runtime.validate.judge import Judgement, judge
from dynosim_runtime.validate.plot import write_comparison_png
from dynosim_runtime.validate.running import plan_of_running
from dynosim_runtime.validate.saved import PredictedSide, predicted_side
from dynosim_runtime.validate.show import print_comparison

MEASURED_FILES = ("measurements.jsonl", "requests.parquet", "requests.jsonl", "distributions.png")
"""Written where dynosim itself has sent the load."""


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
    intervals: int = DEFAULT_REPLAYS,
    overwrite: bool = False,
) -> int:
    """Compare the plan's prediction with what a deployment does; returns the exit code.

    `intervals` is the number of replays that tell how sure a prediction is; 0: none.
    Raises: ConfigError or TraceError for bad input; LiveError if the deployment does not serve.
    """
    _check_choice(url=url, mock=mock, real=real, aiperf=aiperf, speedup=speedup)
    if intervals == 1:
        raise ConfigError("--intervals 1: one replay has no spread (use 16 or more, or 0 for none)")
    if out is not None:
        check_folder(out)
        check_results(out, VALIDATION, overwrite=overwrite)
    config = load_plan(plan, [*overrides, *_trace_overrides(trace)])
    if config.workload.has_warm_up:
        raise ConfigError(
            "workload.warm_up_requests, warm_up_s: validate compares every request (set them to 0; "
            "--warmup sends requests beforehand)"
        )
    saved = read_prediction(plan)
    workload = load_trace(config)
    check_sendable(workload, can_pin=aiperf is None)
    predicted, said = (config, []) if mock else plan_of_running(config, workload)
    side = predicted_side(saved, config, simulate(predicted, trace=workload))
    side.notes += said
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
            overwrite=overwrite,
            model=model,
            engine=engine,
            engine_python=engine_python,
            speedup=speedup,
            port=0,
        )
        measured = asyncio.run(measure_started(config, workload, deploy, options))
    judgement = _judge(side, measured, intervals, shows_progress=options.shows_progress)
    document = validation_document(judgement, measured, speedup=speedup)
    document["prediction"] = side.source
    if out is not None:
        _write(out, document, side.outcome, measured)
    _show(document, out, as_json=as_json)
    return EXIT_INTERRUPTED if judgement.was_interrupted else _exit_code(document)


def _show(document: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    print_comparison(document)
    if out is not None:
        print(f"report: {out / 'validation.json'}", file=sys.stderr)


def _judge(
    side: PredictedSide, measured: Measured, num_replays: int, *, shows_progress: bool
) -> Judgement:
    """Both sides compared; the replays for the intervals may take a while."""
    if not shows_progress:
        return judge(side, measured, num_replays=num_replays)
    judgement = judge(side, measured, num_replays=num_replays, progress=_show_progress)
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return judgement


def _show_progress(done: int, of: int) -> None:
    print(f"\rreplay {done} of {of} for the intervals", end="", file=sys.stderr, flush=True)


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
        "workload.pool=null",
        "workload.agents=null",
        "workload.stages=null",
        "workload.format=null",
    ]


def _write(out: Path, document: dict[str, Any], predicted: RunOutcome, measured: Measured) -> None:
    """All files, or none; those of an earlier validation that this one lacks are gone then."""
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2)
    writers = {
        "validation.json": lambda path: path.write_bytes(text),
        "predicted.parquet": parquet_writer(
            lambda: request_table(predicted.result, predicted.trace)
        ),
    }
    if measured.run is not None:
        table = record_table(measured.run.records)
        log, gaps_ms = request_log(measured.run), measured.run.gaps_ms
        title = f"{document['name'] or 'run'}: predicted and measured"
        told = measured.capacity
        measurements = measurement_log(
            predicted.config,
            predicted.trace,
            measured.run,
            num_gpu_blocks=None if told is None else told.num_gpu_blocks,
        )
        if measurements is not None:
            writers["measurements.jsonl"] = lambda path: path.write_bytes(measurements)
        writers |= {
            "requests.parquet": parquet_writer(lambda: table),
            "requests.jsonl": table.write_ndjson,
            "distributions.png": lambda path: write_comparison_png(
                path, predicted.result, log, gaps_ms, title=title
            ),
        }
    write_files(out, writers)
    for name in MEASURED_FILES:
        if name not in writers:
            (out / name).unlink(missing_ok=True)


def _exit_code(document: dict[str, Any]) -> int:
    if document["was_interrupted"]:
        return EXIT_INTERRUPTED
    return EXIT_FAILURE if document["num_unserved"] else 0
