"""Whatever a user gets wrong: one message that says where and what to do, exit 2, no output."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from dynosim.cli import main

RUN = """\
workload: {trace: ok.jsonl}
engine: {num_gpu_blocks: 2000, block_size: 16}
timing: {kind: fixed, prefill_ms: 10, decode_ms: 5}
"""


def row(timestamp: float, **changes: Any) -> str:
    values = {"timestamp": timestamp, "input_length": 100, "output_length": 5, "hash_ids": [1]}
    return json.dumps({**values, **changes})


def without(key: str) -> str:
    values = json.loads(row(1))
    del values[key]
    return json.dumps(values)


def exit_code(*arguments: str) -> int:
    return main(list(arguments))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "ok.jsonl").write_text("\n".join(row(10 * i) for i in range(20)) + "\n")
    return tmp_path


TRACES = [
    (row(0) + "\n{oops\n", "bad.jsonl:2: not JSON"),
    (row(0) + "\n" + row(1, input_length=-4), "bad.jsonl:2:input_length: expected an integer >= 1"),
    (row(0) + "\n" + without("output_length"), "bad.jsonl:2:output_length: missing field"),
    (row(10) + "\n" + row(5), "bad.jsonl:2:timestamp: goes back"),
    (row(0).replace("0,", "NaN,", 1), "bad.jsonl:1: not JSON: NaN"),
    (row(0, input_length=3.5), "bad.jsonl:1:input_length: expected an integer, got 3.5"),
    (row(0, input_length=10**30), "bad.jsonl:1:input_length"),
    (row(0, output_length=0), "bad.jsonl:1:output_length: expected an integer >= 1"),
    (row(0, input_length=2000), "bad.jsonl:1:hash_ids: 1 ids of 512 tokens cover 512"),
    (
        row(0, retention=[{"start": 0, "priority": 500}]),
        "bad.jsonl:1:retention[0].priority: expected 0 to 100, got 500",
    ),
    (
        row(0, pin_ends_with_session=True),
        "bad.jsonl:1:pin_ends_with_session: nothing is pinned: add pin_ttl_ms",
    ),
    (row(0, pin_ttl_ms=0), "bad.jsonl:1:pin_ttl_ms: expected a number of ms > 0, got 0"),
    (
        "\n".join(
            row(i, input_length=30_000, hash_ids=[100 * i + k for k in range(59)], pin_ttl_ms=1e6)
            for i in range(2)
        ),
        "bad.jsonl: request 1 pins blocks when so many are pinned that 3,750 would be at once",
    ),
    ("", "bad.jsonl: no requests"),
    ("\n\n", "bad.jsonl: no requests"),
    ("\n".join(row(i) for i in range(10_000)) + '\n{"timestamp": 1e5}\n', "bad.jsonl:10001"),
]


@pytest.mark.parametrize(("text", "message"), TRACES, ids=[message for _, message in TRACES])
def test_trace_when_bad_is_refused_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (folder / "bad.jsonl").write_text(text)
    arguments = ("run", "run.yaml", "--set", "workload.trace=bad.jsonl", "--out", "out")
    assert exit_code(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("error: ")
    assert "Traceback" not in printed.err and printed.out == ""
    assert not (folder / "out").exists()


def test_gzip_when_cut_off_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = gzip.compress("\n".join(row(i) for i in range(1000)).encode())
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    assert exit_code("run", "run.yaml", "--set", "workload.trace=cut.jsonl.gz") == 2
    assert "cut.jsonl.gz: broken gzip file" in capsys.readouterr().err


def test_bad_lines_when_skipped_are_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.jsonl").write_text(row(0) + "\n{oops\n" + row(5) + "\n")
    arguments = ("run", "run.yaml", "--set", "workload.trace=bad.jsonl", "--skip-bad-lines")
    assert exit_code(*arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["skipped_lines"] == 1 and report["num_requests"] == 2


SETTINGS = [
    ("workload.concurrency=0", "workload.concurrency: must be >= 1"),
    ("cluster.workers=0", "cluster.workers: none at the start"),
    ("cluster.workers=-1", "cluster.workers: must be >= 0"),
    ("workload.speedup=-1", "workload.speedup: must be > 0"),
    ("engine.watermark=1.0", "engine.watermark: must be < 1"),
    ("engine.block_size=0", "engine.block_size: must be >= 1"),
    ("engine.max_num_batched_tokens=10", "less than max_num_seqs"),
    ("engine.enable_chunked_prefill=false", "vLLM refuses that"),
    ("engine.reuse_granularity_tokens=100", "100 is no multiple of block_size (16)"),
    ("workload.retention={}", "workload.retention: rows of a trace say it themselves"),
    ("engine.max_model_len=100000", "fewer than one request of max_model_len 100,000"),
    ("engine.num_gpu_blocks=3", "longer than the KV cache of one worker (32 tokens)"),
    ("engine.num_gpu_block=3", "did you mean engine.num_gpu_blocks"),
    ("router.mode=rr", "router.mode: "),
    ("router.mode=direct", "names no worker, but router.mode is direct"),
    ("router.overlap_score_credit=-1", "router.overlap_score_credit: "),
    ("router.queue_policy=sjf", "expected fcfs, lcfs or wspt"),
    ("router.events.loss=1.0", "router.events.loss: "),
    ("router.frontends=0", "router.frontends: "),
    ("router.load_aware=true", "router.load_aware: belongs to mode kv"),
    ("router.policy=nowhere:Thing", "takes the place of the kv mode"),
    ("cluster.cpu_workers=99", "cluster.cpu_workers: 99 of"),
    ("timing.kind=foo", "timing.kind: expected fixed"),
    ("timing.kind=polynomial", "another kind of timing takes it"),
    ("timing.prefill_ms=.nan", "must be a finite number"),
    ("timing={kind: roofline}", "model"),
    ("timing={kind: profile, file: nofile.json}", "nofile.json: no such profile"),
    ("workload.trace=nothere.jsonl", "nothere.jsonl: no such file"),
    ("nonsense", "expected key=value"),
    ("seed=1.5", "seed: expected an integer"),
]


@pytest.mark.parametrize(("setting", "message"), SETTINGS, ids=[s for s, _ in SETTINGS])
def test_setting_when_bad_is_refused_with_its_key(
    folder: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    assert exit_code("run", "run.yaml", "--set", setting, "--out", "out") == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("error: ")
    assert "Traceback" not in printed.err and printed.out == ""
    assert not (folder / "out").exists()


SIZE = "kv_bytes_per_token: 1000"
HOST = "host: {capacity_gb: 1}"
LINK = "missing; a tier without a link is of no use (state it, or a preset)"
TIERS = [
    (f"{{host: {{capacity_gb: 0}}, {SIZE}}}", "host.capacity_gb: a tier of 0 holds nothing (raise"),
    (f"{{host: {{capacity_gb: -3}}, {SIZE}}}", "host.capacity_gb: a tier of -3 holds nothing"),
    (f"{{host: {{num_blocks: 0}}, {SIZE}}}", "host.num_blocks: a tier of 0 holds nothing (raise"),
    (f"{{disk: {{num_blocks: -1}}, {SIZE}}}", "disk.num_blocks: a tier of -1 holds nothing"),
    (f"{{host: {{capacity_gb: 1.0e+300}}, {SIZE}}}", "host.capacity_gb: must be <= 1e+09"),
    (f"{{host: {{capacity_gb: .nan}}, {SIZE}}}", "host.capacity_gb: must be a finite number"),
    (f"{{host: {{capacity_gb: 1, preset: null}}, {SIZE}}}", f"host.read_gb_s: {LINK}"),
    (f"{{host: {{capacity_gb: 1, preset: null}}, {SIZE}}}", f"host.write_gb_s: {LINK}"),
    (f"{{remote: {{capacity_gb: 1, preset: null, read_gb_s: 1}}, {SIZE}}}",
     f"remote.write_gb_s: {LINK}"),
    (f"{{host: {{}}, {SIZE}}}", "host.capacity_gb: missing; no num_blocks is stated either (add"),
    (f"{{host: {{capacity_gb: 1, num_blocks: 4}}, {SIZE}}}",
     "host.num_blocks: capacity_gb and num_blocks exclude each other (remove one)"),
    (f"{{host: {{capacity_gb: 0.000001}}, {SIZE}}}",
     "host.capacity_gb: 1e-06 GB is less than one block of 1.6e-05 GB (raise it)"),
    (f"{{peers_gb_s: 3, disk: {{capacity_gb: 1}}, {SIZE}}}",
     "peers_gb_s: stated, but workers have no host tiers of their own to read from (remove it, or"),
    (f"{{host: {{capacity_gb: 1, scope: node}}, {SIZE}}}",
     "host.scope: node, but the workers have no node (add `topology: {node: [a, b]}`, or"),
    (f"{{{HOST}, onboard_granularity_blocks: 4, {SIZE}}}",
     "onboard_granularity_blocks: stated, but all that is found is loaded (set `onboard: faster`)"),
    (f"{{{HOST}}}", "kv_bytes_per_token: missing; no model is named that it would follow from (st"),
    (f"{{{SIZE}}}", "host: missing; no tier is stated (add `host: {capacity_gb: 64}`, or remove"),
    (f"{{host: {{capacity_gb: 1, total_read_gb_s: 5}}, {SIZE}}}",
     "host.total_read_gb_s: stated, but every worker has the tier for itself (remove it, or set"),
    (f"{{host: {{capacity_gb: 1, policy: worth}}, {SIZE}}}",
     "host.policy: expected lru, arc or priority, got"),
]  # fmt: skip


SCENARIOS = [
    ("[{at_s: 1, fail: workers/2}]",
     "scenario[0].fail: there is never a worker workers/2 (workers has 2, numbered from 0)"),
    ("[{at_s: 1, launch: workers}, {at_s: 2, fail: workers/3}]",
     "scenario[1].fail: there is never a worker workers/3 (workers has 3"),
    ("[{at_s: 1, fail: decode/0}]", "scenario[0].fail: no pool decode (the pools are workers)"),
    ("[{at_s: 1, fail: everything}]", "scenario[0].fail: 'everything' names no worker (write"),
    ("[{at_s: 1, fail: node=a}]", "scenario[0].fail: no worker says its node (state cluster.topol"),
    ("[{at_s: 2, fail: workers/0}, {at_s: 1, fail: workers/1}]",
     "scenario[1].at_s: 1, but the event before it is at 2 (put the events in the order"),
    ("[{at_s: 1}]", "scenario[0].at_s: nothing happens (state one of launch, drain"),
    ("[{at_s: 1, drain: workers/0, fail: workers/1}]", "at_s: drain and fail happens (state one"),
    ("[{at_s: 1, hang: workers/0}]", "scenario[0].detect_s: missing; hang needs it (add"),
    ("[{at_s: 1, fail: workers/0, factor: 2}]",
     "scenario[0].factor: stated, but what happens is fail (remove it; it belongs to slow)"),
    ("[{at_s: 1, fail: workers/0, replace: takeover}]", "scenario[0].takeover_s: missing; a"),
    ("[{at_s: 1, partition: true, for_s: 5}]", "scenario[0].partition: there are no prefill and"),
    ("[{at_s: 1, lose_frontend: 0, for_s: 5}]", "scenario[0].lose_frontend: the only frontend"),
    ("[{at_s: 1, lose_events: workers/2, for_s: 5}]",
     "scenario[0].lose_events: there is never a worker workers/2"),
    ("[{at_s: 1, lose_events: all}]", "scenario[0].for_s: missing; lose_events needs it (add"),
    ("[{at_s: 1, lose_events: all, share: 0, for_s: 5}]", "scenario[0].share: "),
    ("[{at_s: 1, delay_events: all, for_s: 5}]", "scenario[0].delay_ms: missing; delay_events"),
    ("[{at_s: 1, lose_events: all, for_s: 5}]\nrouter: {mode: round-robin}",
     "lose_events: router.mode round-robin gets no KV events (set router.mode: kv)"),
    ("[{at_s: 1, delay_events: all, delay_ms: 9, for_s: 5}]\n"
     "router: {mode: kv, use_kv_events: false}",
     "delay_events: with router.use_kv_events: false routers get no KV events (remove it)"),
    ("[{at_s: 1, lose_events: all, for_s: 5}]\nrouter: {mode: kv, index: naive}",
     "lose_events: router.index naive cannot be repaired after lost events (use compressed"),
    ("[{at_s: 1, rolling_update: {max_surge: 0, max_unavailable: 0}}]",
     "rolling_update.max_surge: 0, as is max_unavailable: no worker could be replaced (raise"),
    ("[{at_s: 1, rolling_update: {max_surge: 120%}}]", "max_surge: a share of 1.2 (write whole"),
    ("[{at_s: 1, rolling_update: {pools: [x]}}]",
     "scenario[0].rolling_update.pools: no pool x (the pools are workers)"),
    ("[{at_s: 1, rolling_update: {engine: {block_size: 32}}}]",
     "rolling_update.engine.block_size: the same for all generations of workers (remove it; new"),
    ("[{at_s: 1, canary: {share: 0.1, engine: {max_num_seq: 4}}}]",
     "scenario[0].canary.engine.max_num_seq: unknown key"),
    ("[{at_s: 1, canary: {share: 0.1, engine: {max_num_seqs: 70000}}}]",
     "scenario[0].canary.engine.max_num_batched_tokens: "),
    ("[{at_s: 1, rolling_update: {engine: {num_gpu_blocks: auto}}}]",
     "rolling_update.engine.num_gpu_blocks: auto is what the workers before have (write how many"),
    ("[{at_s: 1, rolling_update: {engine: {num_gpu_blocks: 2}}}]",
     "scenario[0].rolling_update: engine.num_gpu_blocks: 1 usable blocks of 16 hold 16 tokens"),
    ("[{at_s: 1, rolling_update: {step_time_factor: 0}}]",
     "rolling_update.step_time_factor: must be > 0"),
]  # fmt: skip


@pytest.mark.parametrize(("scenario", "message"), SCENARIOS)
def test_scenarios_of_what_can_never_happen_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], scenario: str, message: str
) -> None:
    text = RUN + f"cluster: {{workers: 2}}\nscenario: {scenario}\n"
    (folder / "scenario.yaml").write_text(text)
    assert exit_code("run", "scenario.yaml", "--out", "out") == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("error: ") == 1
    assert "Traceback" not in printed.err and printed.out == ""
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("tiers", "message"), TIERS)
def test_tiers_when_bad_are_refused_with_their_key_and_a_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str], tiers: str, message: str
) -> None:
    (folder / "tiers.yaml").write_text(RUN + f"cluster: {{tiers: {tiers}}}\n")
    assert exit_code("run", "tiers.yaml", "--out", "out") == 2
    printed = capsys.readouterr()
    assert f"cluster.tiers.{message}" in printed.err and printed.err.count("error: ") == 1
    assert "Traceback" not in printed.err and printed.out == ""
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("enable_prefix_caching: false", "without engine.enable_prefix_caching nothing is found "
         "again (set it, or remove the tiers)"),
        ("data_parallel: 2", "2 data-parallel ranks in a worker, but the tiers of ranks are not "
         "simulated (give the pool as many workers instead)"),
    ],
)  # fmt: skip
def test_tiers_of_engines_that_cannot_have_them_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], engine: str, message: str
) -> None:
    text = RUN.replace("block_size: 16", f"block_size: 16, max_model_len: 9000, {engine}")
    text += f"model: Qwen/Qwen3-32B\ncluster: {{tiers: {{{HOST}}}}}\n"
    (folder / "tiers.yaml").write_text(text)
    assert exit_code("run", "tiers.yaml", "--out", "out") == 2
    printed = capsys.readouterr()
    assert f"error: cluster.tiers: {message}" in printed.err
    assert printed.err.count("error: ") == 1
    assert "Traceback" not in printed.err and printed.out == ""
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("tier", "message"),
    [
        ("host: {num_blocks: 3}", None),  # heeds no pin
        ("host: {num_blocks: 3, policy: priority}",
         "pins 4 blocks, but the host tier of a worker has 3 (pin less, for a shorter time, or "
         "raise the capacity of cluster.tiers.host)"),
        ("host: {num_blocks: 6, policy: priority}",
         "at 0.0 s; all of the host tier has 6 (pin less, for a shorter time, or raise the "
         "capacity of cluster.tiers.host)"),
        ("remote: {num_blocks: 3, policy: priority}",
         "pins 4 blocks, but the remote tier has 3 (pin less"),
        ("host: {num_blocks: 9, policy: priority}", None),
    ],
)  # fmt: skip
def test_pins_beyond_a_tier_that_heeds_them_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], tier: str, message: str | None
) -> None:
    pinned = {"input_length": 64, "pin_ttl_ms": 5000}
    rows = [row(0, hash_ids=[1], **pinned), row(10, hash_ids=[2], **pinned)]
    (folder / "pins.jsonl").write_text("\n".join(rows) + "\n")
    text = RUN.replace("ok.jsonl", "pins.jsonl")
    (folder / "tiers.yaml").write_text(text + f"cluster: {{tiers: {{{tier}, {SIZE}}}}}\n")
    assert exit_code("run", "tiers.yaml", "--out", "out") == (0 if message is None else 2)
    printed = capsys.readouterr()
    assert printed.err.count("error: ") == (message is not None)
    assert message is None or message in printed.err


REAL = "model: Qwen/Qwen3-32B\nhardware: h200_sxm\n" + RUN.replace(
    "block_size: 16", "block_size: 32"
)
ALONE = "(state `host` alone, or simulate the plan with `dynosim run`)"


@pytest.mark.parametrize("command", [("deploy", "--real"), ("serve", "worker")])
@pytest.mark.parametrize(
    ("engine", "tiers", "message"),
    [
        ("vllm", f"{HOST}, disk: {{capacity_gb: 9}}", ALONE),
        ("vllm", "remote: {capacity_gb: 9}", ALONE),
        ("vllm", f"{HOST}, peers_gb_s: 9", ALONE),
        ("vllm", f"{HOST}, onboard: faster", ALONE),
        ("vllm", "host: {capacity_gb: 9, policy: priority}", "(set lru or arc, or simulate"),
        ("vllm", "host: {capacity_gb: 9, scope: node}", ALONE),
        ("vllm-cpu", HOST, "on GPUs only, not on CPUs (--set cluster.tiers=null"),
        ("sglang", HOST, "sglang engines are started without tiers here (--engine vllm"),
    ],
)
def test_tiers_that_real_engines_do_not_have_start_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, str],
    engine: str,
    tiers: str,
    message: str,
) -> None:
    (folder / "tiers.yaml").write_text(
        REAL + f"cluster: {{topology: {{node: [a]}}, tiers: {{{tiers}}}}}\n"
    )
    (folder / "weights").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "weights" / name).write_text("{}")
    python = folder / "python"
    python.write_text(f"#!/bin/sh\ntouch {folder}/started\n")
    python.chmod(0o755)
    given = ("--engine", engine, "--model", "weights", "--engine-python", str(python))
    assert exit_code(*command, "tiers.yaml", *given) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: cluster.tiers") and message in printed.err
    assert printed.err.count("error: ") == 1 and "Traceback" not in printed.err
    assert not (folder / "started").exists() and not (folder / "deployments").exists()


@pytest.mark.parametrize(
    ("model", "hardware", "message"),
    [
        ("Qwen/Qwen3-33B", "h200_sxm", "did you mean Qwen/Qwen3-32B"),
        ("Qwen/Qwen3-32B", "h200_sxn", "did you mean h200_sxm"),
        ("Qwen/Qwen3-32B", "l40s", "does not fit l40s"),
    ],
)
def test_model_and_hardware_when_unknown_or_too_big_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], model: str, hardware: str, message: str
) -> None:
    text = f"model: {model}\nhardware: {hardware}\nworkload: {{trace: ok.jsonl}}\n"
    (folder / "model.yaml").write_text(text + "timing: {kind: roofline}\n")
    assert exit_code("run", "model.yaml") == 2
    assert message in capsys.readouterr().err
