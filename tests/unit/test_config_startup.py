"""From `cluster.startup` to how workers start: presets, what is stated in their place, and whatever
cannot be."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from dynosim.build.cluster import cluster_spec
from dynosim.build.engine import prepare
from dynosim.cli import main
from dynosim.cluster.spec import ClusterSpec
from dynosim.config import load_run
from dynosim.errors import ConfigError
from dynosim.experiment.run import run
from dynosim.metrics.startups import STARTUP_KEYS
from dynosim.workers.startup import PHASES, Duration, ReadSpec, StartupSpec, WeightsSpec
from dynosim.workers.startup_presets import (
    CHECKPOINTS,
    STARTS,
    WEIGHTS,
    CheckpointKind,
    Start,
    WeightsPlace,
)

GB = 10**9


def document(startup: dict[str, Any] | None, **cluster: Any) -> dict[str, Any]:
    stated = {} if startup is None else {"startup": {"initial": "starting", **startup}}
    return {
        "workload": {"synthetic": {"requests": 20, "rate_rps": 2.0, "isl": 64, "osl": 4}},
        "engine": {"num_gpu_blocks": 2000, "max_model_len": 4096},
        "timing": {"kind": "fixed", "prefill_ms": 10, "decode_ms": 5},
        "cluster": {**stated, **cluster},
    }  # fmt: skip


def built(tmp_path: Path, content: dict[str, Any]) -> ClusterSpec:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    config = load_run(path)
    return cluster_spec(config, prepare(config))


def startup_of(tmp_path: Path, startup: dict[str, Any], **more: Any) -> StartupSpec:
    spec = built(tmp_path, document(startup) | more).pools[0].startup
    assert spec is not None
    return spec


def test_phases_are_as_stated(tmp_path: Path) -> None:
    spec = startup_of(
        tmp_path,
        {
            "schedule_s": 1,
            "node_s": {"min": 2, "max": 4},
            "image_s": {"mean": 5, "p95": 8},
            "boot_s": 6.5,
            "compile_s": 7,
            "compile_cached_s": 1,
            "compile_cache": "shared",
            "warm_up_s": 8,
            "probe_s": 0,
            "nodes_per_worker": 2,
        },
    )
    assert spec == StartupSpec(
        schedule=Duration(1000.0),
        node=Duration(3000.0, half_width_ms=1000.0),
        image=Duration(5000.0, 8000.0),
        boot=Duration(6500.0),
        compile=Duration(7000.0),
        compile_cached=Duration(1000.0),
        compile_cache="shared",
        warm_up=Duration(8000.0),
        nodes=2,
    )


def test_what_is_stated_stands_in_place_of_the_presets(tmp_path: Path) -> None:
    weights = {"preset": "efs", "size_gb": 16}
    spec = startup_of(tmp_path, {"preset": "vllm_cold", "boot_s": 3, "weights": weights})
    preset = STARTS["vllm_cold"].times
    assert (spec.boot, spec.compile) == (Duration(3000.0), preset["compile"])
    assert spec.probe == Duration.between(0.0, 10_000.0)
    storage = ReadSpec(node_gb_s=1.6, total_gb_s=21.5, first_byte_ms=1.0)
    assert spec.weights == WeightsSpec(num_bytes=16 * GB, storage=storage)


@pytest.mark.parametrize(
    ("weights", "node_gb_s", "total_gb_s"),
    [
        ({"read_gb_s": 1.5}, 1.5, None),
        ({"total_read_gb_s": 4.0}, 4.0, 4.0),
        ({"read_gb_s": 1.5, "total_read_gb_s": 4.0}, 1.5, 4.0),
        ({"streams": 8, "stream_gb_s": 0.1}, 0.8, None),
        ({"streams": 64, "stream_gb_s": 0.1, "read_gb_s": 2.0}, 2.0, None),
        ({"preset": "pvc"}, 2.0, 2.0),
        ({"preset": "pvc", "total_read_gb_s": 20.0}, 20.0, 20.0),
        ({"preset": "pvc", "read_gb_s": 0.5}, 0.5, 2.0),
        ({"preset": "s3", "streams": 4, "stream_gb_s": 0.1}, 0.4, None),
    ],
)
def test_rates_of_storage(
    weights: dict[str, Any], node_gb_s: float, total_gb_s: float | None, tmp_path: Path
) -> None:
    spec = startup_of(tmp_path, {"weights": {"size_gb": 1, **weights}})
    assert spec.weights is not None
    storage = spec.weights.storage
    assert (storage.node_gb_s, storage.total_gb_s) == (pytest.approx(node_gb_s), total_gb_s)


def test_peers_are_asked_if_a_rate_is_stated_or_the_preset_has_one(tmp_path: Path) -> None:
    stated = startup_of(tmp_path, {"weights": {"size_gb": 1, "peer_gb_s": 9, "read_gb_s": 2}})
    preset = startup_of(tmp_path, {"weights": {"size_gb": 1, "preset": "p2p"}})
    assert stated.weights is not None and preset.weights is not None
    assert (stated.weights.peer_gb_s, stated.weights.receivers_per_source) == (9.0, None)
    assert (preset.weights.peer_gb_s, preset.weights.receivers_per_source) == (8.5, 1)


def test_the_size_of_weights_follows_from_the_model(tmp_path: Path) -> None:
    """About two bytes per parameter, however many GPUs there are."""
    sizes = set()
    for tensor_parallel in (1, 2):
        content = document({"weights": {"preset": "pvc"}}) | {"model": "Qwen/Qwen3-32B"}
        content["engine"]["tensor_parallel"] = tensor_parallel
        spec = built(tmp_path, content).pools[0].startup
        assert spec is not None and spec.weights is not None
        sizes.add(spec.weights.num_bytes)
    assert len(sizes) == 1 and sizes.pop() / 32.76e9 == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(("gpus", "nodes"), [(8, 1), (16, 2), (12, 2)])
def test_nodes_follow_from_the_hardware(gpus: int, nodes: int, tmp_path: Path) -> None:
    content = document({"boot_s": 1}) | {"hardware": "h200_sxm"}
    content["engine"]["tensor_parallel"] = gpus
    spec = built(tmp_path, content).pools[0].startup
    assert spec is not None and spec.nodes == nodes


def test_a_checkpoint_of_a_preset_is_as_large_as_the_weights_make_it(tmp_path: Path) -> None:
    """Published: 74 GiB of Qwen3-32B in 9.9 s, 6.2 of 0.6B in 2.4, 164 of Qwen2.5-72B in 20."""
    preset = CHECKPOINTS["snapshot"]
    for weights_gb, size_gib, time_s in ((1.5, 6.2, 2.4), (65.5, 74, 9.9), (145.4, 164, 20.0)):
        weights = {"size_gb": weights_gb, "preset": "nvme"}
        checkpoint = {"preset": "snapshot", "exists": False}
        spec = startup_of(tmp_path, {"weights": weights, "checkpoint": checkpoint}).checkpoint
        assert spec is not None
        assert spec.num_bytes / 2**30 == pytest.approx(size_gib, rel=0.03)
        took_s = spec.restore.mean_ms / 1e3 + spec.num_bytes / (preset.node_gb_s * GB)
        assert took_s == pytest.approx(time_s, rel=0.03)


def test_a_checkpoint_that_is_there_needs_no_rate_of_writing(tmp_path: Path) -> None:
    stated = {"size_gb": 4, "read_gb_s": 2, "restore_s": 1}
    spec = startup_of(tmp_path, {"checkpoint": stated}).checkpoint
    assert spec is not None and spec.exists and not spec.waits
    made = {**stated, "exists": False, "write_gb_s": 1, "policy": "wait_for_checkpoint"}
    later = startup_of(tmp_path, {"checkpoint": made}).checkpoint
    assert later is not None and not later.exists and later.waits


def test_a_pool_of_its_own_mind_starts_otherwise(tmp_path: Path) -> None:
    content = document(
        {"boot_s": 5},
        mode="disagg",
        decode={"startup": {"initial": "starting", "boot_s": 7}},
        transfer={"bandwidth_gb_s": 10, "kv_bytes_per_token": 1000},
    )
    pools = built(tmp_path, content).pools
    boots = [pool.startup and pool.startup.boot.mean_ms for pool in pools]
    assert boots == [5000.0, 7000.0] and all(pool.start_cold for pool in pools)


def test_without_a_section_workers_are_there(tmp_path: Path) -> None:
    pool = built(tmp_path, document(None)).pools[0]
    assert (pool.startup, pool.start_cold) == (None, False)


def test_every_preset_is_named_and_says_where_it_is_from(tmp_path: Path) -> None:
    assert set(get_args(Start)) == set(STARTS)
    assert set(get_args(WeightsPlace)) == set(WEIGHTS)
    assert set(get_args(CheckpointKind)) == set(CHECKPOINTS)
    for preset in (*STARTS.values(), *WEIGHTS.values(), *CHECKPOINTS.values()):
        assert preset.sources
    for name, start in STARTS.items():
        assert set(start.times) <= {*PHASES, "compile_cached"}
        said = {source.partition(":")[0] for source in start.sources}
        known = {phase for words in said for phase in words.split(", ")}
        assert {phase.removesuffix("_cached") for phase in start.times} <= known
        startup = startup_of(tmp_path, {"preset": name}, model="Qwen/Qwen3-32B")
        assert (startup.checkpoint is not None) == (name == "restore")


def test_every_phase_has_its_key_in_reports() -> None:
    assert {f"mean_startup_{phase}_ms" for phase in PHASES} < set(STARTUP_KEYS)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "startup.preset: missing"),
    ({"nodes_per_worker": 2}, "startup.preset: missing"),
    ({"preset": "vllm_warm"}, "startup.preset: expected vllm_cold"),
    ({"boot_s": -1}, "startup.boot_s: must be >= 0"),
    ({"boot_s": {"mean": 5}}, "boot_s.mean: a time needs mean and p95"),
    ({"boot_s": {"mean": 5, "p95": 4}}, "boot_s.p95: less than the mean"),
    ({"boot_s": {"mean": 5, "p95": 20}}, "boot_s.p95: more than 3.87 times the mean"),
    ({"boot_s": {"min": 5, "max": 4}}, "boot_s.max: less than min"),
    ({"boot_s": {"min": 5, "max": 4, "mean": 4}}, "boot_s.min: stated beside mean"),
    ({"boot_s": 1, "nodes_per_worker": 0}, "nodes_per_worker: must be >= 1"),
    ({"boot_s": 1, "initial": "ready"}, "cluster.startup: stated, but no worker starts"),
    ({"compile_s": 5, "compile_cached_s": 1}, "compile_cached_s: stated, but nobody"),
    ({"compile_s": 5, "compile_cache": "shared"}, "compile_cached_s: missing"),
    ({"compile_cached_s": 5, "compile_cache": "shared"}, "compile_s: missing"),
    ({"compile_s": 5, "compile_cached_s": 1, "compile_cache": "warm"}, "compile_s: stated, but"),
    ({"weights": {"size_gb": 1}}, "weights.read_gb_s: missing; no other rate"),
    ({"weights": {"read_gb_s": 0}}, "weights.read_gb_s: a link of 0 GB/s moves nothing"),
    ({"weights": {"peer_gb_s": 5}}, "weights.read_gb_s: missing; the first worker"),
    ({"weights": {"streams": 5}}, "weights.stream_gb_s: missing"),
    ({"weights": {"preset": "pvc", "receivers_per_source": 1}}, "receivers_per_source: stated"),
    ({"weights": {"preset": "pvc"}}, "startup.weights.size_gb: missing; no model"),
    ({"checkpoint": {"size_gb": 1}}, "checkpoint.read_gb_s: missing"),
    ({"checkpoint": {"read_gb_s": 1}}, "checkpoint.size_gb: missing"),
    ({"checkpoint": {"preset": "snapshot", "write_gb_s": 1}}, "checkpoint.write_gb_s: stated"),
    ({"checkpoint": {"preset": "snapshot", "policy": "wait_for_checkpoint"}}, "policy: stated"),
    ({"checkpoint": {"size_gb": 1, "read_gb_s": 1, "exists": False}}, "write_gb_s: missing"),
    ({"checkpoint": {"size_gb": 1, "read_gb_s": 1}, "boot_s": 3}, "boot_s: stated, but workers"),
    ({"checkpoint": {"size_gb": 1, "read_gb_s": 1}, "nodes_per_worker": 2}, "image of one node"),
]


@pytest.mark.parametrize(("startup", "message"), BAD)
def test_what_cannot_be_is_one_message_and_exit_2(
    startup: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document(startup)))
    assert main(["run", str(path)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_a_shared_section_that_no_pool_obeys_is_refused(tmp_path: Path) -> None:
    own = {"startup": {"initial": "starting", "boot_s": 7}}
    link = {"bandwidth_gb_s": 10, "kv_bytes_per_token": 1000}
    content = document({"boot_s": 5}, mode="disagg", prefill=own, decode=own, transfer=link)
    with pytest.raises(ConfigError, match=r"cluster\.startup: stated, but each pool"):
        built(tmp_path, content)


def test_an_outcome_has_the_phases_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for startup in ({"boot_s": 3}, None):
        path.write_text(yaml.safe_dump(document(startup)))
        found = run(load_run(path), check=True).startups
        assert (found is None) == (startup is None)
        if found is not None:
            assert found.row(0) == (0, 0, "boot", 0.0, 3000.0, 0, None, True)


def test_a_run_from_the_command_line_says_how_its_workers_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import polars as pl

    path, out = tmp_path / "run.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(document({"boot_s": 3, "probe_s": 1}, workers=2)))
    assert main(["run", str(path), "--out", str(out)]) == 0
    assert "2 workers, mean 4.0 s, slowest 4.0 s; longest: boot, 3.0 s" in capsys.readouterr().out
    table = pl.read_parquet(out / "startups.parquet")
    assert table["phase"].to_list() == ["boot", "probe"] * 2
    assert table["end_ms"].to_list() == [3000.0, 4000.0] * 2
    plain = document(None, workers=2)
    path.write_text(yaml.safe_dump(plain))
    assert main(["run", str(path), "--out", str(out), "--overwrite"]) == 0
    assert not (out / "startups.parquet").exists()
