"""Files of tables and fits: what is written comes back field by field, what is wrong is refused."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timing_support import silicon_table

from dynosim.errors import TraceError
from dynosim.silicon.fitted_file import load_fitted, read_fit, write_fit
from dynosim.silicon.table_file import load_table, save_table
from dynosim.timing.fitted import PARAMETER_NAMES, Fit, FittedParameters, MeasuredRange
from dynosim.timing.silicon_table import SiliconTable

ARRAYS = [field.name for field in fields(SiliconTable) if field.name != "meta"]


def test_every_array_of_a_table_comes_back(tmp_path: Path) -> None:
    table = silicon_table()
    save_table(table, tmp_path / "table.npz")
    again = load_table(tmp_path / "table.npz")
    assert len(ARRAYS) == 14
    for name in ARRAYS:
        found, wanted = getattr(again, name), getattr(table, name)
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert found.dtype == wanted.dtype
    assert again.meta == table.meta


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_table_with_a_number_that_is_none_is_refused(
    tmp_path: Path, name: str, value: float
) -> None:
    table = silicon_table()
    array = getattr(table, name).copy()
    array.flat[-1] = value
    save_table(replace(table, **{name: array}), tmp_path / "table.npz")
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        load_table(tmp_path / "table.npz")


@pytest.mark.parametrize("name", ["counts", "new_tokens", "prefix_tokens", "batches", "contexts"])
def test_a_table_whose_axis_is_not_its_surfaces_is_refused(tmp_path: Path, name: str) -> None:
    table = silicon_table()
    longer = np.append(getattr(table, name), 9999.0)
    save_table(replace(table, **{name: longer}), tmp_path / "table.npz")
    with pytest.raises(ValueError, match="axes and surfaces disagree"):
        load_table(tmp_path / "table.npz")


@pytest.mark.parametrize("name", [*ARRAYS, "meta"])
def test_a_table_without_one_of_its_parts_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "table.npz"
    save_table(silicon_table(), path)
    with np.load(path) as archive:
        parts: Any = {key: archive[key] for key in archive.files if key != name}
    np.savez(path, **parts)
    with pytest.raises(KeyError, match=name):
        load_table(path)


def parameters(offset: float) -> FittedParameters:
    """Constants that are all different."""
    return FittedParameters(
        **{name: offset + index / 8 for index, name in enumerate(PARAMETER_NAMES)}
    )


FULL = Fit(
    parameters=parameters(1.0),
    token_curve=((1, 9.0), (64, 9.5), (128, 20.25)),
    context_curve=((1, 0.5), (8, 1.0)),
    knee=5.5,
    graph_sizes=(1, 2, 4),
    intervals={name: (float(i), i + 0.5) for i, name in enumerate(PARAMETER_NAMES)},
    draws=(parameters(2.0), parameters(3.0)),
    unidentified=("prompt_step_ms", "egress_ms"),
    measured=MeasuredRange(
        prefill_tokens=2048, prefix_tokens=99.5, num_decodes=128, mean_context=777.25
    ),
    errors={"mean_ttft_ms": -0.02, "drift": 0.01},
    source="a.jsonl: vLLM 0.19",
    method="simulation in the loop",
)


def test_every_field_of_a_fit_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "timing.json"
    write_fit(FULL, path)
    again = read_fit(path)
    for field in fields(Fit):
        assert getattr(again, field.name) == getattr(FULL, field.name), field.name
    assert again == FULL
    assert load_fitted(path).fit == FULL
    assert load_fitted(path).description == "fitted: timing.json, from a.jsonl: vLLM 0.19"


def test_a_fit_without_anything_else_comes_back(tmp_path: Path) -> None:
    fit = Fit(parameters=FittedParameters())
    write_fit(fit, tmp_path / "timing.json")
    assert read_fit(tmp_path / "timing.json") == fit


LEAST: dict[str, Any] = {
    "format": "dynosim-fitted-timing",
    "version": 1,
    "parameters": {"weights_ms": 3},
}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(LEAST | changes))
    return path


def test_what_a_file_leaves_out_is_not_known(tmp_path: Path) -> None:
    least = Fit(parameters=FittedParameters(weights_ms=3))
    assert read_fit(written(tmp_path)) == least
    nothing = dict.fromkeys(
        ("intervals", "draws", "unidentified", "measured", "token_curve", "context_curve",
         "graph_sizes", "errors")
    )  # fmt: skip
    assert read_fit(written(tmp_path, **nothing)) == least
    unknown = {"measured": {"prefill_tokens": None, "num_decodes": 7}}
    assert read_fit(written(tmp_path, **unknown)).measured == MeasuredRange(num_decodes=7)
    empty = {"token_curve": {"tokens": [], "ms": []}, "context_curve": {}}
    assert read_fit(written(tmp_path, **empty)) == least


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knee": 0.999}, "knee: expected 1 or more, got 0.999"),
        ({"knee": "4"}, "knee: expected a number >= 0, got '4'"),
        ({"parameters": {"weights_ms": "3"}}, "parameters.weights_ms: expected a number >= 0"),
        ({"measured": {"num_decode": 1}}, "measured.num_decode: unknown; did you mean num_decodes"),
        ({"measured": {"num_decodes": -1}}, "measured.num_decodes: expected a number >= 0"),
        ({"errors": {"x": True}}, "errors.x: expected a number, got True"),
        ({"intervals": {"knee": [1, 2]}}, "intervals.knee: unknown"),
        ({"intervals": {"weights_ms": [1]}}, "intervals.weights_ms: expected [low, high], got [1]"),
        ({"intervals": {"weights_ms": [-1, 2]}}, "intervals.weights_ms: expected a number >= 0"),
        ({"intervals": []}, "intervals: expected an object"),
        ({"unidentified": ["weight_ms"]}, "unidentified: unknown; did you mean weights_ms"),
        ({"unidentified": {}}, "unidentified: expected a list"),
        ({"graph_sizes": [1, 1]}, "graph_sizes: expected rising whole numbers above 0"),
        ({"graph_sizes": [0, 1]}, "graph_sizes: expected rising whole numbers above 0"),
        ({"graph_sizes": [1.0]}, "graph_sizes: expected rising whole numbers above 0"),
        ({"graph_sizes": [True]}, "graph_sizes: expected rising whole numbers above 0"),
        ({"token_curve": {"tokens": [1], "ms": [1]}}, "token_curve: expected as many tokens as ms"),
        ({"token_curve": {"tokens": [1, 2]}}, "token_curve: expected as many tokens as ms, two"),
        ({"token_curve": {"tokens": [1, 1], "ms": [1, 2]}}, "token_curve.tokens: expected rising"),
        ({"token_curve": {"tokens": 3}}, "token_curve.tokens: expected a list of numbers"),
        ({"token_curve": {"token": []}}, "token_curve.token: unknown; did you mean tokens"),
        (
            {"context_curve": {"decodes": [1, 2], "factor": [1, -1]}},
            "context_curve.factor: expected a number >= 0, got -1",
        ),
        ({"method": None}, "method: expected text, got None"),
        ({"nonsense": 1}, "nonsense: unknown; remove it"),
    ],
)
def test_a_fit_that_is_wrong_is_refused_where(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(TraceError) as caught:
        read_fit(path)
    assert f"{path}:{message}" in str(caught.value)


@pytest.mark.parametrize("knee", [1, 1.0, 64])
def test_a_knee_of_one_or_more_is_taken(tmp_path: Path, knee: float) -> None:
    assert read_fit(written(tmp_path, knee=knee)).knee == knee


def test_an_interval_may_be_a_point(tmp_path: Path) -> None:
    found = read_fit(written(tmp_path, intervals={"weights_ms": [2, 2], "per_pair_ms": [0, 0]}))
    assert found.intervals == {"weights_ms": (2, 2), "per_pair_ms": (0, 0)}


@pytest.mark.parametrize("key", ["format", "version", "parameters"])
def test_what_a_fit_cannot_do_without_is_asked_for(tmp_path: Path, key: str) -> None:
    path = tmp_path / "timing.json"
    path.write_text(json.dumps({name: value for name, value in LEAST.items() if name != key}))
    with pytest.raises(TraceError, match=f"timing.json:{key}: "):
        read_fit(path)


@pytest.mark.parametrize("text", ["[]", "{", "3", "\\xff"])
def test_a_file_that_is_no_fit_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "timing.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"expected one JSON object|not readable JSON"):
        read_fit(path)
    with pytest.raises(TraceError, match=r"no such file \(key timing.file\)"):
        read_fit(tmp_path / "gone.json")
