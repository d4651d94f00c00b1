"""`dynosim calibrate --measurements` and `dynosim rank`: files in, files and text out."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from dynosim.compare.ranking import rank_files
from dynosim.compare.residual_plot import plot_residuals
from dynosim.errors import EXIT_FAILURE
from dynosim.files.result_folder import check_files
from dynosim.fit.calibration import Calibration, calibrate_log
from dynosim.silicon.fitted_file import write_fit


def calibrate_measurements(
    measurements: Path,
    *,
    out: Path,
    overwrite: bool,
    model: str | None,
    hardware: str | None,
    fit_fraction: float,
    num_gpu_blocks: int | None,
    as_json: bool,
    force: bool = False,
) -> int:
    """Fits a log, writes the model, a report and a picture of residuals beside it; returns 0.

    Returns 1 for a fit that does not explain the requests it was fitted to: it is written only if
    forced, and then says so itself.

    Raises: TraceError, ConfigError.
    """
    report, picture = out.with_suffix(".report.json"), out.with_suffix(".png")
    check_files([out, report, picture], overwrite=overwrite, option="--out")
    calibration = calibrate_log(
        measurements,
        model=model,
        hardware=hardware,
        fit_fraction=fit_fraction,
        num_gpu_blocks=num_gpu_blocks,
    )
    refusal = calibration.refusal
    if calibration.gpu_warning and not refusal:
        print(f"warning: {calibration.gpu_warning}", file=sys.stderr)
    if refusal and not force:
        if as_json:
            print(json.dumps(plain({**calibration.to_dict(), "timing_file": None})))
        else:
            print("\n".join(_fit_lines(calibration)))
        print(f"error: {refusal}. Nothing is written (--force: write it, marked)", file=sys.stderr)
        return EXIT_FAILURE
    write_fit(calibration.fit, out)
    document = plain({**calibration.to_dict(), "timing_file": str(out), "residuals": str(picture)})
    report.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    plot_residuals(calibration.measured, calibration.fitted.predicted, calibration.count, picture)
    print(json.dumps(document) if as_json else calibration_text(calibration, out))
    if refusal:
        print(f"warning: written as forced, marked: {refusal}", file=sys.stderr)
    return 0


def rank(
    predicted: Path, measured: Path, *, metric: str, lower_is_better: bool, as_json: bool
) -> int:
    """How well predictions order configurations, and what the chosen one costs; returns 0.

    Raises: TraceError, ConfigError.
    """
    ranking = rank_files(predicted, measured, metric=metric, lower_is_better=lower_is_better)
    print(json.dumps(plain(ranking.to_dict())) if as_json else ranking.text())
    return 0


def plain(value: Any) -> Any:
    """The value as JSON knows it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def calibration_text(calibration: Calibration, out: Path) -> str:
    """The report for a terminal."""
    lines = _fit_lines(calibration)
    lines.append(f"written: {out}, {out.with_suffix('.report.json')}, {out.with_suffix('.png')}")
    lines.append(f"use it: `timing: {{kind: fitted, file: {out}}}`")
    return "\n".join(lines)


def _fit_lines(calibration: Calibration) -> list[str]:
    fit, fitted = calibration.fit, calibration.fitted
    rest = len(calibration.measured) - calibration.count
    costs = ", ".join(f"{k} {v:.1f}" for k, v in calibration.recorded.loop_costs.items())
    lines = [
        f"{calibration.measured.source}: {calibration.count} requests fitted, {rest} held out"
        f" ({fitted.num_replays} replays; prior: {calibration.prior.source})",
        f"scheduling: {calibration.recorded.chosen.loop} (cost {costs})",
        "",
        f"{'constant':26}{'value':>12}  95 % interval",
    ]
    for name in fitted.names:
        low, high = fit.intervals[name]
        told = "  not told by the log" if name in fit.unidentified else ""
        value = getattr(fit.parameters, name)
        lines.append(f"{name:26}{value:12.5g}  {low:.4g} .. {high:.4g}{told}")
    lines += [
        f"not told apart: {pair} ({value:+.2f})" for pair, value in fitted.correlations.items()
    ]
    lines += ["", *_own_lines(calibration), "", *_held_out_lines(calibration)]
    return lines + [f"note: {note}" for note in calibration.notes]


def _own_lines(calibration: Calibration) -> list[str]:
    own = calibration.own
    apart = {one.metric: one.ks for one in own.apart}
    lines = [f"{'fitted part':26}{'measured':>12}{'predicted':>12}{'error':>9}{'KS':>8}"]
    for score in own.scores:
        lines.append(
            f"{score.name:26}{score.measured:12.2f}{score.predicted:12.2f}{score.error:9.2%}"
            f"{apart[score.metric]:8.3f}"
        )
    return lines + [f"NOT EXPLAINED: {misfit}" for misfit in own.misfits]


def _held_out_lines(calibration: Calibration) -> list[str]:
    if not calibration.held_out:
        return ["nothing was held out: lower --fit-fraction to learn how well this predicts"]
    lines = [f"{'held out':26}{'measured':>12}{'predicted':>12}{'error':>9}"]
    for score in calibration.held_out:
        lines.append(
            f"{score.name:26}{score.measured:12.2f}{score.predicted:12.2f}{score.error:9.2%}"
        )
    for one in calibration.apart:
        lines.append(
            f"per request, {one.metric}: APE mean {one.mean_ape:.2%}, median {one.median_ape:.2%};"
            f" KS {one.ks:.3f}"
        )
    return lines
