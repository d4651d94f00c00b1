"""Draws the statistics of a trace into one PNG."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynosim.records import FloatArray, IntArray, Trace
from dynosim.workload.inspect import shared_prefixes
from dynosim.workload.writers import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_TIME_BINS = 100
_NUM_LENGTH_BINS = 60


def plot_trace(trace: Trace, path: Path) -> None:
    """Write a PNG: prompt and answer lengths, arrivals over time, reuse over time.

    Raises: TraceError if the file cannot be written.
    """
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (prompts, answers), (arrivals, reuse) = figure.subplots(2, 2)
    _lengths(prompts, trace.input_tokens, "prompt tokens (ISL)")
    _lengths(answers, trace.output_tokens, "output tokens (OSL)")
    edges_s = np.linspace(0.0, max(float(trace.arrival_ms[-1]) / 1000.0, 1e-3), _NUM_TIME_BINS + 1)
    _arrivals(arrivals, trace.arrival_ms / 1000.0, edges_s)
    _reuse(reuse, trace, edges_s)
    figure.suptitle(f"{Path(trace.source).name}: {len(trace):,} requests")
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def _lengths(axes: "Axes", tokens: IntArray, title: str) -> None:
    low, high = float(tokens.min()), float(tokens.max())
    edges = np.geomspace(low, high + 1.0, _NUM_LENGTH_BINS)
    axes.hist(tokens, bins=edges.tolist(), color="tab:blue")
    axes.axvline(float(tokens.mean()), color="black", linestyle="--", label="mean")
    axes.axvline(float(np.median(tokens)), color="tab:orange", linestyle="--", label="median")
    axes.set(xscale="log", xlabel=title, ylabel="requests")
    axes.legend()


def _arrivals(axes: "Axes", arrival_s: FloatArray, edges_s: FloatArray) -> None:
    counts, _ = np.histogram(arrival_s, edges_s)
    axes.stairs(counts / np.diff(edges_s), edges_s, fill=True, color="tab:green")
    axes.set(xlabel="time (s)", ylabel="arrivals (requests/s)")
    axes.set_ylim(bottom=0)


def _reuse(axes: "Axes", trace: Trace, edges_s: FloatArray) -> None:
    axes.set(xlabel="time (s)", ylabel="reused prompt tokens (share)", ylim=(0.0, 1.0))
    if not len(trace.hash_ids):
        axes.text(0.5, 0.5, "no hash ids: reuse unknown", ha="center", transform=axes.transAxes)
        return
    _, shared = shared_prefixes(trace)
    arrival_s = trace.arrival_ms / 1000.0
    reused, _ = np.histogram(arrival_s, edges_s, weights=shared)
    total, _ = np.histogram(arrival_s, edges_s, weights=trace.input_tokens)
    share = np.divide(reused, total, out=np.full(len(total), np.nan), where=total > 0)
    middles_s = (edges_s[1:] + edges_s[:-1]) / 2
    axes.plot(middles_s, share, ".", color="tab:purple", label="in this interval")
    running = np.cumsum(reused) / np.maximum(np.cumsum(total), 1)
    axes.plot(middles_s, running, color="black", label="up to here")
    axes.legend()
