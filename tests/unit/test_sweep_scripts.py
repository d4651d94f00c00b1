"""engine.sh and bench.sh: started with stand-ins for vLLM, dynosim and AIPerf."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S

from dynosim.build.engine_command import vllm_flags, vllm_gpu_flags
from dynosim.config.loading import check_run
from dynosim.config.schema import RunConfig
from dynosim.sweep.bench_script import bench_loads, bench_script, synthetic_flags
from dynosim.sweep.engine_script import engine_port, engine_script

REPORT = {
    "request_throughput_rps": 4.0, "mean_e2e_latency_ms": 2000.0, "num_requests": 100,
    "capacity_rps": 5.0,
}  # fmt: skip
SINGLE = {"requests": 100, "isl": 300, "osl": 20, "rate_rps": 5}
CHAT = {**SINGLE, "turns": 3}
STAND_IN = """\
#!/usr/bin/env bash
# writes what it was called with and in which environment, a word a line; vllm ends when so many
# have been called
{ echo "CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-}"; printf '%s\\n' "$@"; } > "$CALLS.$$"
mv "$CALLS.$$" "$CALLS/$(basename "$0").$$"
[ "$(basename "$0")" != dynosim ] || exec sleep "${DYNOSIM_S:-0}"
[ "$(basename "$0")" = vllm ] || exit 0
until [ "$(ls "$CALLS" | wc -l)" -ge "${NUM_CALLS:-0}" ]; do sleep 0.05; done
"""


def plan(synthetic: dict[str, Any] = SINGLE, **keys: Any) -> RunConfig:
    data: dict[str, Any] = {
        "name": "q/w", "model": "Qwen/Qwen3-32B", "hardware": "h200_sxm",
        "workload": {"synthetic": synthetic, **keys.pop("workload", {})},
        "timing": {"kind": "aiconfigurator"},
    }  # fmt: skip
    config = check_run({**data, **keys}, Path())
    assert isinstance(config, RunConfig), config
    return config


def started(
    folder: Path, text: str, *arguments: str, **environment: str
) -> tuple[list[list[str]], str]:
    """The calls of stand-ins, each its name and its words, and what the script said."""
    calls = folder / "calls"
    calls.mkdir(exist_ok=True)
    for name in ("vllm", "dynosim", "aiperf"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    script = folder / "script.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    found = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "TMPDIR": str(folder)}
    done = subprocess.run(
        ["bash", str(script), *arguments], env=found | environment, capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    lines = [(path.name.split(".")[0], path.read_text().splitlines()) for path in calls.iterdir()]
    return [[name, *words] for name, words in sorted(lines)], done.stdout + done.stderr


# ---- engine.sh -----------------------------------------------------------------------------------


def test_a_worker_is_vllm_with_the_flags_of_the_live_layer(tmp_path: Path) -> None:
    config = plan(engine={"tensor_parallel": 2, "max_num_seqs": 99}, cluster={"workers": 3})
    text = engine_script(config, title="t", folder=tmp_path)
    ((name, gpus, *words),), _ = started(tmp_path, text, "worker_1")
    assert (name, gpus) == ("vllm", "CUDA_VISIBLE_DEVICES=2,3")
    port = str(engine_port(config, 1))
    flags = vllm_flags(config.engine, served_model_name="Qwen/Qwen3-32B")
    flags += vllm_gpu_flags(config.engine)
    head = ["serve", "Qwen/Qwen3-32B", "--host", "127.0.0.1", "--port", port]
    assert words[:-2] == [*head, *flags]
    assert words[-2] == "--kv-events-config"
    events = json.loads(words[-1])
    assert events["endpoint"] == f"ipc://{tmp_path}/dynosim-q-w/worker_1.events"
    assert events["enable_kv_cache_events"] is True


def test_the_router_is_told_where_the_engine_and_its_events_are(tmp_path: Path) -> None:
    config = plan(cluster={"workers": 2})
    text = engine_script(config, title="t", folder=tmp_path)
    ((name, _, *words),), _ = started(tmp_path, text, "attach_1")
    assert name == "dynosim" and words[:5] == ["serve", "worker", "config.yaml", "--name",
                                               "worker-1"]  # fmt: skip
    address = words[words.index("--attach") + 1]
    run = f"{tmp_path}/dynosim-q-w"
    assert address == (
        f"http://127.0.0.1:{engine_port(config, 1)}?events=ipc://{run}/worker_1.events"
        f"&replay=ipc://{run}/worker_1.replay"
    )
    assert words[-2:] == ["--discovery", f"file:{run}/discovery"]


def test_all_of_it_starts_and_ends_with_the_first_that_ends(tmp_path: Path) -> None:
    config = plan(cluster={"workers": 2, "cpu_workers": 1}, router={"frontends": 2})
    text = engine_script(config, title="t", folder=tmp_path)
    # The others would go on for longer than anybody waits: they are told to end.
    for_ever = str(10 * PATIENCE_S)
    calls, _ = started(
        tmp_path, text, MODEL="org/other", PORT="9999", NUM_CALLS="4", DYNOSIM_S=for_ever
    )
    words = [" ".join([name, *rest]) for name, _, *rest in calls]
    assert sum(text.startswith("vllm serve org/other") for text in words) == 1
    assert any("serve worker config.yaml --name worker-1 --engine vllm-cpu" in w for w in words)
    assert any("frontend config.yaml --set router.frontends=1" in w and "9999" in w for w in words)
    assert len(words) == 4


def test_without_prefix_caching_there_are_no_events(tmp_path: Path) -> None:
    config = plan(engine={"enable_prefix_caching": False})
    text = engine_script(config, title="t", folder=tmp_path)
    assert "kv-events-config" not in text and "events=" not in text


def test_a_model_that_is_only_described_must_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    described = plan(model="./tiny")
    calls, said = started(tmp_path, engine_script(described, title="t", folder=tmp_path))
    assert calls == [] and "MODEL: set it to the folder with the weights" in said
    (folder / "model.safetensors").touch()
    text = engine_script(described, title="t", folder=tmp_path)
    ((_, _, *words),), _ = started(tmp_path, text, "worker_0")
    assert words[:2] == ["serve", "./tiny"]
    assert words[words.index("--served-model-name") + 1] == "tiny"


def test_ports_of_engines_stay_apart_from_the_frontends() -> None:
    for port in (0, 8000, 65500):
        config = plan(cluster={"workers": 300}, live={"port": port})
        ports = {engine_port(config, index) for index in range(300)}
        assert len(ports) == 300 and (port or 8000) not in ports
        assert 0 < min(ports) and max(ports) <= 65535


# ---- bench.sh ------------------------------------------------------------------------------------


def test_three_loads_with_forty_requests_for_each_in_flight() -> None:
    loads = bench_loads(plan(), REPORT)
    assert [load.share for load in loads] == [0.5, 0.8, 1.0]
    assert [load.rate_rps for load in loads] == pytest.approx([2.5, 4.0, 5.0])
    assert [load.in_flight for load in loads] == [4, 7, 8]  # 4 requests/s for 2 s at the full load
    assert [load.num_requests for load in loads] == [160, 280, 320]
    many = bench_loads(plan(), {**REPORT, "num_requests": 5000})
    assert {load.num_requests for load in many} == {5000}


def test_in_a_closed_loop_what_is_in_flight_is_the_load() -> None:
    closed = plan({**SINGLE, "arrival": "closed", "rate_rps": None}, workload={"concurrency": 30})
    loads = bench_loads(closed, REPORT)
    assert [(load.in_flight, load.rate_rps) for load in loads] == [(15, None), (24, None),
                                                                   (30, None)]  # fmt: skip
    assert loads[-1].num_requests == 1200


def test_single_requests_are_told_to_aiperf_in_its_words(tmp_path: Path) -> None:
    text = bench_script(plan(), REPORT, title="t", model="Qwen/Qwen3-32B")
    calls, _ = started(tmp_path, text, "http://h:1", OUT=str(tmp_path / "res"))
    assert len(calls) == 4 and {call[0] for call in calls} == {"aiperf"}
    words = next(call for call in calls if f"{tmp_path}/res/load-1" in call)
    said = " ".join(words)
    for part in (
        "profile -m Qwen/Qwen3-32B --tokenizer Qwen/Qwen3-32B", "--url http://h:1", "--streaming",
        "--extra-inputs ignore_eos:true temperature:0", "--random-seed 3", "--request-rate 5",
        "--num-requests 320", "--isl 300", "--osl 20", "--arrival-pattern poisson",
    ):  # fmt: skip
        assert part in said, part


def test_aiperf_asks_for_the_sampling_that_was_priced(tmp_path: Path) -> None:
    text = bench_script(plan(workload={"sampling": "truncated"}), REPORT, title="t", model="m")
    calls, _ = started(tmp_path, text, "http://h:1", OUT=str(tmp_path / "res"))
    assert calls and all(
        "--extra-inputs ignore_eos:true temperature:0.6 top_p:0.9 --" in " ".join(call)
        for call in calls
    )


def test_a_warm_up_has_prompts_that_no_load_sends(tmp_path: Path) -> None:
    """What it leaves in the prefix cache is no reuse that the workload has."""
    report = {**REPORT, "completed_requests": 10, "total_input_tokens": 2996,
              "total_output_tokens": 204}  # fmt: skip
    text = bench_script(plan(), report, title="t", model="m")
    calls, _ = started(tmp_path, text, "http://h:1", OUT=str(tmp_path / "res"))
    assert f"{tmp_path}/res/warm-up" in calls[0]
    for part in ("--num-requests 40", "--num-dataset-entries 40", "--isl 300", "--osl 20"):
        assert part in " ".join(calls[0])
    seeds = [call[call.index("--random-seed") + 1] for call in calls]
    assert len(set(seeds)) == len(calls) == 4
    assert not any("warmup" in word for call in calls for word in call)


def test_other_workloads_are_written_as_rows_for_it(tmp_path: Path) -> None:
    config = plan(CHAT, workload={"arrival_scale": 2, "repeat": 2}, cluster={"workers": 2})
    text = bench_script(config, REPORT, title="t", model="m")
    calls, _ = started(tmp_path, text, URL="http://h:2", OUT=str(tmp_path / "o"))
    rows = [call[2:] for call in calls if call[0] == "dynosim"]
    assert len(rows) == 3
    assert [
        "trace", "schedule", "config.yaml", f"{tmp_path}/o/load-0.5/rows.jsonl",
        "--overwrite", "--set", "workload.repeat=4", "--set", "workload.arrival_scale=1.0",
    ] in rows  # fmt: skip
    warm_up, *sent = [" ".join(call) for call in calls if call[0] == "aiperf"]
    assert "--input-file" not in warm_up and len(sent) == 3
    for words in sent:
        assert "--custom-dataset-type mooncake_trace --isl-block-size 64 --fixed-schedule" in words
        assert "--url http://h:2" in words


@pytest.mark.parametrize(
    ("change", "is_told"),
    [
        ({}, True),
        ({"isl": {"dist": "normal", "mean": 300, "std": 9}}, True),
        ({"arrival": "gamma", "burstiness": 0.5}, True),
        ({"isl": {"dist": "normal", "mean": 300, "std": 9, "max": 400}}, False),
        ({"osl": {"dist": "lognormal", "mean": 300, "std": 9}}, False),
        ({"turns": 2}, False),
        ({"shared_prefix_ratio": 0.5}, False),
        ({"shared_prefix_tokens": 64}, False),
        ({"max_context_tokens": 4000}, False),
    ],
)
def test_what_aiperf_has_words_for(change: dict[str, Any], is_told: bool) -> None:
    synthetic = plan({**SINGLE, **change}).workload.synthetic
    assert synthetic is not None
    flags = synthetic_flags(synthetic, is_open=True)
    assert (flags is not None) == is_told
    if "burstiness" in change:
        assert flags is not None
        assert flags[-4:] == ["--arrival-pattern", "gamma", "--arrival-smoothness", "0.5"]
    if "std" in str(change) and flags is not None:
        assert flags[:4] == ["--isl", "300", "--isl-stddev", "9"]


def test_every_part_of_a_script_is_one_shell_word_where_it_must_be(tmp_path: Path) -> None:
    config = plan(live={"served_model_name": "a b'c"})
    text = engine_script(config, title="t", folder=tmp_path)
    ((_, _, *words),), _ = started(tmp_path, text, "worker_0")
    assert words[words.index("--served-model-name") + 1] == "a b'c"
    bench = bench_script(config, REPORT, title="t", model="a b'c")
    calls, _ = started(tmp_path, bench, TOKENIZER="x")
    assert any(call[call.index("-m") + 1] == "a b'c" for call in calls if "-m" in call)
    assert shlex.quote("a b'c") in bench
