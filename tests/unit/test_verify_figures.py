"""Verdicts, their matrix, and what blind predictions are unsure of."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from verify_support import curve, served

from dynosim.build.engine import Prepared, prepare
from dynosim.config.loading import run_config_from_dict
from dynosim.config.schema import RunConfig
from dynosim.verify.believed import SOURCES, believed_draws, drawn_timing
from dynosim.verify.curves import deviation, output_by_second
from dynosim.verify.matrix import missed, percent, summaries, uncovered
from dynosim.verify.verdict import EXPERIMENT, JudgedFigure, RecordingVerdict


def verdict(name: str, errors: dict[str, float], **changes: Any) -> RecordingVerdict:
    """Measured 100, predicted as the error says, an interval of 5 to either side of that."""
    figures = tuple(
        JudgedFigure(key, 100.0, 100 * (1 + error), 95 + 100 * error, 105 + 100 * error)
        for key, error in errors.items()
    )
    given: dict[str, Any] = {"kind": EXPERIMENT, "level": "apriori", "figures": figures, **changes}
    return RecordingVerdict(recording=name, **given)


def test_a_verdict_survives_being_kept() -> None:
    one = verdict(
        "a",
        {"mean_ttft_ms": 0.1},
        notes=("x",),
        varied=("arrivals",),
        causes={"none": 0.1, "KV capacity": 0.02},
        distances={"ks_ttft_ms": 0.3},
        setup={"model": "m"},
        blocks_measured=10,
        blocks_predicted=11,
    )
    kept = json.loads(json.dumps(one.to_dict()))
    assert RecordingVerdict.from_dict(kept) == one
    assert kept["block_error"] == pytest.approx(0.1)
    assert kept["largest_cause"] == "KV capacity"
    assert kept["coverage"] == {"covered": 0, "of": 1}
    with pytest.raises(KeyError):
        RecordingVerdict.from_dict({"recording": "a"})


def test_an_interval_covers_what_lies_in_it() -> None:
    assert JudgedFigure("x", 5.0, 4.0, 4.5, 5.0).is_covered is True
    assert JudgedFigure("x", 5.0, 4.0, 3.0, 4.9).is_covered is False
    assert JudgedFigure("x", 5.0, 4.0).is_covered is None


def test_medians_and_coverage_leave_out_what_is_shown_apart_or_not_predicted() -> None:
    verdicts = [
        verdict("a", {"mean_e2e_latency_ms": 0.02, "mean_itl_ms": -0.01}),
        verdict("b", {"mean_e2e_latency_ms": -0.04, "mean_itl_ms": 0.03}),
        verdict("c", {"mean_e2e_latency_ms": 0.10, "mean_tpot_ms": 0.05}),
        verdict("apart", {"mean_e2e_latency_ms": 9.0}, excluded="outputs end early"),
        RecordingVerdict(recording="none", kind=EXPERIMENT, level="apriori", problem="unknown GPU"),
    ]
    (summary,) = summaries(verdicts)
    assert (summary.recordings, summary.covered, summary.of) == (3, 5, 6)
    assert summary.e2e == pytest.approx(0.04) and summary.worst_e2e == pytest.approx(0.10)
    assert summary.tpot == pytest.approx(0.03)
    assert summary.ttft is None
    assert [one.recording for one in missed(verdicts)] == ["c"]
    assert [(one.recording, names) for one, names in uncovered(verdicts)] == [
        ("c", ["mean_e2e_latency_ms"])
    ]


@pytest.mark.parametrize(
    ("causes", "part"),
    [
        ({}, ""),
        ({"none": 0.1, "scheduling": 0.12}, ""),
        ({"none": 0.1, "scheduling": 0.08, "step time": 0.03}, "step time"),
        ({"none": 0.1, "step time and host overhead": 0.0, "scheduling": 0.09}, "scheduling"),
    ],
)
def test_the_largest_cause_is_the_single_part_that_helps_most(
    causes: dict[str, float], part: str
) -> None:
    assert verdict("a", {}, causes=causes).largest_cause == part


def test_shares_are_printed_without_a_minus_zero() -> None:
    assert [percent(value) for value in (0.1234, -0.0004, None, float("nan"))] == [
        "+12.3 %",
        "0.0 %",
        "",
        "",
    ]
    assert percent(0.05, signed=False) == "5.0 %"


def test_output_by_second_loses_no_token_and_is_where_the_tokens_are() -> None:
    outcome = served(
        {"synthetic": {"requests": 30, "isl": 200, "osl": 50, "rate_rps": 3.0}}, num_gpu_blocks=1500
    )
    log = outcome.result.requests
    second = np.arange(0.0, np.ceil(log.finish_ms.max() / 1000) + 1)
    rates = output_by_second(log, second)
    assert rates.sum() == pytest.approx(log.output_tokens.sum())
    assert rates[second[1:] * 1000 < log.first_token_ms.min()].sum() == 0
    measured = np.concatenate([[0.0], rates])
    assert deviation(second, measured, log) == 0
    assert deviation(second, 2 * measured, log) == pytest.approx(0.5)


def prepared(**changes: Any) -> tuple[RunConfig, Prepared]:
    data: dict[str, Any] = {
        "model": "Qwen/Qwen3-8B",
        "hardware": "rtx_3090",
        "workload": {"trace": "x"},
        "engine": {"max_model_len": 2048},
        "timing": {"kind": "roofline", **changes},
    }
    config = run_config_from_dict(data)
    return config, prepare(config)


def test_every_source_varies_something_and_the_same_seed_draws_the_same() -> None:
    config, ready = prepared()
    words, draws = believed_draws(config, ready, count=40, seed=3)
    drawn = list(draws)
    assert drawn == list(believed_draws(config, ready, count=40, seed=3)[1])
    assert drawn != list(believed_draws(config, ready, count=40, seed=4)[1])
    assert set(words) >= {"arrivals", "all step times together", "KV capacity"}
    assert len({draw.config.seed for draw in drawn}) == 40
    for name in ("step_times", "host", "client_path"):
        assert len({getattr(draw, name) for draw in drawn}) == 40, name
    assert np.mean([draw.step_times for draw in drawn]) == pytest.approx(1, abs=1e-6)
    blocks = [draw.config.engine.num_gpu_blocks for draw in drawn]
    known = ready.capacity
    assert known.low <= min(blocks) < known.num_gpu_blocks < max(blocks) <= known.high


def test_what_is_stated_is_not_varied() -> None:
    config, _ = prepared(step_overhead_ms=1.0, ingress_ms=0.0, egress_ms=0.0)
    engine = config.engine.model_copy(update={"num_gpu_blocks": 500})
    config = config.model_copy(update={"engine": engine})
    words, draws = believed_draws(config, prepare(config), count=2, seed=0)
    assert words == ("arrivals", "all step times together")
    assert all(draw.config.engine.num_gpu_blocks == 500 for draw in draws)


def test_a_draw_changes_the_times_it_says() -> None:
    config, ready = prepared()
    _, draws = believed_draws(config, ready, count=1, seed=0)
    base = next(iter(draws))
    same = replace(base, step_times=1.0, host=1.0, client_path=1.0)
    slower = replace(same, step_times=2.0, client_path=3.0)
    before, after = drawn_timing(ready.timing, same), drawn_timing(ready.timing, slower)
    assert before.ingress_ms == ready.timing.ingress_ms
    assert after.ingress_ms == pytest.approx(3 * ready.timing.ingress_ms)
    runs = [timing.decode_run_ms(4, 4000, 7) for timing in (before, after)]
    assert runs[1] == pytest.approx(2 * runs[0])


def test_sources_have_words_of_their_own() -> None:
    assert len({source.words for source in SOURCES}) == len(SOURCES)


def test_a_made_curve_has_the_tokens_of_its_requests() -> None:
    data = curve()
    tokens = sum(rate for _, rate in data["measured"]["output_tok_s_by_second"])
    assert tokens == pytest.approx(sum(row["output_tokens"] for row in data["requests"]))
