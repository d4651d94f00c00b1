"""For notebooks: what a sweep that sought capacities has found, as a table and as a figure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynosim.plots import style, trials

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

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


def answer_table(table: "pl.DataFrame", answer: Mapping[str, Any]) -> "pl.DataFrame":
    """The layouts that carry something, best first, each at its capacity.

    `table` is trials.parquet of a sweep that sought capacities, `answer` that of its summary.json.
    """
    import polars as pl

    by_trial = {row["trial_id"]: row for row in table.to_dicts()}
    rows = [by_trial[index] for index in answer["ranked"]]
    keys = trials.varied_keys(table)
    marks = {index: "=" for index in answer["tied"]} | {answer["best"]: "*"}
    columns: dict[str, list[Any]] = {
        "trial_id": [row["trial_id"] for row in rows],
        "": [marks.get(row["trial_id"], "") for row in rows],
        "layout": [trials.label(row, keys) for row in rows],
    }
    return pl.DataFrame(columns | {name: [r[key] for r in rows] for key, name in _ANSWER.items()})


def attainment_figure(
    probes: "pl.DataFrame", answer: "pl.DataFrame", *, target: float | None
) -> "Figure":
    """Attainment against load of the best layouts, as many as there are colours.

    `probes` is probes.parquet, `answer` what `answer_table` gives; a `target` is drawn as a line.
    """
    import polars as pl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
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
    axes.grid(color=style.GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    if words := style.watermark(trials.common_source(probes)):
        axes.text(
            0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", rotation=14,
            fontsize=17, fontweight="bold", color=style.VERMILLION, alpha=0.18,
        )  # fmt: skip
    note = trials.timing_note(probes)
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=style.GREY, wrap=True)
    return figure
