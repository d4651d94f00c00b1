"""KV events over time and workers: where caches fill, and where they have to give way."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynosim.plots import style
from dynosim.records import FloatArray, KvEventLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_BINS = 240


def event_density(
    log: KvEventLog, num_workers: int, num_bins: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Blocks stored and blocks evicted, by worker and time bin, and the (num_bins + 1,) edges."""
    end_ms = float(log.time_ms.max()) if len(log.time_ms) else 1.0
    edges = np.linspace(0.0, max(end_ms, 1.0), num_bins + 1)
    bins = (np.arange(num_workers + 1) - 0.5, edges)
    stored, evicted = (
        np.histogram2d(log.worker_id, log.time_ms, bins=bins, weights=weights)[0]
        for weights in (np.maximum(log.num_blocks, 0.0), np.maximum(-log.num_blocks, 0.0))
    )
    return stored, evicted, edges


def write_event_density_png(path: Path | str, log: KvEventLog, num_workers: int) -> None:
    """Draw the events of a run. The same events give the same bytes."""
    figure = event_density_figure(log, num_workers)
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def event_density_figure(log: KvEventLog, num_workers: int) -> "Figure":
    """Heat maps of stored and evicted blocks by worker and time, and their sums below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stored, evicted, edges = event_density(log, num_workers, NUM_BINS)
    times_s = edges / 1e3
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    limit = max(float(np.percentile(stored, 99)), 1.0)
    rows = (("stored", stored, "Blues"), ("evicted", evicted, "Reds"))
    for panel, (name, counts, colours) in zip(panels, rows, strict=False):
        workers = np.arange(num_workers + 1) - 0.5
        mesh = panel.pcolormesh(times_s, workers, counts, cmap=colours, vmin=0, vmax=limit)
        panel.set_ylabel("worker")
        panel.set_title(
            f"KV blocks {name} per {times_s[1]:.3g} s: {int(counts.sum()):,} in all",
            loc="left", fontsize=12, fontweight="bold", color=style.BLACK,
        )  # fmt: skip
        figure.colorbar(mesh, ax=panel, label="blocks", extend="max")
    sums = panels[2]
    sums.stairs(stored.sum(axis=0), times_s, fill=True, color="#2166ac", label="stored")
    sums.stairs(-evicted.sum(axis=0), times_s, fill=True, color="#b2182b", label="evicted")
    sums.axhline(0, color=style.BLACK, linewidth=0.8)
    sums.set_ylabel("all workers")
    sums.set_xlabel("time (s)")
    sums.grid(color=style.GRID)
    sums.legend(frameon=False, ncols=2, loc="upper right")
    return figure
