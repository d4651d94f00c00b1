"""Request logs: every request's times, blind and fitted on the first part."""

from pathlib import Path

from dynosim.compare.fidelity import Fidelity, judge_file
from dynosim.errors import ConfigError
from dynosim.experiment.intervals import jittered
from dynosim.experiment.run import RunOutcome
from dynosim.fit.deployment import Deployment, deployment_of
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import Measurements
from dynosim.fit.replay import predicted_of
from dynosim.fit.scores import THROUGHPUT as FIT_THROUGHPUT
from dynosim.fit.scores import distances, scores
from dynosim.verify.deployed import deployed_twin, setup_words
from dynosim.verify.twin import serve
from dynosim.verify.verdict import E2E, LOG, THROUGHPUT, JudgedFigure, RecordingVerdict

FIT_FRACTION = 0.3
_REPORT_METRIC = {"latency_ms": E2E}


def judge_log(
    path: Path,
    level: str,
    *,
    model: str | None,
    hardware: str | None,
    replays: int,
    seed: int,
    label: str,
) -> RecordingVerdict:
    """The verdict on a log; `model` and `hardware` are for one whose set-up names none.

    Raises: TraceError, ConfigError.
    """
    measured = read_measurements(path)
    hardware = measured.setup.get("hardware") or hardware
    model = None if deployment_of(measured.setup).model is not None else model
    deployment = deployment_of(measured.setup, model=model, hardware=hardware)
    for key in ("model", "hardware"):
        if getattr(deployment, key) is None and level != "fitted":
            raise ConfigError(f"{path}: setup.{key}: missing (add it, or give --{key})")
    setup = setup_words(
        deployment, str(measured.setup.get("vllm_version") or ""), deployment.num_engines
    )
    if level == "fitted":
        fidelity = judge_file(path, model=model, hardware=hardware, seed=seed)
        return _fitted(fidelity, setup, label)
    return _blind(measured, deployment, level, setup, replays=replays, seed=seed, label=label)


def _blind(
    measured: Measurements,
    deployment: Deployment,
    level: str,
    setup: dict[str, str],
    *,
    replays: int,
    seed: int,
    label: str,
) -> RecordingVerdict:
    blocks = deployment.given_blocks if level == "capacity" else None
    twin = deployed_twin(
        deployment,
        measured.clock,
        trace=measured.trace(),
        workers=deployment.num_engines,
        version=setup["version"] or None,
        num_gpu_blocks=blocks,
        source=measured.source,
    )

    def statistics(outcome: RunOutcome) -> dict[str, float]:
        predicted = predicted_of(outcome.result, outcome.timing, measured.clock)
        return {name_of(one.name): one.predicted for one in scores(measured, predicted)}

    truth = {name_of(one.name): one.measured for one in scores(measured, measured)}
    outcome, figures, varied = serve(
        twin,
        statistics,
        truth,
        trace=measured.trace(),
        replays=replays,
        seed=seed,
        moved=jittered,
    )
    predicted = predicted_of(outcome.result, outcome.timing, measured.clock)
    apart = {
        f"ks_{_REPORT_METRIC.get(one.metric, one.metric)}": one.ks
        for one in distances(measured, predicted)
    }
    return RecordingVerdict(
        recording=label,
        kind=LOG,
        level=level,
        setup=setup,
        figures=figures,
        distances=apart,
        blocks_measured=deployment.given_blocks,
        blocks_predicted=twin.prepared.capacity.num_gpu_blocks,
        timing=outcome.timing.description,
        timing_notes=outcome.timing.notes,
        varied=varied,
        notes=twin.notes,
    )


def _fitted(fidelity: Fidelity, setup: dict[str, str], label: str) -> RecordingVerdict:
    """Over the requests whose times the fit has not seen; with the blocks given, if they are."""
    level = next(
        level for level in reversed(fidelity.levels) if level.name.startswith("fitted on the first")
    )
    ranges = level.detail["held_out_intervals"]
    apart = level.detail["held_out_distances"]
    failures = getattr(fidelity, "failures", ())  # a fit that does not explain its own part
    return RecordingVerdict(
        recording=label,
        kind=LOG,
        level="fitted",
        setup=setup,
        figures=tuple(
            JudgedFigure(name_of(one.name), one.measured, one.predicted, *ranges[one.name])
            for one in level.rest
        ),
        distances={
            f"ks_{_REPORT_METRIC.get(one['metric'], one['metric'])}": one["ks"] for one in apart
        },
        blocks_measured=fidelity.deployment.given_blocks,
        blocks_predicted=level.detail["num_gpu_blocks"],
        timing=str(level.detail["timing"]),
        causes=fidelity.attribution,
        varied=("constants of step times", "all step times together", "arrivals"),
        notes=tuple(fidelity.notes),
        excluded=f"the fit has failed: {'; '.join(failures)}" if failures else "",
    )


def name_of(score: str) -> str:
    """A statistic of a fit by the report's name."""
    if score == FIT_THROUGHPUT:
        return THROUGHPUT
    statistic, _, metric = score.partition("_")
    return f"{statistic}_{_REPORT_METRIC.get(metric, metric)}"
