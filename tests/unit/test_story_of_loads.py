"""What `why` tells of a request that loaded what it had in slower memory."""

import numpy as np
from probing import trace_of
from test_cluster_tiers import BLOCK, HOST, cluster, prompt

from dynosim.cli.why_text import _RENDER
from dynosim.cluster import RunOptions, simulate
from dynosim.metrics.story import Stories
from dynosim.metrics.timeline import timeline_table


def test_the_load_is_told_within_the_wait() -> None:
    asks = [
        prompt(0, 1, 2, 3, 4, 5, 6),
        prompt(100, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
        prompt(200, 1, 2, 3, 4, 5, 6),
    ]
    result = simulate(trace_of(asks, BLOCK), cluster(HOST), RunOptions(records_trail=True))
    kinds = [[one.kind for one in Stories(result).of(index)] for index in (1, 2)]
    assert "onboarded" not in kinds[0]
    (load,) = [one for one in Stories(result).of(2) if one.kind == "onboarded"]
    np.testing.assert_allclose((load.at_ms, load.until_ms), (200, 205))
    assert load.facts == {"num_tokens": 20, "beyond_tokens": 0}
    assert set(kinds[1]) <= {*_RENDER, "arrived"}


def test_the_timeline_counts_who_loads() -> None:
    asks = [
        prompt(0, 1, 2, 3, 4, 5, 6),
        prompt(100, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
        prompt(200, 1, 2, 3, 4, 5, 6),
    ]
    result = simulate(trace_of(asks, BLOCK), cluster(HOST), RunOptions())
    table = timeline_table(result, 50.0)
    assert table["onboarding"].to_list()[:5] == [0, 0, 0, 0, 5 / 16]  # 5 ms of the last 16
