"""Sizes and links of tiers as axes of a sweep: each layout carries what it carries alone."""

from pathlib import Path
from typing import Any

import pytest
from inline_workers import InlineWorker

from dynosim.config import load_sweep
from dynosim.errors import ConfigError
from dynosim.sweep import trial as trial_module
from dynosim.sweep.api import sweep
from dynosim.sweep.space import trials_of

BASE = """\
workload:
  synthetic: {{requests: 100, isl: 3000, turn_isl: 60, osl: 4, turns: 5, rate_rps: 20,
              think_time_ms: 4000}}
engine: {{num_gpu_blocks: 900, max_model_len: 4096, max_num_batched_tokens: 4096}}
timing: {{kind: polynomial}}
cluster: {{workers: 2{cluster}}}
space: {{{space}}}
{more}
"""
CAPACITY = """\
constraints: {sla: {ttft_ms: 75, statistic: mean}}
load: {search: capacity, min_requests: 0, tolerance: 0.1}
"""


def written(tmp_path: Path, space: str, *, cluster: str = "", more: str = "") -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(BASE.format(space=space, cluster=cluster, more=more))
    return path


def tiers_of(path: Path) -> list[Any]:
    """Of each trial the tiers that are configured, as far as they are stated."""
    found = []
    for trial in trials_of(load_sweep(path)):
        assert trial.config is not None, trial.reason
        tiers = trial.config.cluster.tiers
        found.append(tiers and tiers.model_dump(mode="json", exclude_unset=True))
    return found


def test_a_whole_section_may_be_there_or_not(tmp_path: Path) -> None:
    path = written(tmp_path, "cluster.tiers: [null, {host: {num_blocks: 9}}]")
    assert tiers_of(path) == [None, {"host": {"num_blocks": 9}}]


def test_keys_below_sections_that_the_file_does_not_have(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "cluster.tiers.host.capacity_gb: [5, 10], cluster.tiers.host.preset: [pcie4, c2c]",
    )
    assert tiers_of(path) == [
        {"host": {"capacity_gb": size, "preset": preset}}
        for size in (5.0, 10.0)
        for preset in ("pcie4", "c2c")
    ]


def test_keys_beside_those_that_the_file_has(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "cluster.tiers.remote: [null, {num_blocks: 90, preset: s3}]",
        cluster=", tiers: {host: {num_blocks: 9}}",
    )
    host = {"num_blocks": 9}
    assert tiers_of(path) == [
        {"host": host, "remote": None},
        {"host": host, "remote": {"num_blocks": 90, "preset": "s3"}},
    ]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("cluster.tiers.host.capacity_gb: [5, -1]", "a tier of -1 holds nothing"),
        ("cluster.tiers.host.read_gb_s: [0]", "a link of 0 GB/s moves nothing"),
        ("cluster.tiers: [null], cluster.tiers.host.num_blocks: [9]", "varies too"),
    ],
)
def test_what_is_no_tier_is_refused_before_anything_runs(
    tmp_path: Path, space: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_sweep(written(tmp_path, space))


def test_sizes_and_links_decide_what_is_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials of one process; the same layouts, each in a sweep of its own, carry the same."""
    monkeypatch.setattr("dynosim.sweep.executor._Worker", InlineWorker)
    axes = "cluster.tiers.host.num_blocks: [{}], cluster.tiers.host.read_gb_s: [{}]"
    known = ", tiers: {host: {write_gb_s: 50}, kv_bytes_per_token: 100000}"

    def carried(sizes: str, rates: str) -> list[float | None]:
        monkeypatch.setattr(trial_module, "_prepared", {})
        path = written(tmp_path, axes.format(sizes, rates), cluster=known, more=CAPACITY)
        return [row.report["capacity_load"] for row in sweep(path).rows]

    together = carried("20, 4000", "0.2, 50")
    alone = [carried(size, rate)[0] for size in ("20", "4000") for rate in ("0.2", "50")]
    assert together == alone
    small, small_again, slow, fast = together
    assert slow is None  # loading all that is found over it takes longer than computing it
    assert small == small_again is not None and fast is not None and fast > 2 * small
