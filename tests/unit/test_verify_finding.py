"""Recordings are known by what they hold; what is malformed says where and what to do."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from shared_data import shared_path

from dynosim.verify.finding import find_recordings, kind_of
from dynosim.verify.plan import Asked, plan_of
from dynosim.verify.verdict import CURVE, EXPERIMENT, LOG

ROW = {"arrival_ms": 0.0, "input_tokens": 3, "output_tokens": 2, "ttft_ms": 1.0, "decode_ms": 2.0}
CURVE_DATA: dict[str, Any] = {
    "setup": {"model": "m"},
    "measured": {"output_tok_s_by_second": [[0, 0], [1, 5]]},
    "requests": [{"arrival_ms": 0, "input_tokens": 1, "output_tokens": 5}],
}


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (lines({"setup": {}}, ROW), LOG),
        (lines(ROW), LOG),
        ("\n\n" + lines(ROW), LOG),
        ("arrival_ms,input_tokens,output_tokens,ttft_ms,decode_ms\n0,3,2,1,2\n", LOG),
        (json.dumps([{"measured_ms": {}}]), EXPERIMENT),
        (json.dumps([{"measured_ms": {}}], indent=2), EXPERIMENT),
        (json.dumps(CURVE_DATA), CURVE),
        (json.dumps(CURVE_DATA, indent=1), CURVE),
        (lines({"arrival_ms": 0, "input_tokens": 3}), None),
        (json.dumps({"dynosim_version": "0"}, indent=1), None),
        (json.dumps([1, 2]), None),
        ("# A page\n", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_kind_is_told_by_content(
    tmp_path: Path, text: str, kind: str | None, packed: bool
) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert kind_of(path) == kind


def test_a_folder_is_searched_and_what_is_no_recording_is_passed_over(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "b.log").write_text(lines(ROW))
    (inner / "a.json").write_text(json.dumps(CURVE_DATA))
    (tmp_path / "README.md").write_text("# what this is\n")
    (tmp_path / ".hidden.jsonl").write_text(lines(ROW))
    (tmp_path / "broken.json").write_text('{"setup": {\n"model": }')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    found = find_recordings([tmp_path, tmp_path / "b.log"])
    assert {path.name: kind for path, kind in found.recordings} == {"b.log": LOG, "a.json": CURVE}
    assert sorted(path.name for path in found.passed_over) == ["README.md", "picture.png"]
    ((path, why),) = found.unreadable
    assert path.name == "broken.json" and f"{path}:2: not JSON" in why


def test_what_is_named_and_no_recording_says_what_is_expected(tmp_path: Path) -> None:
    named = tmp_path / "README.md"
    named.write_text("# what this is\n")
    found = find_recordings([named, tmp_path / "gone.jsonl"])
    first, second = (why for _, why in found.unreadable)
    assert "measured_ms" in first and "throughput curve" in first
    assert "no such file" in second


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"measured": 3}, "measured: expected an object"),
        ({"measured": {"output_tok_s_by_second": [[0, 0], [1]]}}, "by_second[1]: expected"),
        ({"measured": {"output_tok_s_by_second": [[1, 0], [1, 2]]}}, "seconds do not rise"),
        ({"measured": {"output_tok_s_by_second": [[0, 0], [1, "x"]]}}, "by_second[1]: expected a"),
        ({"requests": []}, "requests: expected a list"),
        ({"requests": [{"arrival_ms": 0, "input_tokens": 0}]}, "requests[0].input_tokens"),
        ({"requests": [{"arrival_ms": -1}]}, "requests[0].arrival_ms"),
        (
            {"requests": [{**CURVE_DATA["requests"][0], "hash_ids_16": "x"}]},
            "requests[0].hash_ids_16",
        ),
    ],
)
def test_a_malformed_curve_names_its_key(tmp_path: Path, data: dict[str, Any], where: str) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(CURVE_DATA | data))
    plan = plan_of(Asked(paths=[path], levels=["apriori"], replays=0))
    assert plan.pieces == ()
    ((file, why),) = plan.unreadable
    assert file == str(path) and why.startswith(f"{path}:") and where in why


EXPERIMENT_DATA: dict[str, Any] = {
    "id": "7",
    "model": "m",
    "hardware": "H100",
    "tensor_parallel": 1,
    "workload": {
        "system_prompts": 1,
        "users_per_prompt": 1,
        "system_tokens": 10,
        "question_tokens": 20,
        "output_tokens": 5,
        "stages_rps_s": [[1.0, 10]],
    },
    "measured_ms": {"e2e_mean": 3.0},
}
WORKLOAD = EXPERIMENT_DATA["workload"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"model": None}, "model: missing"),
        ({"hardware": 3}, "hardware: missing"),
        ({"pipeline_parallel": 2}, "pipeline_parallel: unknown"),
        ({"measured_ms": {}}, "measured_ms: expected keys"),
        ({"measured_ms": {"e2e_sum": 3.0}}, "measured_ms.e2e_sum: unknown"),
        ({"measured_ms": {"e2e_mean": 0}}, "measured_ms.e2e_mean: expected a number above 0"),
        ({"kv_blocks_of_16": "many"}, "kv_blocks_of_16: expected a whole number"),
        ({"workload": None}, "workload: missing"),
        ({"workload": WORKLOAD | {"ramp": 1}}, "workload.ramp: unknown"),
        ({"workload": WORKLOAD | {"stages_rps_s": [[1.0]]}}, "stages_rps_s[0]: expected"),
        ({"workload": WORKLOAD | {"stages_rps_s": [[0, 5]]}}, "stages_rps_s[0]: expected a"),
        ({"workload": WORKLOAD | {"output_tokens": 0}}, "workload.output_tokens: expected"),
        ({"model_config": []}, "model_config: expected the object"),
    ],
)
def test_a_malformed_experiment_is_named_and_the_others_stay(
    tmp_path: Path, changes: dict[str, Any], where: str
) -> None:
    path = tmp_path / "list.json"
    other = EXPERIMENT_DATA | {"id": "8"}
    path.write_text(json.dumps([EXPERIMENT_DATA | changes, other]))
    plan = plan_of(Asked(paths=[path], levels=["apriori"], replays=0))
    assert [piece.name for piece in plan.pieces] == ["8"]
    ((_, why),) = plan.unreadable
    assert f"{path}:experiment 7:" in why and where in why


def test_two_experiments_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([EXPERIMENT_DATA, EXPERIMENT_DATA]))
    plan = plan_of(Asked(paths=[path], levels=["apriori"], replays=0))
    assert not plan.pieces and all("there twice" in why for _, why in plan.unreadable)


def test_levels_that_a_recording_cannot_have_are_told(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([EXPERIMENT_DATA]))
    (tmp_path / "curve.json").write_text(json.dumps(CURVE_DATA))
    (tmp_path / "log.jsonl").write_text(lines({"setup": {"num_gpu_blocks": 99}}, ROW))
    levels = ["apriori", "capacity", "fitted"]
    plan = plan_of(Asked(paths=[tmp_path], levels=levels, replays=0))
    judged = [(piece.label, piece.level) for piece in plan.pieces]
    assert judged == [
        ("curve", "apriori"),
        ("list: 7", "apriori"),
        *(("log", level) for level in levels),
    ]
    assert {(label, level) for label, level, _ in plan.untold} == {
        ("curve", "capacity"),
        ("curve", "fitted"),
        ("list: 7", "capacity"),
        ("list: 7", "fitted"),
    }


def test_all_of_the_ground_truth_is_recognised() -> None:
    folder = shared_path("ground_truth")
    plan = plan_of(Asked(paths=[folder], levels=["apriori"], replays=0))
    assert plan.unreadable == ()
    kinds = [piece.kind for piece in plan.pieces]
    assert {kind: kinds.count(kind) for kind in kinds} == {EXPERIMENT: 13, LOG: 2, CURVE: 2}
