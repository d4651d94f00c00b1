"""`dynosim calibrate --url`: measure a live engine, fit its step times, tell how well they fit."""

import asyncio
import secrets
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from dynosim.atomic import check_folder
from dynosim.errors import EXIT_INTERRUPTED
from dynosim.files.result_folder import check_files
from dynosim.fit.fit_points import FitResult, fit_points
from dynosim.silicon.fitted_file import write_fit
from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.client import CompletionsClient
from dynosim_runtime.measure.prompts import PromptMaker, vocabulary_of
from dynosim_runtime.measure.steps import MeasurementPlan, Measurer, StepMeasurements

REQUEST_TIMEOUT_S = 300.0
DEFAULT_CONTEXT_TOKENS = 4096
"""Longest request of a server that does not tell what it allows."""


def calibrate_url(
    url: str,
    *,
    out: Path,
    model: str | None,
    as_json: bool,
    overwrite: bool = False,
    plan: MeasurementPlan | None = None,
) -> int:
    """Measure the engine at `url`, write the fitted timing file `out` and the points beside it.

    `model` (a name or folder) tells which token ids prompts may hold; `plan` is what to measure,
    by default all of it. Returns the exit code.
    Raises: LiveError if the engine cannot be measured; ConfigError for a place that cannot be
    written.
    """
    check_folder(out.parent, "--out")
    points_file = out.with_suffix(".points.json")
    check_files([out, points_file], overwrite=overwrite, option="--out")
    try:
        measured, source = asyncio.run(
            _measure(url, model, plan or MeasurementPlan(), quiet=as_json)
        )
    except KeyboardInterrupt:
        print("interrupted; nothing written", file=sys.stderr)
        return EXIT_INTERRUPTED
    result = fit_points(measured.points, source=source)
    write_fit(result.fit, out)
    document = calibration_document(result, measured)
    points_file.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    if as_json:
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print_result(result, measured)
        print(f"timing: {out}\npoints: {points_file}")
    return 0


async def _measure(
    url: str, model: str | None, plan: MeasurementPlan, *, quiet: bool
) -> tuple[StepMeasurements, str]:
    async with CompletionsClient(url, timeout_s=REQUEST_TIMEOUT_S) as client:
        # A prompt of an earlier calibration must not be found in the engine's cache.
        prompts = PromptMaker(vocabulary_of(model), seed=secrets.randbits(48))
        context = await _context_tokens(client)
        plan = replace(plan, max_context=min(plan.max_context, context))
        measurer = Measurer(client, prompts, plan, None if quiet else _show)
        measured = await measurer.measure()
        return measured, f"{client.model} at {client.url}{await _version(client)}"


async def _context_tokens(client: CompletionsClient) -> int:
    """The longest request that the server says it takes."""
    for entry in (await client.get_json("/v1/models"))["data"]:
        if isinstance(entry, dict) and entry.get("id") == client.model:
            length = entry.get("max_model_len")
            if isinstance(length, int) and length > 0:
                return length
    return DEFAULT_CONTEXT_TOKENS


async def _version(client: CompletionsClient) -> str:
    """The engine's version as it tells it, with a comma before; empty if it does not."""
    try:
        data = await client.get_json("/version")
    except LiveError:
        return ""
    version = data.get("version") if isinstance(data, dict) else None
    return f", version {version}" if version else ""


def _show(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def calibration_document(result: FitResult, measured: StepMeasurements) -> dict[str, Any]:
    """All that a calibration found, as plain data."""
    return {
        "source": result.fit.source,
        "parameters": asdict(result.fit.parameters),
        "intervals": dict(result.fit.intervals),
        "unidentified": list(result.fit.unidentified),
        "form": result.form,
        "token_curve": [list(node) for node in result.fit.token_curve],
        "r_squared": result.r_squared,
        "mean_error": result.mean_error,
        "max_error": result.max_error,
        "held_out_error": result.held_out_error,
        "held_out_errors": result.held_out_errors,
        "num_rounds": measured.num_rounds,
        "notes": measured.notes,
        "engine": measured.engine,
        "points": [
            {**asdict(residual.point), "fitted_ms": residual.fitted_ms, "error": residual.error}
            for residual in result.residuals
        ],
    }


def print_result(result: FitResult, measured: StepMeasurements) -> None:
    """The residual table and the constants, on stdout."""
    print(f"{'step':<52}{'measured ms':>12}{'spread':>8}{'fitted ms':>11}{'error':>8}")
    for residual in result.residuals:
        point = residual.point
        print(
            f"{point.kind + ': ' + point.label():<52.51}{point.measured_ms:>12.2f}"
            f"{100 * point.spread:>6.0f} %{residual.fitted_ms:>11.2f}{100 * residual.error:>6.1f} %"
        )
    print()
    for name, value in asdict(result.fit.parameters).items():
        if value == 0 and name not in result.fit.intervals:
            continue
        bounds = result.fit.intervals.get(name)
        interval = "" if bounds is None else f"  (95 %: {bounds[0]:.4g} to {bounds[1]:.4g})"
        unsure = "  not told apart" if name in result.fit.unidentified else ""
        print(f"{name:<22}{value:>12.5g}{interval}{unsure}")
    for tokens, products_ms in result.fit.token_curve:
        print(f"{f'products of {tokens:g} tokens':<22}{products_ms:>12.5g}")
    errors = {
        "mean": result.mean_error,
        "max": result.max_error,
        "held out": result.held_out_error,
    }
    said = ", ".join(f"{name} {100 * error:.1f} %" for name, error in errors.items())
    print(f"\nform: {result.form}; R2 {result.r_squared:.4f}; error of a step: {said}")
    for note in measured.notes:
        print(f"note: {note}")
