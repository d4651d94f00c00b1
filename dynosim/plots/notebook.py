"""For notebooks: a sweep's answer as a table, matplotlib figures of it and of one run's tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynosim.plots import style
from dynosim.plots import trials as trial_table

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

_LATENCIES = {
    "ttft_ms": "Time to first token (ms)",
    "tpot_ms": "Time per output token (ms)",
    "e2e_ms": "End-to-end latency (ms)",
}
_LEVELS = {
    "waiting": "waiting requests",
    "running": "running requests",
    "kv_used_share": "KV blocks in use (share)",
}
_ANSWER = {
    "num_gpus": "GPUs",
    "capacity_rps": "req/s",
    "capacity_load": "x",
    "output_tok_s_per_gpu": "tok/s/GPU",
    "median_output_token_throughput_per_user": "tok/s/user",
    "p95_ttft_ms": "TTFT p95 ms",
    "capacity_attainment": "in SLA",
    "gpu_hours_per_m_good_output_tokens": "GPU-h/M",
}
MAX_LINES = 8  # workers drawn one by one; of more, the mean and the extremes are drawn


def answer_table(trials: "pl.DataFrame", answer: Mapping[str, Any]) -> "pl.DataFrame":
    """The layouts that carry something, best first, each at its capacity.

    `trials` is trials.parquet of a sweep that sought capacities, `answer` that of its summary.json.
    """
    import polars as pl

    by_trial = {row["trial_id"]: row for row in trials.to_dicts()}
    rows = [by_trial[index] for index in answer["ranked"]]
    keys = trial_table.varied_keys(trials)
    equal = {index: "=" for index in answer["tied"]} | {answer["best"]: "*"}
    columns: dict[str, list[Any]] = {
        "trial_id": [row["trial_id"] for row in rows],
        "": [equal.get(row["trial_id"], "") for row in rows],
        "layout": [trial_table.label(row, keys) for row in rows],
    }
    return pl.DataFrame(columns | {name: [r[key] for r in rows] for key, name in _ANSWER.items()})


def attainment_figure(
    probes: "pl.DataFrame", answer: "pl.DataFrame", *, target: float | None
) -> "Figure":
    """Attainment against load of the best layouts, as many as have colours.

    `probes` is probes.parquet, `answer` what `answer_table` gives; `target` is drawn if there is
    one.
    """
    import polars as pl

    figure = _figure(10, 4.2, trial_table.timing_note(probes))
    axes = figure.subplots()
    whole = probes.filter(~pl.col("is_stopped")).sort("load")
    for color, row in zip(style.PALETTE, answer.to_dicts(), strict=False):
        tried = whole.filter(pl.col("trial_id") == row["trial_id"])
        axes.plot(
            tried["offered_rps"], tried["attainment"], color=color, marker="o", markersize=4,
            label=row["layout"],
        )  # fmt: skip
    if target is not None:
        axes.axhline(target, color=style.GREY, linestyle="--", label="target")
    axes.set_xlabel("requests/s")
    axes.set_ylabel("share of requests within the SLA")
    axes.set_ylim(bottom=0)
    _quiet(axes, {"timing_source": trial_table.common_source(probes)})
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def latency_cdf(requests: "pl.DataFrame", *, report: Report) -> "Figure":
    """Cumulative distributions of the completed requests' latencies, from `request_table`."""
    figure = _figure(10, 3.4, style.timing_note(report))
    panels = figure.subplots(1, len(_LATENCIES), sharey=True)
    completed = requests.filter(requests["status"] == "completed")
    for axes, color, (name, title) in zip(panels, style.PALETTE, _LATENCIES.items(), strict=False):
        ordered = np.sort(completed[name].drop_nulls().to_numpy())
        shares = np.arange(1, len(ordered) + 1) / max(1, len(ordered))
        axes.step(ordered, shares, where="post", color=color, linewidth=1.8)
        if len(ordered) and ordered[0] > 0 and ordered[-1] > 30 * ordered[0]:
            axes.set_xscale("log")
        axes.set_xlabel(title)
        _quiet(axes, report)
    panels[0].set_ylabel("share of requests")
    return figure


def timeline_figure(timeline: "pl.DataFrame", *, report: Report) -> "Figure":
    """Queue, batch and KV use of every worker over time, from `timeline_table`."""
    figure = _figure(10, 6.2, style.timing_note(report))
    panels = figure.subplots(len(_LEVELS), 1, sharex=True)
    num_workers = int(timeline["worker_id"].n_unique())
    seconds = timeline["start_ms"].to_numpy().reshape(num_workers, -1)[0] / 1000
    for axes, (name, title) in zip(panels, _LEVELS.items(), strict=True):
        levels = timeline[name].to_numpy().reshape(num_workers, -1)
        values = np.ma.masked_invalid(levels)  # a worker that is not there
        if num_workers <= MAX_LINES:
            for worker, row in enumerate(values):
                color = style.PALETTE[worker]
                axes.plot(seconds, row, color=color, linewidth=1.3, label=f"worker {worker}")
        else:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(seconds, low, high, color=style.SKY, alpha=0.4, label="all workers")
            axes.plot(seconds, values.mean(axis=0), color=style.BLUE, label="mean")
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(bottom=0)
        _quiet(axes, report)
    panels[-1].set_xlabel("virtual time (s)")
    panels[0].legend(frameon=False, fontsize=8, ncols=4, loc="upper right")
    return figure


def _figure(width: float, height: float, note: str) -> "Figure":
    """A figure with a note at its foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=style.GREY, wrap=True)
    return figure


def _quiet(axes: "Axes", report: Report) -> None:
    axes.grid(color=style.GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    words = style.watermark(report.get("timing_source"))
    if words:
        axes.text(
            0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", rotation=14,
            fontsize=17, fontweight="bold", color=style.VERMILLION, alpha=0.18,
        )  # fmt: skip
