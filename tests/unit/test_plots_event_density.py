"""KV events over time and workers: every block is drawn once, where and when it was told."""

import numpy as np
import pytest

from dynosim.plots.event_density import event_density, event_density_figure
from dynosim.records import KvEventLog


@pytest.fixture
def log() -> KvEventLog:
    return KvEventLog(
        time_ms=np.array([0.0, 10.0, 24.9, 25.0, 100.0]),
        worker_id=np.array([0, 1, 1, 1, 0]),
        num_blocks=np.array([5, 3, -2, 4, -1]),
    )


def test_blocks_are_counted_by_worker_and_time(log: KvEventLog) -> None:
    stored, evicted, edges = event_density(log, 2, 4)
    assert edges.tolist() == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert stored.tolist() == [[5, 0, 0, 0], [3, 4, 0, 0]]
    assert evicted.tolist() == [[0, 0, 0, 1], [2, 0, 0, 0]]


def test_no_events_are_drawn_over_a_millisecond() -> None:
    nothing = KvEventLog(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    stored, evicted, edges = event_density(nothing, 3, 2)
    assert edges.tolist() == [0.0, 0.5, 1.0]
    assert stored.sum() == evicted.sum() == 0
    assert stored.shape == (3, 2)


def test_titles_count_all_blocks(log: KvEventLog) -> None:
    figure = event_density_figure(log, 2)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "KV blocks stored per 0.000417 s: 12 in all" in titles
    assert "KV blocks evicted per 0.000417 s: 3 in all" in titles
