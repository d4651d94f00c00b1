"""Rows of a trace that say which worker they want."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.cli import main
from dynosim.errors import TraceError
from dynosim.records import Trace, Wishes
from dynosim.workers.wishes import WishError, read_overrides
from dynosim.workload.inspect import inspect_trace
from dynosim.workload.readers import read_trace, read_trace_file
from dynosim.workload.scaling import tiled
from dynosim.workload.writers import write_trace


def rows(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows in both dialects' common names, with these fields besides."""
    return [
        {"timestamp": 10 * i, "input_length": 5, "output_length": 2, "hash_ids": [i]} | row
        for i, row in enumerate(more)
    ]


def written(folder: Path, *more: dict[str, Any]) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(*more)))
    return path


@pytest.mark.parametrize("form", ["mooncake", "jsonl"])
def test_a_row_may_say_which_worker_it_wants(tmp_path: Path, form: str) -> None:
    trace = read_trace(
        written(
            tmp_path,
            {},
            {"worker_id": 3},
            {"required_taints": ["gpu", "a", "gpu"], "preferred_taints": {"fast": 1, "a": -0.5}},
            {"router_config_override": {"router_temperature": 0.5, "assume_kv_reuse": False}},
            {"worker_id": None, "required_taints": [], "router_config_override": {}},
        ),
        form,
    )
    assert trace.wishes == (
        None,
        Wishes(worker_id=3),
        Wishes(required_taints=("a", "gpu"), preferred_taints=(("a", -0.5), ("fast", 1.0))),
        Wishes(overrides=(("assume_kv_reuse", False), ("temperature", 0.5))),
        None,
    )


def test_nobody_pays_for_wishes_that_nobody_has(tmp_path: Path) -> None:
    assert read_trace(written(tmp_path, {}, {})).wishes is None
    assert (
        read_trace(written(tmp_path, {"worker_id": None}, {"required_taints": []})).wishes is None
    )


def test_a_name_that_is_escaped_is_the_same_name(tmp_path: Path) -> None:
    path = written(tmp_path, {"worker_id": 1})
    path.write_text(path.read_text().replace("worker_id", r"worker\u005fid"))
    assert read_trace(path).wishes == (Wishes(worker_id=1),)


def test_wishes_of_later_chunks_and_sorted_rows_stay_with_their_rows(tmp_path: Path) -> None:
    path = written(tmp_path, {}, {}, {"timestamp": 5, "worker_id": 2}, {"timestamp": 4})
    for chunk_bytes in (60, 1 << 20):
        trace = read_trace_file(path, sort=True, chunk_bytes=chunk_bytes).trace
        assert trace.arrival_ms.tolist() == [0, 4, 5, 10]
        assert trace.wishes == (None, None, Wishes(worker_id=2), None)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"worker_id": -1}, "2:worker_id: expected the number of a worker, got -1"),
        ({"worker_id": "w"}, '2:worker_id: expected the number of a worker, got "w"'),
        ({"required_taints": [""]}, "2:required_taints: a taint must not be empty"),
        ({"required_taints": "gpu"}, '2:required_taints: expected a list of taints, got "gpu"'),
        ({"preferred_taints": {"a": "b"}}, "2:preferred_taints"),
        (
            {"router_config_override": {"temprature": 1}},
            "2:router_config_override.temprature: unknown key, did you mean temperature?",
        ),
        (
            {"router_config_override": {"temperature": -1}},
            "2:router_config_override.temperature: expected a finite number >= 0, got -1",
        ),
        (
            {"router_config_override": {"temperature": True}},
            "2:router_config_override.temperature: expected a finite number >= 0, got True",
        ),
        (
            {"router_config_override": {"assume_kv_reuse": 1}},
            "2:router_config_override.assume_kv_reuse: expected true or false, got 1",
        ),
        (
            {"router_config_override": {"temperature": 1, "router_temperature": 1}},
            "2:router_config_override.router_temperature: given beside temperature",
        ),
        ({"router_config_override": [1]}, "2:router_config_override: expected an object of names"),
    ],
)
def test_a_wish_that_cannot_be_is_told_with_its_line(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, {}, row, {})
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:{said}")
    good = read_trace(path, skip_bad_lines=True)
    assert len(good) == 2 and good.skipped_lines == 1 and good.wishes is None


def test_the_old_weight_of_overlap_is_two_of_the_new_ones() -> None:
    assert read_overrides({"overlap_score_weight": 2}) == (("prefill_load_scale", 2.0),)
    assert read_overrides({"overlap_score_weight": 0}) == (
        ("overlap_score_credit", 0.0),
        ("prefill_load_scale", 0.0),
    )
    with pytest.raises(WishError, match="given beside overlap_score_weight"):
        read_overrides({"overlap_score_weight": 1, "prefill_load_scale": 1})
    with pytest.raises(WishError, match=r"key router\.shared_cache_multiplier"):
        read_overrides({"shared_cache_multiplier": 0.5})
    assert read_overrides({"shared_cache_multiplier": None, "temperature": None}) == ()


taints = st.sampled_from(["gpu", "zone=a", "slow"])
numbers = st.floats(-1e6, 1e6, allow_nan=False)
wishes = st.none() | st.builds(
    Wishes,
    worker_id=st.none() | st.integers(0, 1000),
    required_taints=st.sets(taints).map(lambda names: tuple(sorted(names))),
    preferred_taints=st.dictionaries(taints, numbers).map(lambda d: tuple(sorted(d.items()))),
    overrides=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 10),
            "prefill_load_scale": st.floats(0, 10),
            "assume_kv_reuse": st.booleans(),
        },
    ).map(lambda d: tuple(sorted(d.items()))),
)


@given(st.lists(wishes, min_size=1, max_size=6), st.sampled_from(["mooncake", "jsonl"]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, stated: list[Wishes | None], form: str
) -> None:
    path = tmp_path_factory.mktemp("wishes") / "t.jsonl.gz"
    size = len(stated)
    stated = [None if wish == Wishes() else wish for wish in stated]
    trace = Trace(
        np.arange(size, dtype=float), np.full(size, 3), np.full(size, 2),
        np.arange(size), np.arange(size + 1), 4, wishes=tuple(stated),
    )  # fmt: skip
    assert write_trace(trace, path, form) == []
    found = read_trace(path, form, 4).wishes
    assert found == (tuple(stated) if any(stated) else None)


def test_a_format_without_a_place_for_wishes_says_so(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, {"worker_id": 0}))
    assert "wishes" in write_trace(trace, tmp_path / "t.csv")


def test_tiles_and_parts_keep_wishes(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, {"worker_id": 4}, {}))
    assert tiled(trace, 2).wishes == (Wishes(worker_id=4), None) * 2
    assert trace.at(trace.arrival_ms * 2).wishes == trace.wishes
    assert replace(trace, source="x").take(np.array([1])).wishes == (None,)


def test_inspect_counts_wishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(
        tmp_path,
        {"worker_id": 0, "required_taints": ["gpu"]},
        {"preferred_taints": {"fast": 2.0}},
        {"router_config_override": {"temperature": 1}},
        {},
    )
    assert inspect_trace(read_trace(path))["wishes"] == {
        "requests": 3,
        "worker_id": 1,
        "required_taints": {"gpu": 1},
        "preferred_taints": {"fast": 1},
        "router_config_override": {"temperature": 1},
    }
    assert main(["trace", "inspect", str(path)]) == 0
    line = "3 requests: 1 name it, 1 require gpu, 1 prefer or shun fast, 1 override temperature"
    assert line in capsys.readouterr().out
