"""The mean field: AIConfigurator's own numbers, formulas by hand, and what a screen keeps."""

from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.config.sweep_schema import Search
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.sweep.meanfield import (
    BatchCurve,
    MeanBounds,
    MeanField,
    MeanLoad,
    MeanRequest,
    MeanTransfer,
    aggregated,
    aggregated_curve,
    batch_sizes,
    decode_curve,
    disaggregated,
    kendall_tau,
    prefill_curve,
)
from dynosim.sweep.results import Row
from dynosim.sweep.screen_report import screen_dict, screen_text
from dynosim.sweep.screening import screened
from dynosim.sweep.space import Trial, trials_of
from dynosim.timing.formulas import LinearModel
from dynosim.timing.mean_field import Allowances

REQUEST = MeanRequest(isl=4000, osl=500)
GPUS = 8
PREFILL_MS = 251.77  # of 4000 tokens, TP2, in AIConfigurator's example


def only(batch: int, *, ttft_ms: float = 0.0, tpot_ms: float = 0.0, rps: float) -> BatchCurve:
    """A worker that has one batch size."""
    return BatchCurve(np.array([batch]), np.array([rps]), np.array([ttft_ms]), np.array([tpot_ms]))


def prefill_worker() -> BatchCurve:
    return only(1, ttft_ms=PREFILL_MS, rps=1000 / PREFILL_MS)


def decode_worker(batch: int, tokens_s_user: float) -> BatchCurve:
    tpot_ms = 1000 / tokens_s_user
    return only(batch, tpot_ms=tpot_ms, rps=batch * 1000 / (tpot_ms * 499))


# Qwen3-32B-FP8 on 8 H200: batch, tokens/s/user, P, D, tokens/s/GPU, TTFT ms, latency ms
AIC_ROWS = [
    (76, 53.58, 2, 1, 446.85, 453.18, 9766.51),
    (72, 41.14, 2, 2, 446.85, 453.18, 12581.87),
    (18, 40.22, 2, 4, 333.73, 453.18, 12860.32),
]


@pytest.mark.parametrize("row", AIC_ROWS)
def test_aiconfigurators_disaggregated_rows(row: tuple[Any, ...]) -> None:
    batch, speed, num_prefill, num_decode, per_gpu, ttft_ms, e2e_ms = row
    found = disaggregated(
        prefill_worker(), decode_worker(batch, speed), REQUEST,
        workers=(num_prefill, num_decode), num_gpus=GPUS,
        bounds=MeanBounds(ttft_ms=600, tpot_ms=25),
    )  # fmt: skip
    assert found is not None
    assert found.ttft_ms == pytest.approx(ttft_ms, abs=0.01)
    assert found.ttft_ms == 1.8 * PREFILL_MS
    assert found.tok_s_per_user == pytest.approx(speed)
    assert found.e2e_ms == found.ttft_ms + 499 * found.tpot_ms
    assert found.e2e_ms == pytest.approx(e2e_ms, rel=2e-4)  # the speed has four digits
    assert found.tok_s_per_gpu == pytest.approx(per_gpu, rel=2e-4)
    assert found.rps * found.osl == pytest.approx(GPUS * found.tok_s_per_gpu)
    is_prefill_bound = num_decode < 4
    assert found.limit == ("prefill" if is_prefill_bound else "decode")
    if is_prefill_bound:
        assert found.rps == pytest.approx(7.1496, rel=5e-5)
        assert found.rps == pytest.approx(2 * 0.9 / PREFILL_MS * 1000, rel=1e-12)
    else:
        made = 0.92 * 4 * 18 * 40.22  # tokens behind the first one
        assert found.rps * 499 == pytest.approx(made, rel=1e-12)


def test_its_aggregated_rows_keep_the_same_identities() -> None:
    """TP4 x 2: 322.69 tokens/s/GPU at 41.78 tokens/s/user, TTFT 546.92, latency 12490.03."""
    tpot_ms = 1000 / 41.78
    found = MeanField(8 * 322.69 / 500, 546.92, tpot_ms, 500, 8, 32, "batch")
    assert found.e2e_ms == pytest.approx(12490.03, rel=2e-4)
    assert found.tok_s_per_gpu == pytest.approx(322.69)
    in_flight = found.rps * found.e2e_ms / 1000
    assert in_flight == pytest.approx(64, rel=0.011)  # Little's law, to 1.1 %


def test_factors_and_links_bound_the_rate() -> None:
    def rate(**more: Any) -> tuple[float, str]:
        found = disaggregated(
            prefill_worker(), decode_worker(76, 53.58), REQUEST, workers=(2, 1), num_gpus=GPUS,
            **more,
        )  # fmt: skip
        assert found is not None
        return found.rps, found.limit

    prompts, answers = 2000 / PREFILL_MS, 76 * 53.58 / 499
    assert rate(factors=Allowances(1.0, 1.0, 1.0)) == (pytest.approx(prompts), "prefill")
    assert rate(factors=Allowances(1.0, 0.5, 1.0)) == (pytest.approx(0.5 * answers), "decode")
    assert rate(transfer=MeanTransfer(rps=3.0)) == (3.0, "link")
    assert rate(load=MeanLoad(rps=2.0)) == (2.0, "load")
    slow = disaggregated(
        prefill_worker(), decode_worker(76, 53.58), REQUEST, workers=(2, 1), num_gpus=GPUS,
        transfer=MeanTransfer(exposed_ms=100.0), factors=Allowances(ttft=2.0),
    )  # fmt: skip
    assert slow is not None and slow.ttft_ms == 2 * PREFILL_MS + 100


def test_the_decode_pool_has_the_smallest_batch_that_keeps_up() -> None:
    decode = BatchCurve(
        np.array([1, 2, 4, 8]), np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4),
        np.array([10.0, 11.0, 12.0, 40.0]),
    )  # fmt: skip
    prefill = only(1, ttft_ms=100.0, rps=2.0)

    def chosen(bounds: MeanBounds | None = None, workers: int = 1) -> MeanField | None:
        return disaggregated(
            prefill, decode, REQUEST, workers=(workers, 1), num_gpus=2,
            bounds=bounds or MeanBounds(),
            factors=Allowances(1.0, 1.0, 1.0),
        )  # fmt: skip

    assert (found := chosen()) is not None and (found.batch, found.tpot_ms) == (2, 11.0)
    assert (found := chosen(workers=3)) is not None and (found.batch, found.rps) == (8, 4.0)
    tight = chosen(MeanBounds(tpot_ms=12.0), workers=3)
    assert tight is not None and (tight.batch, tight.rps, tight.limit) == (4, 3.0, "decode")
    assert chosen(MeanBounds(ttft_ms=99.0)) is None
    assert chosen(MeanBounds(e2e_ms=100 + 499 * 10 - 1)) is None


TIMES = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.1, per_decode_ms=0.2, per_context_token_ms=0.001
)
ENGINE = EngineSpec(
    num_gpu_blocks=2001, max_model_len=100_000, block_size=16, max_num_seqs=64,
    max_num_batched_tokens=2000,
)  # fmt: skip


def test_an_aggregated_worker_by_hand() -> None:
    """8 requests of 1000 and 100 tokens: 4 steps of 2 prompts beside 6 answers, then 96 of 8."""
    request = MeanRequest(isl=1000, osl=100)
    curve = aggregated_curve(ENGINE, TIMES, request)
    at = curve.batches.tolist().index(8)
    mixed_ms = 5 + 0.1 * 2000 + 0.001 * 2000 + 6 * (0.2 + 0.001 * 1050)
    plain_ms = 5 + 8 * (0.2 + 0.001 * 1050)
    cycle_ms = 4 * mixed_ms + 96 * plain_ms
    assert curve.ttft_ms[at] == pytest.approx(mixed_ms)
    assert curve.tpot_ms[at] == pytest.approx(cycle_ms / 100)
    assert curve.rps[at] == pytest.approx(8000 / cycle_ms)
    assert curve.batches[-1] == 32_000 // 1100  # what the cache holds, less than 64
    twice = aggregated_curve(ENGINE, TIMES, request, ranks=2)
    assert twice.rps[at] == pytest.approx(2 * curve.rps[at])


def test_a_prompt_longer_than_a_step_takes_several() -> None:
    request = MeanRequest(isl=5000, osl=2)
    curve = aggregated_curve(ENGINE, TIMES, request)
    mixed_ms = 5 + 0.1 * 2000 + 0.001 * 2000  # nobody decodes beside the only request
    assert curve.ttft_ms[0] == pytest.approx(ceil(5000 / 2000) * mixed_ms)
    prefill = prefill_curve(ENGINE, TIMES, request)
    assert prefill.ttft_ms.tolist() == pytest.approx([3 * 5 + 0.101 * 5001])


def test_pools_by_hand() -> None:
    request = MeanRequest(isl=500, osl=101)
    prefill = prefill_curve(ENGINE, TIMES, request)
    assert prefill.batches.tolist() == [1, 2, 3, 4]  # 2000 tokens a step
    assert prefill.ttft_ms.tolist() == pytest.approx([5 + 50.5 * n for n in (1, 2, 3, 4)])
    assert prefill.rps.tolist() == pytest.approx([n * 1000 / ms for n, ms in
                                                  zip((1, 2, 3, 4), (55.5, 106, 156.5, 207),
                                                      strict=True)])  # fmt: skip
    decode = decode_curve(ENGINE, TIMES, request)
    at = decode.batches.tolist().index(10)
    tpot_ms = 5 + 10 * (0.2 + 0.001 * 550.5)
    assert decode.tpot_ms[at] == pytest.approx(tpot_ms)
    assert decode.rps[at] == pytest.approx(10_000 / (tpot_ms * 100))
    half = prefill_curve(ENGINE, TIMES, MeanRequest(500, 101, reused=0.5))
    assert half.ttft_ms[0] == pytest.approx(5 + 0.1 * 250 + 0.001 * 500)


def test_a_load_is_served_by_the_batch_that_it_needs() -> None:
    request = MeanRequest(isl=1000, osl=100)
    curve = aggregated_curve(ENGINE, TIMES, request)
    most = aggregated(curve, request, workers=3, num_gpus=6)
    assert most is not None and most.rps == pytest.approx(3 * curve.rps.max())
    asked = aggregated(curve, request, workers=3, num_gpus=6, load=MeanLoad(rps=most.rps / 2))
    assert asked is not None and asked.limit == "load" and asked.rps == most.rps / 2
    at = curve.batches.tolist().index(asked.batch)
    assert 3 * curve.rps[at] >= most.rps / 2 > 3 * curve.rps[at - 1]
    closed = aggregated(curve, request, workers=3, num_gpus=6, load=MeanLoad(in_flight=12.0))
    assert closed is not None and closed.batch == 4
    slow = MeanBounds(tpot_ms=float(curve.tpot_ms[3]))
    bound = aggregated(curve, request, workers=1, num_gpus=1, bounds=slow)
    assert bound is not None and bound.batch == curve.batches[3]
    assert aggregated(curve, request, workers=1, num_gpus=1, bounds=MeanBounds(ttft_ms=1)) is None


def test_batch_sizes_grow_and_end_at_the_most() -> None:
    sizes = batch_sizes(1000)
    assert sizes[0] == 1 and sizes[-1] == 1000 and len(sizes) < 120
    assert (np.diff(sizes) > 0).all()
    assert (sizes[1:] <= np.maximum(sizes[:-1] + 1, sizes[:-1] * 1.05)).all()
    assert batch_sizes(1).tolist() == [1]


def test_rank_correlation() -> None:
    assert kendall_tau([1, 2, 3], [10, 20, 30]) == 1.0
    assert kendall_tau([1, 2, 3], [30, 20, 10]) == -1.0
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / np.sqrt(2 * 3))
    assert kendall_tau([1, 1], [1, 2]) is kendall_tau([1], [1]) is None


FILE = """\
name: s
workload: {synthetic: {requests: 50, isl: 1000, osl: 50, arrival: poisson, rate_rps: 4}}
timing: {kind: linear, base_ms: 5, per_prefill_token_ms: 0.05, per_decode_ms: 0.2}
engine: {num_gpu_blocks: 4000}
cluster: {transfer: {bandwidth_gb_s: 10, kv_bytes_per_token: 100000, latency_us: 0}}
space:
  cluster.mode: [agg, disagg]
  cluster.workers: [1, 2]
  cluster.prefill.workers: [1, 2, 3]
  cluster.decode.workers: [1, 2]
  router.mode: [round-robin, least-loaded]
constraints: {gpu_budget: 4, sla: {ttft_ms: 500, itl_ms: 10}}
"""


def sweep_of(tmp_path: Path, search: str = "{screen: meanfield, keep: 2}") -> SweepConfig:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{FILE}search: {search}\n")
    return load_sweep(path)


def test_what_the_screen_cannot_tell_apart_is_tried_together(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path)
    trials = trials_of(sweep)
    found = screened(sweep, trials)
    names = {t.index: t.config.layout for t in trials if t.config is not None}
    best = found.fields[found.order[0]]
    assert best is not None and names[found.order[0]] == "2P1D" and best.limit == "prefill"
    kept = sorted(names[index] for index in found.kept)
    assert kept == ["1x", "2P1D", "2P1D"]  # both routers; and the best of the other mode
    ranked = [found.fields[index] for index in found.order]
    worth = [-1.0 if each is None else each.tok_s_per_gpu for each in ranked]
    assert worth == sorted(worth, reverse=True)
    records = found.records()
    assert set(records) == set(found.order) - found.kept
    assert all(record["status"] == "screened" for record in records.values())
    assert all("by the mean field" in record["reason"] for record in records.values())


def test_a_link_bounds_a_layout_by_the_bytes_of_a_prompt(tmp_path: Path) -> None:
    """1000 tokens of 100 kB at 10 GB/s: 100 a second for each worker, 10 ms for each prompt."""
    sweep = sweep_of(tmp_path)
    trials = trials_of(sweep)
    found = screened(sweep, trials)
    by_name = {t.config.layout: found.fields[t.index] for t in trials if t.config is not None}
    split = by_name["1P1D"]
    assert split is not None and split.rps == pytest.approx(0.9 * split_rate(), rel=0.01)
    (tmp_path / "sweep.yaml").write_text(
        FILE.replace("bandwidth_gb_s: 10", "bandwidth_gb_s: 0.5").replace("500,", "900,")
        + "search: {screen: meanfield}\n"
    )
    slow = load_sweep(tmp_path / "sweep.yaml")
    trials = trials_of(slow)
    found = screened(slow, trials)
    by_name = {t.config.layout: found.fields[t.index] for t in trials if t.config is not None}
    for name, links in (("1P1D", 1), ("2P1D", 1), ("2P2D", 2)):
        one = by_name[name]
        assert one is not None and one.limit == "link"
        assert one.rps == pytest.approx(links * 5.0)
        assert one.ttft_ms > 200


def split_rate() -> float:
    """Of a prefill worker: the most prompts a step that keep 1.8 times their time within 500 ms."""
    most = int((500 / 1.8 - 10 / 1.8 - 5) / 50)
    return most * 1000 / (5 + 50 * most)


def test_a_plan_that_cannot_be_is_infeasible_not_screened(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    text = FILE.replace("  router.mode: [round-robin, least-loaded]\n",
                        "  engine.enable_chunked_prefill: [true, false]\n")  # fmt: skip
    path.write_text(text + "search: {screen: meanfield, keep: 1}\n")
    sweep = load_sweep(path)
    trials = trials_of(sweep)
    found = screened(sweep, trials)
    configs = {t.index: t.config for t in trials if t.config is not None}
    unchunked = {i for i, config in configs.items() if not config.engine.enable_chunked_prefill}
    assert set(found.refused) == unchunked and set(found.order).isdisjoint(unchunked)
    assert all("without chunked prefill" in why for why in found.refused.values())
    records = found.records()
    assert {records[index]["status"] for index in unchunked} == {"infeasible"}


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("{keep: 3}", "search.keep: has no effect without a screen"),
        ("{ttft_factor: 2}", "search.ttft_factor: has no effect without a screen"),
        ("{screen: meanfield, method: tpe, trials: 3}", "search.screen: tpe chooses by what"),
        ("{screen: meanfield, keep: 0}", "search.keep"),
    ],
)
def test_a_screen_that_means_nothing_is_refused(tmp_path: Path, search: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sweep_of(tmp_path, search)


def test_how_many_are_kept() -> None:
    assert Search.of({"screen": "meanfield"}).num_kept(65) == 7
    assert Search.of({"screen": "meanfield", "keep": 0.2}).num_kept(65) == 13
    assert Search.of({"screen": "meanfield", "keep": 1.0}).num_kept(65) == 65
    assert Search.of({"screen": "meanfield", "keep": 4}).num_kept(65) == 4
    assert Search.of({"screen": "meanfield", "keep": 0.001}).num_kept(65) == 1
    asked = Search.of({"screen": "meanfield", "prefill_factor": 0.5, "ttft_factor": 1.0})
    assert asked.factors == (0.5, 0.92, 1.0)


def test_the_report_of_a_screen_says_how_wrong_it_was() -> None:
    said = [(1, 11.0, 110.0, 300.0), (2, 10.0, 100.0, 100.0), (3, 9.0, 90.0, 200.0)]
    came = [(10.0, 100.0, 200.0), (10.0, 120.0, 200.0), (10.0, 80.0, 200.0)]
    rows = [
        Row(
            Trial(index, {}, None), "ok", "",
            {
                "screen_rank": rank, "screen_rps": rps, "screen_output_tok_s_per_gpu": per_gpu,
                "screen_ttft_ms": ttft_ms, "screen_tpot_ms": 10.0, "request_throughput_rps": own,
                "output_tok_s_per_gpu": made, "mean_ttft_ms": first_ms, "mean_tpot_ms": 10.0,
            },
            True,
        )
        for index, ((rank, rps, per_gpu, ttft_ms), (own, made, first_ms)) in enumerate(
            zip(said, came, strict=True)
        )
    ]  # fmt: skip
    rows.append(Row(Trial(3, {}, None), "screened", "far", {"screen_rank": 4}, None))
    rows.append(Row(Trial(4, {}, None), "infeasible", "large", {}, None))
    told = screen_dict(Search.of({"screen": "meanfield"}), rows)
    assert (told["num_ranked"], told["num_tried"], told["num_screened_out"]) == (4, 3, 1)
    assert told["num_infeasible"] == 1 and told["rank_of_best"] == 2
    assert told["kendall_tau"] == pytest.approx(1 / 3)
    rates, first = told["errors"]["request_throughput_rps"], told["errors"]["mean_ttft_ms"]
    assert rates == {"num": 3, "median": pytest.approx(0.0), "largest": pytest.approx(0.1)}
    assert first["median"] == pytest.approx(0.0) and first["largest"] == pytest.approx(0.5)
    assert told["errors"]["mean_tpot_ms"]["largest"] == 0.0
    assert "3 of 4 layouts tried" in screen_text(told) and "number 2" in screen_text(told)


def test_nothing_is_infinite_for_one_token() -> None:
    found = MeanField(1.0, 5.0, 0.0, 1.0, 1, 1, "batch")
    assert found.tok_s_per_user == inf and found.e2e_ms == 5.0
