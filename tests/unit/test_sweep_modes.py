"""One space over aggregated and disaggregated clusters: which keys count, and what is one trial."""

from pathlib import Path

import pytest

from dynosim.build.engine import prepare
from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import ConfigError
from dynosim.plots.families import family_of
from dynosim.plots.trials import label
from dynosim.sweep.bound import plan_bound_rps
from dynosim.sweep.need_sweep import families_of, with_workers
from dynosim.sweep.probe import answering_workers
from dynosim.sweep.proposals import Proposals
from dynosim.sweep.space import num_same_points, trials_of
from dynosim.sweep.trial import cached_trace

HEAD = """\
workload: {synthetic: {requests: 60, isl: 100, osl: 11, arrival: poisson, rate_rps: 20}}
timing: {kind: linear, base_ms: 5, per_prefill_token_ms: 0.1, per_decode_ms: 0.2}
engine: {num_gpu_blocks: 400, max_num_batched_tokens: 1000, max_num_seqs: 10}
"""
CLUSTER = """\
cluster:
  workers: 2
  prefill: {engine: {max_num_seqs: 4}}
  transfer: {bandwidth_gb_s: 10, kv_bytes_per_token: 100000}
"""
BOTH = """\
space:
  cluster.mode: [agg, disagg]
  cluster.workers: [1, 2, 3]
  cluster.prefill.workers: [1, 2]
  cluster.decode.workers: [1, 2]
  engine.tensor_parallel: [1, 2]
  cluster.prefill.engine.tensor_parallel: [1, 2]
  cluster.decode.engine.tensor_parallel: [1, 2]
"""


def sweep_of(tmp_path: Path, *parts: str) -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_text("".join(f"{part.rstrip()}\n" for part in parts))
    return load_sweep(path)


def test_keys_of_the_other_mode_are_left_out_and_make_no_second_trial(tmp_path: Path) -> None:
    """3 x 2 aggregated layouts; 2 x 2 x 2 x 2 disaggregated ones, whose pools have their own TP."""
    sweep = sweep_of(tmp_path, HEAD, CLUSTER, BOTH)
    trials = trials_of(sweep)
    assert [trial.index for trial in trials] == list(range(6 + 16))
    assert num_same_points(sweep, len(trials)) == 2 * 3 * 2 * 2 * 2 * 2 * 2 - 22
    agg, disagg = trials[:6], trials[6:]
    assert all(trial.config is not None for trial in trials)
    for trial in agg:
        assert list(trial.values) == ["cluster.mode", "cluster.workers", "engine.tensor_parallel"]
        assert (
            trial.config.num_gpus
            == trial.values["cluster.workers"] * trial.values["engine.tensor_parallel"]
        )
    for trial in disagg:
        pools = ("prefill", "decode")
        assert (
            "cluster.workers" not in trial.values and "engine.tensor_parallel" not in trial.values
        )
        assert trial.config.num_gpus == sum(
            trial.values[f"cluster.{pool}.workers"]
            * trial.values[f"cluster.{pool}.engine.tensor_parallel"]
            for pool in pools
        )
        assert trial.config.cluster.prefill.engine.max_num_seqs == 4  # of the file, kept


def test_a_key_that_one_pool_has_not_for_itself_counts(tmp_path: Path) -> None:
    space = BOTH.replace("  cluster.decode.engine.tensor_parallel: [1, 2]\n", "")
    trials = trials_of(sweep_of(tmp_path, HEAD, CLUSTER, space))
    split = [trial for trial in trials if trial.values["cluster.mode"] == "disagg"]
    assert len(split) == 2 * 2 * 2 * 2
    assert {trial.config.for_pool("decode").engine.tensor_parallel for trial in split} == {1, 2}


def test_plans_that_are_the_same_in_other_words_are_one(tmp_path: Path) -> None:
    """Both pools take 64 from the shared engine, or each says so itself."""
    space = """\
space:
  cluster:
  - {mode: disagg, transfer: {preset: ib}, prefill: {engine: {block_size: 64}},
     decode: {engine: {block_size: 64}}}
  - {mode: disagg, transfer: {preset: ib}}
  engine.block_size: [16, 64]
"""
    trials = trials_of(sweep_of(tmp_path, HEAD, space))
    sizes = [[pool.engine.block_size for pool in trial.config.pools()] for trial in trials]
    assert sizes == [[64, 64], [16, 16]]


def test_both_pools_count_for_the_budget(tmp_path: Path) -> None:
    trials = trials_of(sweep_of(tmp_path, HEAD, CLUSTER, BOTH, "constraints: {gpu_budget: 4}"))
    reasons = {label(trial.values, []): trial.reason for trial in trials if trial.config is None}
    assert reasons["2P1D TP2+TP1"] == "needs 5 GPUs, constraints.gpu_budget is 4"
    assert "1P1D TP2+TP2" not in reasons and "3xTP2" in reasons


def test_a_combination_that_cannot_be_is_infeasible_with_its_reason(tmp_path: Path) -> None:
    space = BOTH.replace(
        "cluster.workers: [1, 2, 3]", "cluster.prefill.engine.max_num_seqs: [4, 2000]"
    )
    trials = trials_of(sweep_of(tmp_path, HEAD, CLUSTER, space))
    refused = [trial for trial in trials if trial.config is None]
    assert len(refused) == 16 and len(trials) == 2 + 32
    assert all("less than max_num_seqs (2000)" in trial.reason for trial in refused)
    assert all("cluster.prefill.engine" in trial.reason for trial in refused)


def test_pools_without_a_link_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.transfer: missing"):
        sweep_of(tmp_path, HEAD, "space: {cluster.mode: [agg, disagg]}")


def test_a_key_of_a_mode_that_there_is_not_is_refused(tmp_path: Path) -> None:
    for key, mode in (("cluster.prefill.workers", "agg"), ("cluster.workers", "disagg")):
        cluster = "" if mode == "agg" else "cluster: {mode: disagg, transfer: {preset: ib}}"
        with pytest.raises(ConfigError, match=f"{key}: has no effect: cluster.mode is {mode}"):
            sweep_of(tmp_path, HEAD, cluster, f"space: {{{key}: [1, 2]}}")


def test_a_bad_value_of_a_key_is_found_though_the_first_mode_has_no_such_key(
    tmp_path: Path,
) -> None:
    space = BOTH.replace("cluster.decode.workers: [1, 2]", "cluster.decode.workers: [1, two]")
    with pytest.raises(ConfigError, match=r"space.cluster.decode.workers"):
        sweep_of(tmp_path, HEAD, CLUSTER, space)


@pytest.mark.parametrize("method", ["random", "tpe", "nsga2"])
def test_no_search_draws_a_plan_twice(tmp_path: Path, method: str) -> None:
    """All 22 are found, though 192 combinations come to them; then there are no more."""
    search = f"search: {{method: {method}, trials: 40, batch: 40, seed: 1}}"
    if method == "random":
        trials = trials_of(
            sweep_of(tmp_path, HEAD, CLUSTER, BOTH, search.replace(", batch: 40", ""))
        )
        points = [trial.values for trial in trials]
    else:
        sweep = sweep_of(tmp_path, HEAD, CLUSTER, BOTH, search)
        points = [sweep.values_that_count(point) for point in Proposals(sweep).ask(40)]
    assert len(points) == len({str(point) for point in points}) == 22


def test_the_bound_of_a_split_cluster_is_that_of_its_slower_pool(tmp_path: Path) -> None:
    """A prompt of 100 tokens takes 10.5 ms of a full step; ten seats make 10 tokens in 7 ms."""
    sweep = sweep_of(tmp_path, HEAD, CLUSTER, BOTH)
    by_name = {label(trial.values, []): trial.config for trial in trials_of(sweep)}

    def bound(name: str) -> float:
        config = by_name[name]
        return plan_bound_rps(cached_trace(config), config, prepare(config))

    prefill_rps, decode_rps = 1000 / 10.5, 1000 / (7.0 / 10 * 10)
    assert bound("1P1D TP1+TP1") == pytest.approx(min(prefill_rps, decode_rps))
    assert bound("2P1D TP1+TP1") == pytest.approx(decode_rps)
    assert bound("1P2D TP1+TP1") == pytest.approx(prefill_rps)
    assert bound("2P2D TP1+TP1") == pytest.approx(min(2 * prefill_rps, 2 * decode_rps))
    assert bound("1xTP1") == pytest.approx(1000 / (10.5 + 7.0))
    assert answering_workers(by_name["1P2D TP1+TP1"]) == answering_workers(by_name["2xTP1"]) == 2


NEED = """\
space:
  cluster.mode: [agg, disagg]
  cluster.prefill.workers: [1, 2]
  engine.tensor_parallel: [1, 2]
constraints: {gpu_budget: 8, sla: {ttft_ms: 500}}
load: {need: {rps: 10}}
"""


def test_a_need_is_held_by_decode_workers_beside_each_number_of_prefill_workers(
    tmp_path: Path,
) -> None:
    cluster = CLUSTER.replace("  workers: 2\n", "")
    families = families_of(sweep_of(tmp_path, HEAD, cluster, NEED))
    bounds = {label(f.trial.values, []): (f.key, f.low, f.high) for f in families}
    assert bounds == {
        "1xTP1": ("cluster.workers", 1, 8),
        "1xTP2": ("cluster.workers", 1, 4),
        "1P1D TP1+TP1": ("cluster.decode.workers", 1, 7),
        "1P1D TP2+TP2": ("cluster.decode.workers", 1, 3),
        "2P1D TP1+TP1": ("cluster.decode.workers", 1, 6),
        "2P1D TP2+TP2": ("cluster.decode.workers", 1, 2),
    }
    split = next(family for family in families if family.high == 6)
    more = with_workers(split, 5)
    assert more.config is not None and more.config.layout == "2P5D"
    assert more.values["cluster.decode.workers"] == 5


def test_a_need_must_know_who_computes_prompts_and_not_be_told_the_answer(tmp_path: Path) -> None:
    cluster = CLUSTER.replace("  workers: 2\n", "")
    lacking = NEED.replace("  cluster.prefill.workers: [1, 2]\n", "")
    with pytest.raises(ConfigError, match=r"cluster\.prefill\.workers"):
        sweep_of(tmp_path, HEAD, cluster, lacking)
    told = cluster + "  decode: {workers: 2}\n"
    with pytest.raises(ConfigError, match=r"remove cluster.decode.workers"):
        sweep_of(tmp_path, HEAD, told, NEED)


def test_layouts_are_named_by_both_pools() -> None:
    split = {
        "cluster.mode": "disagg", "cluster.workers": None, "engine.tensor_parallel": None,
        "cluster.prefill.workers": 2, "cluster.decode.workers": 1,
        "cluster.prefill.engine.tensor_parallel": 2, "cluster.decode.engine.tensor_parallel": 4,
        "cluster.decode.engine.max_num_seqs": 64, "router.mode": "kv",
    }  # fmt: skip
    keys = list(split)
    assert label(split, keys) == "2P1D TP2+TP4 kv D max_num_seqs=64"
    agg = dict.fromkeys(keys) | {"cluster.mode": "agg", "cluster.workers": 4}
    assert label(agg | {"engine.tensor_parallel": 2, "router.mode": "kv"}, keys) == "4xTP2 kv"
    assert label({"cluster.mode": "agg"}, ["cluster.mode"]) == "agg"
    assert label({"cluster.mode": "disagg", "layout": "3P1D"}, ["cluster.mode"]) == "3P1D"
    assert label({"layout": "3P1D", "cluster.decode.engine.tensor_parallel": 4}, []) == "3P1D D TP4"
    assert family_of(split).name == "disagg TP2+TP4"
    assert family_of(split) != family_of(split | {"cluster.decode.engine.tensor_parallel": 2})
