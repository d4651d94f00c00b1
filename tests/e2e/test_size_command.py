"""`dynosim size` as its users call it."""

import json
from pathlib import Path

import polars as pl
import pytest

from dynosim.cli import main
from dynosim.config.yaml_source import read_document

ASKED = ("Qwen/Qwen3-32B", "--hardware", "h200_sxm", "--gpus", "8", "--rps", "60")
LENGTHS = ("--isl", "300", "--osl", "20")
SLA = ("--ttft", "150", "--itl", "30")
KNOWN = (
    "--set", "timing={kind: fixed, prefill_ms: 30, decode_ms: 10}",
    "--set", "engine={num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}",
    "--set", "load.min_requests=0",
    "--set", "workload.synthetic.requests=300",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


def size(*arguments: object) -> int:
    return main(["size", *map(str, arguments)])


def test_a_question_is_answered_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert size(*ASKED, *LENGTHS, *SLA, *KNOWN, "--tp", "1,2", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "size-qwen3-32b: 2 layouts; 60 req/s takes 4 GPUs"
    assert lines[1] == "SLA: 95 % of requests with TTFT <= 150 ms, time per token <= 30 ms"
    assert lines[3].startswith("1* 4xTP1")
    assert (
        max(len(line) for line in lines if not line.startswith(("deploy", "prove", "engine"))) <= 80
    )
    assert (out / "agg" / "top1" / "config.yaml").exists()


def test_the_sweep_file_that_it_made_gives_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert size(*ASKED, *LENGTHS, *SLA, *KNOWN, "--tp", "1", "--json", "--out", out) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["need"]["fewest_gpus"] == 4
    assert main(["sweep", str(out / "sweep.yaml"), "--out", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    for name in ("trials.parquet", "probes.parquet", "sizing.parquet"):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_what_was_finished_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (*ASKED, *LENGTHS, *SLA, *KNOWN, "--tp", "1", "--out", out)
    assert size(*arguments) == 0
    ledger = (out / "ledger.jsonl").read_bytes()
    assert size(*arguments) == 2 and "holds a sweep already" in capsys.readouterr().err
    assert size(*arguments, "--resume") == 0
    assert (out / "ledger.jsonl").read_bytes() == ledger


def test_a_trace_can_say_what_requests_are_like(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "out"
    rows = [
        {"timestamp": 50 * n, "input_length": 300, "output_length": 20, "hash_ids": [n]}
        for n in range(300)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = (*KNOWN[:-2], "--set", "workload.format=mooncake")
    assert size(*ASKED, "--trace", trace, *SLA, *known, "--tp", "1", "--out", out) == 0
    assert "60 req/s takes" in capsys.readouterr().out
    rps = pl.read_parquet(out / "sizing.parquet")["offered_rps"].unique().to_list()
    assert rps == pytest.approx([60.0])


def test_requests_in_flight_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*ASKED[:-2], "--concurrency", "16", *LENGTHS, *SLA, *KNOWN)
    assert size(*asked, "--tp", "1", "--out", tmp_path / "out") == 0
    assert "16 in flight takes 2 GPUs" in capsys.readouterr().out


def test_nothing_found_fails_if_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*ASKED[:-1], "900", *LENGTHS, *SLA, *KNOWN, "--tp", "1")
    assert size(*asked, "--out", tmp_path / "a") == 0
    assert "none holds 900 req/s on 8 GPUs, the most is " in capsys.readouterr().out
    assert size(*asked, "--out", tmp_path / "b", "--fail-if-none") == 3


def test_a_made_up_workload_is_long_enough_for_what_the_sla_allows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = (*ASKED[:-1], "100", *LENGTHS, "--ttft", "500", "--itl", "30")
    assert size(*asked, *KNOWN[:-2], "--tp", "1", "--gpus", "16", "--out", out) == 0
    data = read_document(out / "sweep.yaml").data
    assert data["workload"]["synthetic"]["requests"] == 20 * 100 * (500 + 20 * 30) // 1000
    assert "warnings" not in json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*ASKED[:-2], *LENGTHS, *SLA), "give one of --rps, --sessions-per-s and --concurrency"),
        ((*ASKED, "--concurrency", "9", *LENGTHS), "give one of --rps"),
        ((*ASKED, *SLA), "give either --trace, or both --isl and --osl"),
        ((*ASKED, "--isl", "9", *SLA), "give either --trace, or both --isl and --osl"),
        ((*ASKED, "--trace", "t.jsonl", "--osl", "9"), "give either --trace"),
        ((*ASKED, *LENGTHS, "--attainment", "0.9"), "--attainment: of no bound"),
        ((*ASKED, *LENGTHS, *SLA, "--tp", "1,x"), "--tp 1,x: expected numbers"),
        ((*ASKED, *LENGTHS, *SLA, "--tp", "16,32"), "none fits into 8 GPUs"),
        ((*ASKED, *LENGTHS, *SLA, "--router", "kv,"), "--router 'kv,': expected values"),
        ((*ASKED, *LENGTHS, *SLA, "--router", "kw"), "dynosim size: space.router.mode[0]"),
        ((*ASKED[:-2], "--concurrency", "9", *LENGTHS), "without an SLA any concurrency"),
        ((*ASKED, *LENGTHS, *SLA, "--set", "engine.tp=2"), "did you mean"),
        ((*ASKED, "--trace", "gone.jsonl", *SLA), "gone.jsonl: no such file"),
    ],
)
def test_bad_arguments_are_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    assert size(*arguments, "--out", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert words in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "ledger.jsonl").exists()
