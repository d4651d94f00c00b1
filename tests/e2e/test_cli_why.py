"""`dynosim why` and `dynosim run --perfetto`, as their users call them."""

import gzip
import html
import json
from pathlib import Path

import polars as pl
import pytest

from dynosim.cli import main

RUN_FILE = """\
name: queue
workload: {trace: trace.jsonl, format: mooncake}
engine: {num_gpu_blocks: 4000, max_model_len: 50000, max_num_batched_tokens: 4096}
timing: {kind: linear, base_ms: 10, per_prefill_token_ms: 0.1}
cluster: {workers: 2}
router: {mode: kv}
"""
# All share the first prompt, so the third follows the second and waits behind it.
PREFIX = range(16)
ROWS = [
    (0, 8192, 1, PREFIX),
    (2000, 10240, 20, [*PREFIX, 90, 91, 92, 93]),
    (2010, 9216, 5, [*PREFIX, 94, 95]),
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"timestamp": at, "input_length": length, "output_length": out,
                    "hash_ids": list(ids)})
        for at, length, out, ids in ROWS
    ]  # fmt: skip
    (tmp_path / "trace.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(out)]) == 0
    return out


EXACT = pytest.approx


def why(*arguments: object) -> int:
    return main(["why", *map(str, arguments)])


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert why(*arguments) == 0
    return capsys.readouterr().out


def test_a_sentence_first_then_the_life_in_80_columns(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = told(capsys, run_folder, 2).splitlines()
    assert max(map(len, lines)) <= 80
    first = " ".join(line.strip() for line in lines[: lines.index("")])
    assert first.startswith("request 2: ") and "to first token" in first
    assert "behind request 1's 2,048-token prefill" in first
    assert "was idle, the router sent it there for 8,192 cached tokens" in first
    body = "\n".join(lines)
    for word in ("arrived", "routed to worker", "to prefill", "waited", "were cached",
                 "first token", "decode", "completed, 5 tokens"):  # fmt: skip
        assert word in body


def test_json_holds_the_same_with_every_number(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(told(capsys, run_folder, 2, "--json"))
    assert document["schema"] == "dynosim.why/1"
    (request,) = document["requests"]
    table = pl.read_parquet(run_folder / "requests.parquet").row(2, named=True)
    assert request["ttft_ms"] == pytest.approx(table["ttft_ms"])
    parts = ("outside_ms", "router_ms", "queue_ms", "prefill_ms")
    assert sum(request[part] for part in parts) == pytest.approx(table["ttft_ms"])
    assert request["ahead"] == [{"request": "1", "num_tokens": 2048, "during_ms": EXACT(204.8)}]
    routed = next(one for one in request["timeline"] if one["kind"] == "routed")
    assert {one["worker_id"] for one in routed["candidates"]} == {0, 1}
    waited = next(one for one in request["timeline"] if one["kind"] == "waited")
    assert waited["ahead"] == request["ahead"]


def test_the_slowest_are_those_of_the_table(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(told(capsys, run_folder, "--slowest", 2, "--json"))
    table = pl.read_parquet(run_folder / "requests.parquet").sort("ttft_ms", descending=True)
    assert [one["request_id"] for one in document["requests"]] == table["request_id"].to_list()[:2]
    lines = told(capsys, run_folder, "--slowest", 2).splitlines()
    assert sum(line.startswith("request ") for line in lines) == 2


def test_a_trace_can_be_had_with_the_run_or_after_it(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = tmp_path / "late.json.gz"
    assert why(run_folder, "--perfetto", late) == 0
    run = ["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "new"), "--perfetto"]
    assert main(run) == 0
    assert late.read_bytes() == (tmp_path / "new" / "trace.json.gz").read_bytes()
    events = json.loads(gzip.decompress(late.read_bytes()))["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"front end queue", "worker 0", "worker 1"}
    # Without the option a later run leaves no trace of the one before.
    assert main([*run[:-1], "--overwrite"]) == 0
    assert not (tmp_path / "new" / "trace.json.gz").exists()


def test_a_run_with_the_trail_writes_the_same_results(run_folder: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert main(["run", str(tmp_path / "run.yaml"), "--out", str(new), "--perfetto"]) == 0
    tables = [pl.read_parquet(folder / "requests.parquet") for folder in (run_folder, new)]
    assert tables[0].equals(tables[1])


def test_the_page_names_the_slowest_and_why(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text()
    assert "Slowest requests" in page and "behind request 1's" in html.unescape(page)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["OUT", "20"], "no request '20' among 3; nearest: 2, 0"),
        (["OUT"], "nothing asked"),
        (["OUT", "1", "--slowest", "2"], "not both"),
        (["OUT", "--perfetto", "OUT"], "is a folder"),
        (["nowhere", "1"], "not a folder"),
        (["PARENT", "1"], "not the folder of a run"),
    ],
)
def test_bad_questions_are_one_message(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    places = {"OUT": str(run_folder), "PARENT": str(run_folder.parent)}
    assert why(*[places.get(word, word) for word in arguments]) == 2
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("error:")]) == 1


def test_other_folders_are_named_for_what_they_are(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "requests.parquet").unlink()
    assert why(run_folder, 1) == 2
    assert "holds a configuration and no requests.parquet" in capsys.readouterr().err
    (run_folder / "trials.parquet").write_bytes(b"")
    assert why(run_folder, 1) == 2
    assert "a sweep's folder" in capsys.readouterr().err


def test_a_run_that_comes_out_otherwise_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(trace.read_text().replace("8192", "8190", 1))
    assert why(run_folder, 1) == 2
    errors = capsys.readouterr().err
    assert "comes out otherwise (input_tokens of request 0: 8190, 8192 before)" in errors
    trace.write_text(trace.read_text().splitlines()[0] + "\n")
    assert why(run_folder, 1) == 2
    assert "(1 requests, 3 before)" in capsys.readouterr().err


def test_another_timing_is_noticed_too(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_folder / "config.yaml"
    config.write_text(config.read_text().replace("base_ms: 10.0", "base_ms: 10.01"))
    assert why(run_folder, 1) == 2
    assert "first_token_ms of request 0" in capsys.readouterr().err


def test_columns_of_another_kind_are_noticed(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_folder / "requests.parquet"
    pl.read_parquet(path).cast({"input_tokens": pl.String}).write_parquet(path)
    assert why(run_folder, 1) == 2
    assert "input_tokens is Int64, String before" in capsys.readouterr().err


def test_perfetto_needs_a_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(run_folder.parent / "run.yaml"), "--perfetto"]) == 2
    assert "--perfetto: needs --out" in capsys.readouterr().err
