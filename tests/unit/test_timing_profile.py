"""Profiles: both layouts, exact at their points, strict about their arrays."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timing_support import step_log

from dynosim.errors import TraceError
from dynosim.silicon.profile_file import load_profile

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
    assert model.step_ms(1, 550, 0, 0, 0) == pytest.approx(25)
    assert model.step_ms(1, 1900, 0, 0, 0) == pytest.approx(70)
    assert model.step_ms(0, 0, 0, 8, 8 * 300) == pytest.approx(10)
    assert model.step_ms(0, 0, 0, 8, 8 * 900) == pytest.approx(16)
    assert model.step_ms(1, 100, 0, 1, 100) == pytest.approx(15)


@pytest.mark.parametrize("name", ["p.json", "p.npz"])
def test_dynamo_layout_is_bilinear_in_sum_and_mean(tmp_path: Path, name: str) -> None:
    model = load_profile(_write(tmp_path, DYNAMO, name))
    assert model.step_ms(0, 0, 0, 10, 1000) == pytest.approx(5)
    # 5000 tokens over 16 sequences: integer mean 312.
    u, v = 0.5, (312 - 100) / 400
    expected = (1 - u) * (5 + v) + u * (8 + 4 * v)
    assert model.step_ms(0, 0, 0, 16, 5000) == pytest.approx(expected)
    assert model.step_ms(2, 201, 100, 0, 0) == pytest.approx(10 + 30 / 900 * 100)


def test_range_needs_every_axis(tmp_path: Path) -> None:
    rows = step_log(
        (5, 0, 0, 0, 2, 2 * 498), (1, 1, 50, 0, 0, 0), (1, 1, 500, 0, 4, 400), (3, 0, 0, 0, 9, 900)
    )
    assert load_profile(_write(tmp_path, OWN)).steps_in_range(rows).tolist() == [3, 0, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_ms": None}, "decode_ms: missing"),
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


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"gone\.json: no such profile"):
        load_profile(tmp_path / "gone.json")
    for name in ("bad.json", "bad.npz"):
        (tmp_path / name).write_bytes(b"{nonsense")
        with pytest.raises(TraceError, match=f"{name}: not a readable"):
            load_profile(tmp_path / name)
