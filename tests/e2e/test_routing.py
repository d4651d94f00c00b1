"""Routing in whole simulations: the documented effects, and the commands around them."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
from clusters import run_twin

from dynosim.cli import main
from dynosim.engine.spec import EngineSpec
from dynosim.records import NO_REQUEST, RunResult, Trace
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import RouterSpec
from dynosim.router.modes import MODES
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

NO_IDS = np.zeros(0, np.int64)
SPEC = EngineSpec(
    num_gpu_blocks=20_001,
    max_model_len=65_536,
    block_size=16,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
)
TIMING = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.1, per_decode_ms=0.05, per_context_token_ms=0.0
)


def routing(mode: str, **settings: object) -> RoutingSpec:
    return RoutingSpec(RouterSpec(SPEC.block_size, mode=mode, **settings))  # type: ignore[arg-type]


def sessions(num_sessions: int, *, gap_ms: float, shared_ids: int = 4) -> Trace:
    """Two turns each; the second repeats the first prompt and adds to it."""
    ids, offsets, lengths, previous = [], [0], [], []
    for turn in (0, 1):
        for session in range(num_sessions):
            mine = [1000 * session + k for k in range(shared_ids + 2 * turn)]
            ids += mine
            offsets.append(len(ids))
            lengths.append(64 * len(mine))
            previous.append(session if turn else NO_REQUEST)
    n = 2 * num_sessions
    return Trace(
        arrival_ms=np.concatenate([gap_ms * np.arange(num_sessions), np.zeros(num_sessions)]),
        input_tokens=np.array(lengths, np.int64),
        output_tokens=np.full(n, 4, np.int64),
        hash_ids=np.array(ids, np.int64),
        hash_offsets=np.array(offsets, np.int64),
        trace_block_size=64,
        previous_turn=np.array(previous, np.int64),
        delay_ms=np.full(n, 500.0),
    )


def share_on_first_worker(trace: Trace, result: RunResult) -> float:
    turn = trace.previous_turn
    assert turn is not None
    second = np.flatnonzero(turn >= 0)
    workers = result.requests.worker_id
    return float((workers[second] == workers[turn[second]]).mean())


def test_random_placement_meets_the_first_turns_worker_with_chance_one_in_n() -> None:
    trace = sessions(600, gap_ms=40.0)
    for num_workers in (2, 5):
        result = run_twin(
            trace, engine=SPEC, timing=TIMING, num_workers=num_workers, routing=routing("random")
        )
        hits = round(600 * share_on_first_worker(trace, result))
        chance = 1 / num_workers
        tail = sum(
            comb(600, k) * chance**k * (1 - chance) ** (600 - k)
            for k in range(601)
            if abs(k - 600 * chance) >= abs(hits - 600 * chance)
        )
        assert tail > 0.001  # two-sided binomial test


def test_kv_routing_at_low_load_always_meets_it() -> None:
    trace = sessions(200, gap_ms=400.0)
    result = run_twin(trace, engine=SPEC, timing=TIMING, num_workers=5, routing=routing("kv"))
    assert share_on_first_worker(trace, result) > 0.99


@pytest.mark.parametrize(
    ("second_prompt", "cached_tokens", "ttft_ms"),
    [
        ("the same", 52_000 - 16, 168.0),
        ("a header in front", 0, 912.0),
        ("a header behind", 51_200, 168.0 + 0.0143 * 800),
    ],
)
def test_a_stable_prompt_is_found_in_the_cache_whole_and_an_unstable_one_not_at_all(
    second_prompt: str, cached_tokens: int, ttft_ms: float
) -> None:
    """A 52,000-token prompt takes 168 ms where it is cached and 912 ms where it is not."""
    prompt = list(range(65))  # ids of 800 tokens
    changed = {
        "the same": prompt,
        "a header in front": [999, *prompt[1:]],
        "a header behind": [*prompt[:64], 999],
    }[second_prompt]
    trace = Trace(
        arrival_ms=np.array([0.0, 5000.0]),
        input_tokens=np.array([52_000, 52_000]),
        output_tokens=np.array([2, 2]),
        hash_ids=np.array(prompt + changed, np.int64),
        hash_offsets=np.array([0, 65, 130]),
        trace_block_size=800,
    )
    spec = EngineSpec(
        num_gpu_blocks=10_001, max_model_len=65_536, block_size=16, max_num_batched_tokens=65_536
    )
    timing = LinearModel(
        base_ms=168.0, per_prefill_token_ms=0.0143, per_decode_ms=0.0, per_context_token_ms=0.0
    )
    result = run_twin(trace, engine=spec, timing=timing, num_workers=2, routing=routing("kv"))
    log = result.requests
    assert int(log.cached_tokens[1]) == cached_tokens
    assert log.first_token_ms[1] - log.arrival_ms[1] == pytest.approx(ttft_ms, rel=0.02)


def test_queue_policies_trade_the_mean_for_the_tail() -> None:
    """Short and long prompts near saturation, waiting in the router."""
    rng = np.random.default_rng(1)
    n = 1500
    lengths = np.where(rng.random(n) < 0.3, 3000, 200).astype(np.int64)
    arrival = np.cumsum(rng.exponential(1000 / 17, n))
    trace = Trace(
        arrival_ms=arrival - arrival[0],
        input_tokens=lengths,
        output_tokens=np.full(n, 20, np.int64),
        hash_ids=NO_IDS,
        hash_offsets=np.zeros(n + 1, np.int64),
        trace_block_size=512,
    )
    mean, p99 = {}, {}
    for policy in ("fcfs", "wspt", "lcfs"):
        waits = PolicyClass(queue_policy=policy, prefill_busy_threshold_frac=1.0)  # type: ignore[arg-type]
        result = run_twin(
            trace,
            engine=SPEC,
            timing=TIMING,
            num_workers=2,
            routing=routing("kv", classes=(waits,)),
        )
        assert result.routing is not None and result.routing.num_queued > 500
        ttft_ms = result.requests.first_token_ms - result.requests.arrival_ms
        mean[policy], p99[policy] = float(ttft_ms.mean()), float(np.percentile(ttft_ms, 99))
    assert mean["wspt"] < 0.8 * mean["fcfs"]
    assert p99["fcfs"] < p99["wspt"] < p99["lcfs"]


RUN = """\
name: routed
workload:
  synthetic: {requests: 300, isl: 2000, osl: 30, rate_rps: 30, shared_prefix_ratio: 0.7,
              prefix_groups: 12}
engine: {num_gpu_blocks: 2001, max_num_seqs: 16, block_size: 16}
timing: {kind: polynomial}
cluster: {workers: 4}
router: {mode: kv}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def report(run_file: Path, capsys: pytest.CaptureFixture[str], *sets: str) -> dict[str, float]:
    arguments = [part for text in sets for part in ("--set", text)]
    assert main(["run", str(run_file), "--json", "--check", *arguments]) == 0
    document: dict[str, float] = json.loads(capsys.readouterr().out)
    return document


def test_kv_routing_doubles_the_speed_of_first_tokens_where_prefixes_are_shared(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty prefixes of 3,600 tokens: more than one worker's cache holds, less than four's do.

    The load is one that four workers keep up with if they reuse: of what waits for a worker, the
    router's expectation may be out of the cache by the time that it begins.
    """
    load = [
        f"workload.synthetic.{key}"
        for key in (
            "isl=4000",
            "requests=600",
            "rate_rps=22",
            "prefix_groups=40",
            "shared_prefix_ratio=0.9",
        )
    ]
    kv = report(run_file, capsys, *load)
    blind = report(run_file, capsys, *load, "router.mode=round-robin")
    assert blind["mean_ttft_ms"] / kv["mean_ttft_ms"] >= 1.5
    assert kv["output_throughput_tok_s"] > blind["output_throughput_tok_s"]
    assert kv["prefix_cache_reused_ratio"] > blind["prefix_cache_reused_ratio"]
    assert kv["router_overlap_ratio"] == pytest.approx(kv["prefix_cache_reused_ratio"], abs=0.02)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "direct"])
def test_every_mode_runs(mode: str, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = report(run_file, capsys, f"router.mode={mode}", "cluster.cpu_workers=1")
    assert made["completed_requests"] == 300
    assert 0.25 <= made["busiest_worker_request_share"] < 0.6


@pytest.mark.parametrize(
    "setting",
    [
        "index=compressed",
        "events={delay_ms: 20}",
        "events={loss: 0.05}",
        "events={jitter_ms: 40}",
        "use_kv_events=false",
        "queue_threshold=0.5",
        "temperature=0.4",
        "predicted_ttl_ms=500",
        "load_aware=true",
        "session_affinity_ttl_ms=1000",
        "active_prefill_tokens_threshold=4000",
        "track_output_blocks=true",
        "prefill_load_model=timing",
    ],
)
def test_a_run_can_be_decided_again_from_its_log(
    setting: str, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "router.jsonl"
    command = ["run", str(run_file), "--set", f"router.{setting}", "--router-log", str(log)]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["replay-log", str(log), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["equal"] and verdict["num_decisions"] >= 300


def test_a_decision_that_was_changed_is_found(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "router.jsonl"
    assert main(["run", str(run_file), "--router-log", str(log)]) == 0
    lines = log.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if i > 200 and line.startswith('["arrive"'))
    entry = json.loads(lines[at])
    entry[3][1] = (entry[3][1] + 1) % 4
    lines[at] = json.dumps(entry)
    log.write_text("\n".join(lines))
    capsys.readouterr()
    assert main(["replay-log", str(log)]) == 1
    shown = capsys.readouterr().out
    assert f"router.jsonl:{at + 1}: the decision at" in shown
    assert "logged:" in shown and "derived:" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not the header"),
        ('{"format": 99}\n', "not the header"),
        ("nonsense\n", ":1: not JSON"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_log_is_one_message(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "router.jsonl"
    if content is not None:
        log.write_text(content)
    assert main(["replay-log", str(log)]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_events_are_written_and_drawn(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(run_file), "--kv-events", "--out", str(out)]) == 0
    import polars as pl

    events = pl.read_parquet(out / "kv_events.parquet")
    assert events["num_blocks"].max() > 0 > events["num_blocks"].min()  # type: ignore[operator]
    assert set(events["worker_id"]) == {0, 1, 2, 3}
    assert (out / "kv_events.png").stat().st_size > 10_000
    assert main(["run", str(run_file), "--kv-events"]) == 2
    assert "--out" in capsys.readouterr().err


def test_the_example_policy_learns_which_workers_are_slow(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = ("cluster.cpu_workers=1", "cluster.cpu_step_time_scale=6")
    plain = report(run_file, capsys, *slow)
    learned = report(run_file, capsys, *slow, "router.policy=examples.thompson:ThompsonSampling")
    assert learned["completed_requests"] == 300
    assert learned["mean_ttft_ms"] < plain["mean_ttft_ms"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("nowhere.module:Thing", "cannot import 'nowhere.module'"),
        ("examples.thompson:Thomson", "has no 'Thomson'; it has Belief, ThompsonSampling"),
        ("examples.thompson:Belief", "no method choose"),
        ("ThompsonSampling", "is not package.module:Class"),
    ],
)
def test_a_policy_that_cannot_be_had_is_named(
    policy: str, message: str, run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(run_file), "--set", f"router.policy={policy}"]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_too_many_requests_are_refused_with_their_status(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = "[{name: all, prefill_busy_threshold: 100, request_queue_limit_per_worker: 1}]"
    full = report(
        run_file, capsys, f"router.policy_classes={classes}", "workload.synthetic.rate_rps=200"
    )
    assert full["refused_queue_full_requests"] == full["rejected_requests"] > 0
    busy = report(
        run_file, capsys, "router.active_prefill_tokens_threshold=100",
        "workload.synthetic.rate_rps=200",
    )  # fmt: skip
    assert busy["refused_busy_requests"] == busy["rejected_requests"] > 0
    assert busy["completed_requests"] + busy["rejected_requests"] == 300
