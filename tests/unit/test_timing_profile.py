"""Profiles: both layouts, exact at their points, strict about their arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.errors import TraceError
from dynosim.silicon.profile_file import load_profile
from dynosim.testing.step_times import step_log
from dynosim.timing.step import StepShape

OWN: dict[str, Any] = {
    "prefill_tokens": [100, 1000],
    "prefill_ms": [10, 40],
    "decode_batch": [1, 8],
    "decode_context": [100, 500],
    "decode_ms": [[5, 6], [8, 12]],
}
DYNAMO: dict[str, Any] = {
    "prefill_isl": [100, 1000],
    "prefill_ttft_ms": [10, 40],
    "decode_active_kv_tokens": [1000, 9000],
    "decode_context_length": [100, 500],
    "decode_itl": [[5, 6], [8, 12]],
}


def _write(tmp_path: Path, data: dict[str, Any], name: str = "p.json") -> Path:
    path = tmp_path / name
    if name.endswith("npz"):
        arrays: Any = {key: np.array(value) for key, value in data.items()}
        np.savez(path, **arrays)
    else:
        path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("name", ["p.json", "p.npz"])
def test_own_layout_interpolates_and_extrapolates(tmp_path: Path, name: str) -> None:
    model = load_profile(_write(tmp_path, OWN, name))
    assert model.source == "measured"
    assert model.step_ms(StepShape.of_prompts(1, 550)) == pytest.approx(25)
    assert model.step_ms(StepShape.of_prompts(1, 1900)) == pytest.approx(70)
    assert model.step_ms(StepShape.of_decodes(8, 8 * 300)) == pytest.approx(10)
    assert model.step_ms(StepShape.of_decodes(8, 8 * 900)) == pytest.approx(16)
    assert model.step_ms(StepShape(1, 100, 0, 1, 100)) == pytest.approx(15)


@pytest.mark.parametrize("name", ["p.json", "p.npz"])
def test_dynamo_layout_is_bilinear_in_sum_and_mean(tmp_path: Path, name: str) -> None:
    model = load_profile(_write(tmp_path, DYNAMO, name))
    assert model.step_ms(StepShape.of_decodes(10, 1000)) == pytest.approx(5)
    # 5000 tokens over 16 sequences: integer mean 312.
    u, v = 0.5, (312 - 100) / 400
    expected = (1 - u) * (5 + v) + u * (8 + 4 * v)
    assert model.step_ms(StepShape.of_decodes(16, 5000)) == pytest.approx(expected)
    assert model.step_ms(StepShape.of_prompts(2, 201, 100)) == pytest.approx(10 + 30 / 900 * 100)


@pytest.mark.parametrize(
    ("tokens", "expected_ms"),
    [(0, 0.0), (10, 7.0), (100, 10.0), (101, 10 + 30 / 900), (1000, 40.0), (4000, 140.0)],
)
@pytest.mark.parametrize("layout", [OWN, DYNAMO], ids=["own", "dynamo"])
def test_prefill_is_in_line_between_points_and_beyond(
    tmp_path: Path, layout: dict[str, Any], tokens: int, expected_ms: float
) -> None:
    model = load_profile(_write(tmp_path, layout))
    assert model.step_ms(StepShape.of_prompts(1, tokens)) == pytest.approx(expected_ms, rel=1e-12)


def test_prefill_is_never_faster_than_nothing(tmp_path: Path) -> None:
    steep = OWN | {"prefill_ms": [10, 1000]}  # 1.1 ms a token: below 0 from 90 tokens down
    model = load_profile(_write(tmp_path, steep))
    assert model.step_ms(StepShape.of_prompts(1, 90)) == 0.0
    assert model.step_ms(StepShape.of_prompts(1, 99)) == pytest.approx(10 - 1.1)


@pytest.mark.parametrize(
    ("batch", "context", "expected_ms"),
    [
        (1, 100, 5),
        (1, 500, 6),
        (8, 100, 8),
        (8, 500, 12),
        (1, 300, 5.5),
        (4.5, 100, 6.5),
        (4.5, 300, 7.75),
        (15, 100, 11),  # beyond in batches: three more for each seven
        (15, 500, 18),
        (8, 900, 16),  # beyond in contexts
        (1, 0, 4.75),  # below
    ],
)
def test_decode_is_bilinear_in_batch_and_mean_context(
    tmp_path: Path, batch: float, context: int, expected_ms: float
) -> None:
    model = load_profile(_write(tmp_path, OWN | {"decode_batch": [2, 16]}))
    decodes = round(2 * batch)
    found_ms = model.step_ms(StepShape.of_decodes(decodes, decodes * context))
    assert found_ms == pytest.approx(expected_ms, rel=1e-12)


def test_own_prefill_counts_new_tokens_of_all_prompts_and_no_cached_ones(tmp_path: Path) -> None:
    model = load_profile(_write(tmp_path, OWN))
    assert model.step_ms(StepShape.of_prompts(3, 550, 700)) == model.step_ms(
        StepShape.of_prompts(1, 550)
    )
    mixed_ms = model.step_ms(StepShape(2, 550, 0, 8, 8 * 300))
    assert mixed_ms == pytest.approx(25 + 10, rel=1e-12)


@pytest.mark.parametrize(
    ("prompts", "tokens", "prefix", "counted"),
    [
        (1, 301, 0, 301),
        (2, 301, 0, 300),  # 150 each, and a half is left out
        (2, 300, 1, 300),  # lengths of 301: 150 each, cached 0 each
        (2, 299, 2, 298),  # 150 less 1
        (2, 301, 1, 302),  # 151 less 0
        (3, 301, 4, 300),  # 101 less 1
        (3, 302, 4, 303),  # 102 less 1
        (4, 402, 2, 404),  # 101 less 0
    ],
)
def test_dynamo_prefill_rounds_both_means_down(
    tmp_path: Path, prompts: int, tokens: int, prefix: int, counted: int
) -> None:
    model = load_profile(_write(tmp_path, DYNAMO))
    found_ms = model.step_ms(StepShape.of_prompts(prompts, tokens, prefix))
    assert found_ms == pytest.approx(10 + (counted - 100) * 30 / 900, rel=1e-12)


@pytest.mark.parametrize(
    ("batch", "tokens", "mean"),
    [(10, 5000, 500), (10, 1000, 100), (16, 4999, 312), (16, 5007, 312), (16, 5008, 313)],
)
def test_dynamo_decode_is_bilinear_in_all_tokens_and_a_mean_rounded_down(
    tmp_path: Path, batch: int, tokens: int, mean: int
) -> None:
    model = load_profile(_write(tmp_path, DYNAMO))
    along, up = (tokens - 1000) / 8000, (mean - 100) / 400
    low_ms, high_ms = 5 + 3 * along, 6 + 6 * along
    found_ms = model.step_ms(StepShape.of_decodes(batch, tokens))
    assert found_ms == pytest.approx(low_ms + up * (high_ms - low_ms), rel=1e-12)
    assert model.step_ms(StepShape(1, 550, 0, batch, tokens)) == pytest.approx(
        found_ms + 25, rel=1e-12
    )


def test_dynamo_decode_is_never_faster_than_nothing(tmp_path: Path) -> None:
    steep = DYNAMO | {"decode_itl": [[1, 2], [900, 901]]}
    model = load_profile(_write(tmp_path, steep))
    assert model.step_ms(StepShape.of_decodes(2, 200)) == 0.0
    # Nor is a run, part of whose steps would take less than nothing.
    for batch, tokens, steps in ((2, 200, 900), (20, 900, 30), (1, 1, 1200)):
        run = [model.step_ms(StepShape.of_decodes(batch, tokens + j * batch)) for j in range(steps)]
        assert min(run) == 0.0 < max(run)
        assert model.decode_run_ms(batch, tokens, steps) == pytest.approx(sum(run), rel=1e-9)


def test_dynamo_runs_that_dip_below_nothing_in_their_middle_are_summed_step_by_step(
    tmp_path: Path,
) -> None:
    # Beyond the points the time of a run is a parabola that is open to the top.
    bent = DYNAMO | {"decode_itl": [[90, 90], [20, 40]]}
    model = load_profile(_write(tmp_path, bent))
    run = [model.step_ms(StepShape.of_decodes(40, 40 * (54 + j))) for j in range(1200)]
    assert run[0] > 0.0 < run[-1]
    assert run.count(0.0) > 10
    assert model.decode_run_ms(40, 40 * 54, 1200) == pytest.approx(sum(run), rel=1e-9)


@pytest.mark.parametrize(
    ("layout", "is_monotone"),
    [(OWN, True), (OWN | {"decode_ms": [[5, 6], [8, 7]]}, False), (DYNAMO, False)],
    ids=["rising", "falling", "dynamo"],
)
def test_a_profile_says_what_it_is(
    tmp_path: Path, layout: dict[str, Any], is_monotone: bool
) -> None:
    model = load_profile(_write(tmp_path, layout, "mine.json"))
    assert model.describe() == {
        "source": "measured",
        "description": "profile mine.json: 4 decode points, interpolated",
        "notes": [],
    }
    assert model.decode_is_monotone is is_monotone


def test_range_needs_every_axis(tmp_path: Path) -> None:
    rows = step_log(
        (5, 0, 0, 0, 2, 2 * 498), (1, 1, 50, 0, 0, 0), (1, 1, 500, 0, 4, 400), (3, 0, 0, 0, 9, 900)
    )
    assert load_profile(_write(tmp_path, OWN)).steps_in_range(rows).tolist() == [3, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({key: None}, f"{key}: missing .*expected {', '.join(OWN)}") for key in OWN),
        ({"decode_context": [-1, 5]}, "decode_context: expected rising numbers from 0 on"),
        ({"decode_batch": [[1, 2]]}, "decode_batch: expected a list of two"),
        ({"decode_batch": [3, 2]}, "decode_batch: expected rising"),
        ({"prefill_ms": [1, 0]}, "prefill_ms: expected times above 0"),
        ({"prefill_ms": [1, float("inf")]}, "prefill_ms: contains NaN or infinity"),
        ({"prefill_ms": [1, 2, 3]}, r"prefill_ms: shape \(3,\), expected \(2,\)"),
        ({"decode_ms": [[1, 2], [3, 4], [5, 6]]}, r"decode_ms: shape \(3, 2\), expected \(2, 2\)"),
        ({"decode_ms": [[1, 2]]}, r"decode_ms: shape \(1, 2\), expected \(2, 2\)"),
        ({"decode_ms": [[1, 2], [3]]}, "decode_ms: rows differ"),
        ({"decode_ms": [[1, 2], [3, -4]]}, "decode_ms: expected times above 0"),
        ({"prefill_tokens": [5, 5]}, "prefill_tokens: expected rising"),
        ({"prefill_tokens": [5]}, "prefill_tokens: expected a list of two"),
        ({"prefill_ms": ["a", "b"]}, "prefill_ms: expected numbers"),
        ({"prefill_ms": [1, float("nan")]}, "prefill_ms: contains NaN"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = {key: value for key, value in (OWN | change).items() if value is not None}
    with pytest.raises(TraceError, match=f"p.json:{message}"):
        load_profile(_write(tmp_path, data))


@pytest.mark.parametrize("key", [key for key in DYNAMO if key != "prefill_isl"])
def test_arrays_that_the_other_layout_lacks_are_named(tmp_path: Path, key: str) -> None:
    data = {name: value for name, value in DYNAMO.items() if name != key}
    with pytest.raises(TraceError, match=f"{key}: missing .*expected {', '.join(DYNAMO)}"):
        load_profile(_write(tmp_path, data))


def test_an_axis_may_begin_at_nothing(tmp_path: Path) -> None:
    model = load_profile(_write(tmp_path, OWN | {"decode_context": [0, 400]}))
    assert model.step_ms(StepShape.of_decodes(1, 0)) == pytest.approx(5.0, rel=1e-12)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gone\.json: no such profile"):
        load_profile(tmp_path / "gone.json")
    for name in ("bad.json", "bad.npz"):
        (tmp_path / name).write_bytes(b"{nonsense")
        with pytest.raises(TraceError, match=f"{name}: not a readable"):
            load_profile(tmp_path / name)
