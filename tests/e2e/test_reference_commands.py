"""`dynosim explain`, `schema` and `init` as their users call them; words that are no command."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml
from jsonschema import Draft202012Validator

from dynosim.cli import main
from dynosim.cli.near_commands import MEANT
from dynosim.config import load_run, load_sweep
from dynosim.config.report_keys import DOCUMENT_KEYS, PREPARED_KEYS, report_keys
from dynosim.config.sweep_columns import (
    CAPACITY_COLUMNS,
    NEED_COLUMNS,
    OPTIONAL_SUMMARY_KEYS,
    PROBE_COLUMNS,
    SIZING_COLUMNS,
    SUMMARY_KEYS,
    TRIAL_COLUMNS,
)

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")
SMALL = ("--model", "Qwen/Qwen3-0.6B", "--hardware", "rtx_4090", "--gpus", "2")
"""Step times of it come from formulas, at once."""


def call(*arguments: object) -> int:
    return main([*map(str, arguments)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- explain -------------------------------------------------------------------------------------


def test_a_key_is_explained(capsys: Capture) -> None:
    assert call("explain", "engine.max_num_seqs") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "engine.max_num_seqs" and told[1] == "  Most requests in a step."
    assert "  unit      requests" in told and "  default   256" in told
    assert max(map(len, told)) <= 80


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("tpot", ["sla.itl_ms", "constraints.sla.itl_ms"]),
        ("total_gpus", ["constraints.gpu_budget"]),
        ("max_num_seqs", ["engine.max_num_seqs"]),
        ("timing.file", ["timing.file", "timing.file"]),
        ("p99_itl_ms", ["p99_itl_ms"]),
        ("capacity_load_low", ["capacity_load_low"]),
        ("sla_att", ["sla_attainment"]),
        ("workload.synthetic.turns.mean", ["workload.synthetic.turns.mean"]),
    ],
)
def test_a_key_is_found_by_other_names_and_parts_of_it(
    capsys: Capture, word: str, keys: list[str]
) -> None:
    assert call("explain", word, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [fact["key"] for fact in document["keys"]] == keys


def test_a_section_lists_what_is_below_it(capsys: Capture) -> None:
    assert call("explain", "router.events") == 0
    told = capsys.readouterr().out
    assert told.startswith("router.events\n  How KV events travel")
    assert [line.split(":")[0].strip() for line in told.splitlines()[-4:]] == [
        "delay_ms",
        "jitter_ms",
        "loss",
        "recovery_ms",
    ]


def test_without_a_key_all_are_listed_with_their_defaults(capsys: Capture) -> None:
    assert call("explain") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  max_num_batched_tokens: 8192 ") for line in lines)
    assert any(line.startswith("space:") for line in lines) and len(lines) > 150


def test_an_unknown_key_is_told_the_nearest(capsys: Capture) -> None:
    assert call("explain", "engine.tensor_paralel") == 2
    message = capsys.readouterr().err
    assert "did you mean engine.tensor_parallel?" in message and "Traceback" not in message


# ---- schema, and the documents it describes ------------------------------------------------------


def validator(capsys: Capture, name: str) -> Draft202012Validator:
    assert call("schema", name) == 0
    return Draft202012Validator(json.loads(capsys.readouterr().out))


def test_a_schema_is_written(here: Path, capsys: Capture) -> None:
    assert call("schema", "run", "--to", "schemas/run.json") == 0
    assert capsys.readouterr().out == ""
    schema = json.loads((here / "schemas" / "run.json").read_text())
    assert schema["title"] == "dynosim run file"
    assert call("schema", "runn") == 2


def test_a_report_has_the_keys_that_are_listed(here: Path, capsys: Capture) -> None:
    assert call("init", "run.yaml", "--run", *SMALL, "--isl", 50, "--osl", 5) == 0
    capsys.readouterr()
    assert call("run", "run.yaml", "--json", "--set", "workload.synthetic.requests=20") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "dynosim.report/1"
    assert set(report) == {key.name for key in (*DOCUMENT_KEYS, *report_keys(), *PREPARED_KEYS)}
    assert list(validator(capsys, "report").iter_errors(report)) == []
    worse = report | {"num_requests": None, "mean_ttft_ms": "fast"}
    assert len(list(validator(capsys, "report").iter_errors(worse))) == 2


SWEEP = """\
name: small
workload: {synthetic: {requests: 120, isl: 300, osl: 20, rate_rps: 20}}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space: {cluster.workers: [1, 2, 3], router.mode: [round-robin, least-loaded]}
constraints: {gpu_budget: 2, sla: {ttft_ms: 150, itl_ms: 30}}
load: {search: capacity, min_requests: 0}
"""
OF_REPORT = {key.name for key in (*report_keys(), *PREPARED_KEYS)}
ONLY_SOME = {"same_as", "capacity_not_pursued"}
"""Columns that are there where any trial has something in them."""


def test_a_sweep_has_the_keys_and_columns_that_are_listed(here: Path, capsys: Capture) -> None:
    (here / "sweep.yaml").write_text(SWEEP)
    assert call("sweep", "sweep.yaml", "--out", "out", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["schema"] == "dynosim.sweep/2"
    assert set(summary) - set(OPTIONAL_SUMMARY_KEYS) == {
        key.name for key in SUMMARY_KEYS if key.name not in OPTIONAL_SUMMARY_KEYS
    }
    assert "answer" in summary and set(summary) <= {key.name for key in SUMMARY_KEYS}
    assert list(validator(capsys, "summary").iter_errors(summary)) == []
    of_others = OF_REPORT | {"cluster.workers", "router.mode"}
    trials = set(pl.read_parquet("out/trials.parquet").columns) - of_others
    listed = {key.name for key in (*TRIAL_COLUMNS, *CAPACITY_COLUMNS)}
    assert trials | ONLY_SOME == listed
    probes = set(pl.read_parquet("out/probes.parquet").columns) - of_others
    assert probes == {key.name for key in PROBE_COLUMNS}


def test_a_load_that_is_needed_has_columns_of_its_own(here: Path, capsys: Capture) -> None:
    (here / "sweep.yaml").write_text(SWEEP)
    need = ("--set", "load.need={rps: 30}")
    assert call("sweep", "sweep.yaml", "--out", "out", "--json", *need) == 0
    assert "need" in json.loads(capsys.readouterr().out)
    trials = set(pl.read_parquet("out/trials.parquet").columns)
    assert {key.name for key in NEED_COLUMNS} <= trials
    sizing = pl.read_parquet("out/sizing.parquet").columns
    of_others = "cluster.decode.workers"  # where clusters have a pool for each phase
    assert sizing == [key.name for key in SIZING_COLUMNS if key.name != of_others]


# ---- init ----------------------------------------------------------------------------------------


def test_a_sweep_file_to_begin_with_runs_as_it_is(here: Path, capsys: Capture) -> None:
    arguments = ("--isl", 60, "--osl", 4, "--rps", 50, "--ttft", 400, "--tpot", 80)
    assert call("init", "chat.yaml", *SMALL, *arguments) == 0
    assert capsys.readouterr().out == "next: dynosim sweep chat.yaml\n"
    text = (here / "chat.yaml").read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=sweep.schema.json"
    schema = json.loads((here / "sweep.schema.json").read_text())
    assert list(Draft202012Validator(schema).iter_errors(yaml.safe_load(text))) == []
    sweep = load_sweep(here / "chat.yaml")
    assert sweep.constraints.gpu_budget == 2 and sweep.load.search == "capacity"
    assert sweep.constraints.sla is not None
    assert (sweep.constraints.sla.ttft_ms, sweep.constraints.sla.itl_ms) == (400, 80)
    assert text.count("  # ") > 10 and max(map(len, text.splitlines())) <= 88
    assert call("sweep", "chat.yaml", "--set", "load={search: fixed}", "--jobs", 1) == 0
    assert json.loads((here / "results/chat/summary.json").read_text())["counts"]["ok"] >= 4


def test_without_an_sla_it_seeks_curves(here: Path, capsys: Capture) -> None:
    assert call("init", *SMALL, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "written": ["sweep.yaml", "sweep.schema.json"],
        "next": "dynosim sweep sweep.yaml",
    }
    sweep = load_sweep(here / "sweep.yaml")
    assert sweep.constraints.sla is None and sweep.load.search == "curve"


def test_a_trace_is_named_as_seen_from_the_file(here: Path) -> None:
    ids = [*range(6)]
    rows = [
        {"timestamp": t, "input_length": 3000, "output_length": 5, "hash_ids": ids} for t in (0, 9)
    ]
    (here / "data").mkdir()
    (here / "data" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("init", "plans/run.yaml", "--run", *SMALL, "--trace", "data/t.jsonl") == 0
    config = load_run(here / "plans" / "run.yaml")
    assert config.workload.trace == "../data/t.jsonl"
    assert config.engine.max_model_len == 3072 and config.num_gpus == 2
    assert call("run", "plans/run.yaml") == 0


def test_a_trace_without_times_is_a_closed_loop(here: Path, capsys: Capture) -> None:
    row = {"session_id": "a", "input_length": 30, "output_length": 5}
    (here / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(5)))
    code = call("init", *SMALL, "--trace", "t.jsonl", "--format", "jsonl", "--ttft", 900)
    assert code == 0, capsys.readouterr().err
    sweep = load_sweep(here / "sweep.yaml")
    assert sweep.load.vary == "concurrency"
    workload = sweep.base["workload"]
    assert workload == {"trace": "t.jsonl", "format": "jsonl", "concurrency": 32}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "Qwen/Qwen3-0.7B"), "did you mean Qwen/Qwen3-"),
        (("--hardware", "h300"), "unknown 'h300'"),
        (("--hardware", "mi200"), "is a series of cards"),
        (("--trace", "none.jsonl"), "none.jsonl"),
        (("--trace", "none.jsonl", "--isl", "5"), "--isl: a trace has its own lengths"),
        (("--gpus", "0"), "--gpus"),
        (("--format", "jsonl"), "--format: only a trace"),
        (("--trace", __file__, "--format", "csv"), "csv"),
        (("other.txt",), "ends in .yaml"),
    ],
)
def test_what_cannot_be_used_is_one_message_and_nothing_is_written(
    here: Path, capsys: Capture, arguments: tuple[str, ...], words: str
) -> None:
    assert call("init", *arguments) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert list(here.iterdir()) == []


def test_nothing_is_replaced_unless_asked(here: Path, capsys: Capture) -> None:
    (here / "sweep.yaml").write_text("mine: 1\n")
    assert call("init", *SMALL) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["sweep.yaml"]
    (here / "sweep.schema.json").write_text("{}")
    assert call("init", *SMALL, "--overwrite") == 2
    assert "not ours" in capsys.readouterr().err
    assert (here / "sweep.yaml").read_text() == "mine: 1\n"
    assert call("init", *SMALL, "--overwrite", "--no-schema") == 0
    assert "language-server" not in (here / "sweep.yaml").read_text()
    assert (here / "sweep.schema.json").read_text() == "{}"


# ---- words that are no command -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("simulate", "use `dynosim run`"),
        ("mocker", "use `dynosim serve worker`"),
        ("swep", "did you mean `dynosim sweep`?"),
        ("zzz", "there are: run, sweep"),
    ],
)
def test_a_word_that_is_no_command_is_told_what_it_means(
    capsys: Capture, word: str, words: str
) -> None:
    assert call(word) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", sorted(set(MEANT.values())))
def test_what_a_word_is_told_to_mean_is_a_command(capsys: Capture, command: str) -> None:
    assert call(*command.split(), "--help") == 0
