"""Sweep files: the space is checked against the schema before anything runs."""

from pathlib import Path

import pytest

from dynosim.config import load_sweep
from dynosim.errors import ConfigError
from dynosim.sweep.search import points_of

BASE = """\
name: small
workload: {trace: t.jsonl}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(BASE + "space:\n  cluster.workers: [1, 2]\n  engine.block_size: [16, 32]\n")
    return path


def write(path: Path, *lines: str) -> Path:
    path.write_text(BASE + "\n".join(lines) + "\n")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_sweep(path, overrides)
    return str(caught.value)


def test_grid_is_the_product_with_the_last_key_fastest(sweep_file: Path) -> None:
    points = points_of(load_sweep(sweep_file))
    pairs = [(p["cluster.workers"], p["engine.block_size"]) for p in points]
    assert pairs == [(1, 16), (1, 32), (2, 16), (2, 32)]


@pytest.mark.parametrize(
    ("space", "values"),
    [
        ("cluster.workers: {choices: [3, 1]}", [3, 1]),
        ("cluster.workers: {min: 2, max: 9, step: 3}", [2, 5, 8]),
        ("cluster.workers: {min: 1, max: 20, log: true}", [1, 2, 4, 8, 16]),
        ("engine.watermark: {min: 0.1, max: 0.3, step: 0.1}", [0.1, 0.2, 0.3]),
    ],
)
def test_ranges_become_values(sweep_file: Path, space: str, values: list[float]) -> None:
    write(sweep_file, "space:", f"  {space}")
    assert [next(iter(point.values())) for point in points_of(load_sweep(sweep_file))] == values


def test_whole_sections_can_vary(sweep_file: Path) -> None:
    write(sweep_file, "space:", "  timing:", "    - {kind: polynomial}",
          "    - {kind: fixed, prefill_ms: 3, decode_ms: 1}")  # fmt: skip
    sweep = load_sweep(sweep_file)
    second = sweep.point_data(points_of(sweep)[1])
    assert second["timing"] == {"kind": "fixed", "prefill_ms": 3, "decode_ms": 1}


def test_random_points_are_distinct_repeatable_and_extend(sweep_file: Path) -> None:
    write(sweep_file, "search: {method: random, trials: 12, seed: 5}", "space:",
          "  cluster.workers: {min: 1, max: 64}", "  engine.watermark: {min: 0.0, max: 0.5}",
          "  engine.max_num_seqs: {min: 1, max: 4096, log: true}")  # fmt: skip
    points = points_of(load_sweep(sweep_file))
    assert len({str(point) for point in points}) == 12
    assert points == points_of(load_sweep(sweep_file))
    assert points == points_of(load_sweep(sweep_file, ["search.trials=30"]))[:12]
    assert points != points_of(load_sweep(sweep_file, ["search.seed=6"]))
    assert all(1 <= point["engine.max_num_seqs"] <= 4096 for point in points)


def test_random_search_ends_when_a_small_space_is_exhausted(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["search={method: random, trials: 50}"])
    assert len(points_of(sweep)) == 4


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        (["space: {}"], ":5: space", "nothing varies"),
        (["space:", "  engine.tensor_paralel: [1]"], ":6: space.engine.tensor_paralel",
         "did you mean engine.tensor_parallel?"),
        (["space:", "  cluster.workers: [1, two]"], ":6: space.cluster.workers[1]",
         "expected an integer"),
        (["space:", "  cluster.workers:", "    - 1", "    - 0"], ":8: space.cluster.workers[1]",
         "none at the start, and requests are refused"),
        (["space:", "  cluster.workers: [1, 1]"], ":6: space.cluster.workers[1]", "given twice"),
        (["space:", "  cluster.workers: []"], ":6: space.cluster.workers", "no values"),
        (["space:", "  cluster.workers: 4"], ":6: space.cluster.workers", "list or a range"),
        (["space:", "  cluster.workers: {min: 4, max: 2}"], ":6: space.cluster.workers.max",
         "less than min"),
        (["space:", "  cluster.workers: {min: 1, max: 2}"], ":6: space.cluster.workers",
         "add `step: ...`"),
        (["space:", "  timing: [{kind: polynomial}]", "  timing.kind: [polynomial]"],
         ":7: space.timing.kind", "lies inside timing"),
        (["space: {cluster.workers: [1]}", "objectives: {mean_ttft: min}"],
         ":6: objectives.mean_ttft", "did you mean mean_ttft_ms?"),
        (["space: {cluster.workers: [1]}", "objectives: {mean_ttft_ms: down}"],
         ":6: objectives.mean_ttft_ms", "expected max or min"),
        (["space: {cluster.workers: [1]}", "search: {method: halving}"], ":6: search.method",
         "not in this version yet"),
        (["space: {cluster.workers: [1]}", "search: {method: random}"], ":6: search.trials",
         "needs it"),
        (["space: {cluster.workers: [1]}", "search: {method: nsga2}"], ":6: search.trials",
         "nsga2 search needs it"),
        (["space: {cluster.workers: [1]}", "search: {method: random, trials: 2, batch: 2}"],
         ":6: search.batch", "no effect with `method: random`"),
        (["space: {cluster.workers: [1]}", "search: {method: tpe, trials: 2, seed: 5000000000}"],
         ":6: search.seed", "up to 4294967295"),
        (["space: {cluster.workers: [1]}", "constraint: {}"], ":6: constraint",
         "did you mean constraints?"),
        (["space: {cluster.workers: [1]}", "constraints: {gpu_budget: 0}"],
         ":6: constraints.gpu_budget", "must be >= 1"),
        (["space: {cluster.workers: [1]}", "seed: x"], ":6: seed", "expected an integer"),
    ],
)  # fmt: skip
def test_mistake_names_file_line_key_and_remedy(
    sweep_file: Path, lines: list[str], place: str, words: str
) -> None:
    text = message(write(sweep_file, *lines))
    assert f"{sweep_file}{place}" in text
    assert words in text


def test_a_file_without_space_is_for_run(sweep_file: Path) -> None:
    assert "dynosim run" in message(write(sweep_file))


def test_a_broken_combination_is_left_to_its_trial(sweep_file: Path) -> None:
    write(sweep_file, "space: {engine.max_num_batched_tokens: [64, 8192]}")
    assert len(points_of(load_sweep(sweep_file))) == 2


def test_a_key_may_be_given_by_the_space_alone(sweep_file: Path) -> None:
    sweep_file.write_text(
        BASE.replace("workload: {trace: t.jsonl}\n", "") + "space: {workload.trace: [a, b]}\n"
    )
    assert len(points_of(load_sweep(sweep_file))) == 2


def test_set_of_a_varying_key_is_refused(sweep_file: Path) -> None:
    assert "--set space.cluster.workers=" in message(sweep_file, "cluster.workers=3")


def test_set_changes_the_space(sweep_file: Path) -> None:
    sweep = load_sweep(sweep_file, ["space.cluster.workers=[3]", "workload.trace=u.jsonl"])
    points = points_of(sweep)
    assert [point["cluster.workers"] for point in points] == [3, 3]
    assert sweep.point_data(points[0])["workload"] == {"trace": "u.jsonl"}


def test_a_grid_too_large_is_refused(sweep_file: Path) -> None:
    sweep = load_sweep(
        sweep_file,
        [
            "space.engine.max_num_seqs={min: 1, max: 8000, step: 1}",
            "space.engine.block_size={min: 1, max: 100, step: 1}",
        ],
    )
    with pytest.raises(ConfigError, match="random"):
        points_of(sweep)
