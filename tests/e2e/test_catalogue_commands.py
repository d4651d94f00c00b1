"""`dynosim support` and `dynosim rank` as their users call them."""

import json
from pathlib import Path

import pytest

from dynosim.cli import main
from dynosim.silicon.catalogue import known_models
from dynosim.silicon.hardware import known_hardware
from dynosim.silicon.support import support

Output = pytest.CaptureFixture[str]


# ---- support -------------------------------------------------------------------------------------


def test_support_counts_by_model(capsys: Output) -> None:
    assert main(["support"]) == 0
    title, *lines, last = capsys.readouterr().out.splitlines()
    assert title.split() == ["MODEL", "MEASURED", "DERIVED", "ESTIMATED", "NONE"]
    counts = {name: [*map(int, numbers)] for name, *numbers in map(str.split, lines)}
    assert list(counts) == list(known_models())
    rows = support()
    assert sum(map(sum, counts.values())) == len(rows) and f"{len(rows):,} combinations" in last
    of_one = [row.source for row in rows if row.model == "Qwen/Qwen3-32B"]
    assert counts["Qwen/Qwen3-32B"][0] == of_one.count("measured") > 0
    assert max(map(len, [title, *lines, last])) <= 100


def test_support_with_a_filter_or_as_json_has_all_rows(capsys: Output) -> None:
    assert main(["support", "--model", "Qwen/Qwen3-32B", "--engine", "vllm"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(known_hardware())
    assert main(["support", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["support"]) == len(support())


def test_support_lists_models_and_hardware(capsys: Output) -> None:
    assert main(["support", "models"]) == 0
    assert capsys.readouterr().out.split() == list(known_models())
    assert main(["support", "hardware"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(known_hardware())
    assert main(["support", "hardware", "--json"]) == 0
    sheets = json.loads(capsys.readouterr().out)["hardware"]
    assert {sheet["name"]: sheet["memory_gib"] for sheet in sheets}["h200_sxm"] == 140.4
    assert main(["support", "models", "--engine", "vllm"]) == 2
    assert "drop them" in capsys.readouterr().err


# ---- rank ----------------------------------------------------------------------------------------

SWEEP_FILE = """\
workload: {synthetic: {requests: 60, isl: 300, osl: 20, rate_rps: 200}}
engine: {num_gpu_blocks: 200, max_model_len: 512}
timing: {kind: polynomial}
space: {cluster.workers: [1, 2, 4, 5]}
constraints: {gpu_budget: 4}
load: {search: fixed}
"""
pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


def swept(tmp_path: Path, name: str, *overrides: str) -> Path:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP_FILE)
    more = [word for override in overrides for word in ("--set", override)]
    assert main(["sweep", str(file), "--out", str(tmp_path / name), *more]) == 0
    return tmp_path / name


def ranked(capsys: Output, *arguments: object) -> dict[str, object]:
    capsys.readouterr()
    assert main(["rank", *map(str, arguments), "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_rank_takes_a_sweeps_folder(tmp_path: Path, capsys: Output) -> None:
    folder = swept(tmp_path, "out")
    measured = tmp_path / "measured.jsonl"
    rows = [{"name": str(trial), "output_throughput_tok_s": trial} for trial in range(3)]
    measured.write_text("\n".join(map(json.dumps, rows)))
    by_folder = ranked(capsys, folder, measured)
    assert by_folder["kendall_tau"] == 1.0 and by_folder["best"] == "2"
    assert ranked(capsys, folder / "trials.parquet", measured) == by_folder
    names = [one["name"] for one in by_folder["configurations"]]  # type: ignore[index,attr-defined]
    assert names == ["2", "1", "0"]  # the fourth exceeds the budget


def test_rank_knows_winners_by_their_folders(tmp_path: Path, capsys: Output) -> None:
    folder = swept(tmp_path, "out", "workload.synthetic.rate_rps=5")
    summary = json.loads((folder / "summary.json").read_text())
    best = summary["top"][0]["trial_id"]
    measured = tmp_path / "measured.jsonl"
    others = [trial for trial in range(3) if trial != best]
    for name in ("top1", "agg/top1"):
        rows = [{"name": name, "x": 9}, *({"name": str(trial), "x": 1} for trial in others)]
        measured.write_text(
            "\n".join(json.dumps({"name": r["name"], "duration_ms": r["x"]}) for r in rows)
        )
        found = ranked(capsys, folder, measured, "--metric", "duration_ms")
        assert found["best"] == str(best)
    with measured.open("a") as file:
        file.write(json.dumps({"name": str(best), "duration_ms": 1}))
    with measured.open("r+") as file:
        text = file.read().replace("}{", "}\n{")
        file.seek(0)
        file.write(text)
    assert main(["rank", str(folder), str(measured), "--metric", "duration_ms"]) == 2
    assert f"trial {best} are the same" in capsys.readouterr().err


def test_rank_compares_two_sweeps_of_one_space_only(tmp_path: Path, capsys: Output) -> None:
    first = swept(tmp_path, "one")
    second = swept(tmp_path, "two", "workload.synthetic.osl=30")
    found = ranked(capsys, first, second)
    assert len(found["configurations"]) == 3  # type: ignore[arg-type]
    other = swept(tmp_path, "three", "space.cluster.workers=[2,1,4]")
    assert main(["rank", str(first), str(other)]) == 2
    message = capsys.readouterr().err
    assert "is another point in" in message and "cluster.workers differs" in message


def test_rank_takes_folders_of_runs(tmp_path: Path, capsys: Output) -> None:
    for workers in (1, 2, 4):
        folder = tmp_path / "runs" / f"w{workers}"
        file = tmp_path / "run.yaml"
        lines = SWEEP_FILE.splitlines()[:3]
        file.write_text("\n".join([*lines, f"cluster: {{workers: {workers}}}"]))
        assert main(["run", str(file), "--out", str(folder)]) == 0
    found = ranked(capsys, tmp_path / "runs", tmp_path / "runs")
    assert found["best"] == "w4" and found["kendall_tau"] == 1.0
    assert main(["rank", str(tmp_path / "runs" / "w1"), str(tmp_path / "runs")]) == 2
    assert "1 configurations have both" in capsys.readouterr().err


def test_rank_says_what_is_missing(tmp_path: Path, capsys: Output) -> None:
    folder = swept(tmp_path, "out")
    assert main(["rank", str(folder), str(folder), "--metric", "no_such_key"]) == 2
    assert "no such column in the table of trials" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["rank", str(tmp_path / "empty"), str(folder)]) == 2
    assert "a folder must be a sweep's, a run's" in capsys.readouterr().err
    (folder / "summary.json").write_text("{}")
    assert main(["rank", str(folder), str(folder)]) == 2
    assert "summary.json: no summary of a sweep" in capsys.readouterr().err
