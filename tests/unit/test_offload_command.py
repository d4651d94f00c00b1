"""How real engines are told of the plan's tiers, and which tiers they are not started with."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_sweep_scripts import plan, started

from dynosim.build.offload import check_vllm_tiers, connector_settings
from dynosim.build.tiers import PAGE_BYTES, tiers_spec
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.sweep.engine_script import engine_script
from dynosim.sweep.pool_files import pool_files
from dynosim_runtime.adapters.base import EngineAdapter, KvExchange, LaunchSpec
from dynosim_runtime.adapters.sglang import SglangAdapter
from dynosim_runtime.adapters.trtllm import TrtllmAdapter
from dynosim_runtime.adapters.vllm import VllmAdapter
from dynosim_runtime.launch.options import deploy_options

HOST = {"capacity_gb": 3.5, "policy": "arc", "store_threshold": 2, "prompt_only": True}
SPLIT = {
    "mode": "disagg", "transfer": {"preset": "ib"}, "decode": {"workers": 1},
    "handoff": {"load_failure_policy": "recompute"},
}  # fmt: skip
REFUSED = [
    ({"host": {**HOST, "scope": "node"}}, "host.scope"),
    ({"disk": {"capacity_gb": 9}}, "host"),
    ({"remote": {"capacity_gb": 9}}, "host"),
    ({"host": HOST, "disk": {"capacity_gb": 9}}, "disk"),
    ({"host": HOST, "remote": {"capacity_gb": 9}}, "remote"),
    ({"host": HOST, "peers_gb_s": 10}, "peers_gb_s"),
    ({"host": HOST, "onboard": "faster"}, "onboard"),
]


def tiered(tiers: dict[str, Any], cluster: dict[str, Any] | None = None, **keys: Any) -> RunConfig:
    return plan(cluster={**(cluster or {}), "tiers": tiers}, **keys)


def command(
    adapter: EngineAdapter, config: RunConfig, scratch: Path, exchange: KvExchange | None = None
) -> list[str]:
    spec = LaunchSpec(
        plan=config, model="m", served_model_name="m", host="h", port=1, python=Path("python"),
        event_sources=(), scratch=scratch, exchange=exchange,
    )  # fmt: skip
    return adapter.command(spec)


def told(words: list[str]) -> Any:
    return json.loads(words[words.index("--kv-transfer-config") + 1])


def test_vllm_is_told_the_host_tier_and_says_what_is_in_it(tmp_path: Path) -> None:
    assert told(command(VllmAdapter(), tiered({"host": HOST}), tmp_path)) == {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": 3_500_000_000,
            "eviction_policy": "arc",
            "store_threshold": 2,
            "offload_prompt_only": True,
            "self_describing_kv_events": True,
        },
    }


def test_defaults_of_ours_are_said_where_those_of_vllm_are_others(tmp_path: Path) -> None:
    settings = told(command(VllmAdapter(), tiered({"host": {"capacity_gb": 1}}), tmp_path))
    extra = settings["kv_connector_extra_config"]
    assert extra["offload_prompt_only"] is False
    assert (extra["eviction_policy"], extra["store_threshold"]) == ("lru", 0)


def test_without_tiers_there_is_no_connector(tmp_path: Path) -> None:
    assert "--kv-transfer-config" not in command(VllmAdapter(), plan(), tmp_path)


@pytest.mark.parametrize("bytes_per_token", [1000, 4096, 65_536])
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_room_in_blocks_is_room_for_as_many_where_blocks_start_at_pages(
    bytes_per_token: int, tensor_parallel: int
) -> None:
    tiers = {"host": {"num_blocks": 77}, "kv_bytes_per_token": bytes_per_token}
    config = tiered(tiers, engine={"block_size": 16, "tensor_parallel": tensor_parallel})
    settings = connector_settings(config, None)
    assert settings is not None
    room = settings["kv_connector_extra_config"]["cpu_bytes_to_use"]
    pages_of_a_block = -(-16 * bytes_per_token // PAGE_BYTES)
    assert room // (pages_of_a_block * PAGE_BYTES) == 77


def test_room_in_bytes_is_of_all_gpus_of_a_worker_together() -> None:
    for tensor_parallel in (1, 4):
        config = tiered({"host": {"num_blocks": 10}}, engine={"tensor_parallel": tensor_parallel})
        settings, spec = connector_settings(config, None), tiers_spec(config)
        assert settings is not None and spec is not None
        room = settings["kv_connector_extra_config"]["cpu_bytes_to_use"]
        assert room == 10 * spec.block_bytes == 10 * 16 * 2 * 64 * 8 * 128 * 2


def test_who_hands_kv_over_and_keeps_it_does_both(tmp_path: Path) -> None:
    config = tiered({"host": HOST}, SPLIT)
    prefill, decode = config.pools()
    exchange = KvExchange(role="prefill", host="h", port=1, load_failure_policy="recompute")
    both = told(command(VllmAdapter(), prefill, tmp_path, exchange))
    assert (both["kv_connector"], both["kv_role"]) == ("MultiConnector", "kv_producer")
    assert both["kv_load_failure_policy"] == "recompute"
    handed, kept = both["kv_connector_extra_config"]["connectors"]
    assert (handed["kv_connector"], handed["kv_role"]) == ("NixlConnector", "kv_producer")
    assert kept == connector_settings(prefill, None)
    exchange = KvExchange(role="decode", host="h", port=1, load_failure_policy="recompute")
    taken = told(command(VllmAdapter(), decode, tmp_path, exchange))
    assert (taken["kv_connector"], taken["kv_role"]) == ("NixlConnector", "kv_consumer")


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [{}, SPLIT], ids=["agg", "disagg"])
@pytest.mark.parametrize(("tiers", "key"), REFUSED)
def test_tiers_that_vllm_does_not_have_are_refused_before_anything_starts(
    tmp_path: Path, cluster: dict[str, Any], tiers: dict[str, Any], key: str
) -> None:
    config = tiered(tiers, {**cluster, "topology": {"node": ["a"]}})
    message = rf"^cluster\.tiers\.{key}: .*\(state `host` alone, or simulate"
    with pytest.raises(ConfigError, match=message):
        deploy_options(config, tmp_path, mock=False, real=True, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        command(VllmAdapter(), config.pools()[0], tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("engine", "adapter", "message"),
    [
        ("vllm-cpu", VllmAdapter(on_cpu=True), r"^cluster\.tiers: .* on GPUs only, not on CPUs \("),
        ("sglang", SglangAdapter(), r"^cluster\.tiers: sglang engines are started without tiers"),
        ("trtllm", TrtllmAdapter(), r"^cluster\.tiers: trtllm engines are started without tiers"),
    ],
)
def test_engines_that_keep_nothing_are_refused(
    tmp_path: Path, engine: Any, adapter: EngineAdapter, message: str
) -> None:
    config = tiered({"host": HOST}, engine={"block_size": 32})
    with pytest.raises(ConfigError, match=message):
        deploy_options(config, tmp_path, mock=False, real=True, engine=engine, out=tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        command(adapter, config, tmp_path)


@pytest.mark.parametrize(
    ("cluster", "engine", "key"),
    [
        ({"workers": 2, "cpu_workers": 1}, {}, "cluster.cpu_workers"),
        ({}, {"enable_prefix_caching": False}, "cluster.tiers"),
    ],
)
def test_plans_whose_tiers_are_of_no_use_are_refused(
    cluster: dict[str, Any], engine: dict[str, Any], key: str
) -> None:
    config = tiered({"host": HOST}, cluster, engine=engine)
    with pytest.raises(ConfigError, match=rf"^{key}: "):
        check_vllm_tiers(config)


def test_a_size_in_blocks_needs_the_size_of_a_token() -> None:
    config = tiered(
        {"host": {"num_blocks": 9}}, model=None, hardware=None, engine={"num_gpu_blocks": 99},
        timing={"kind": "linear", "base_ms": 1},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"^cluster\.tiers\.kv_bytes_per_token: missing"):
        check_vllm_tiers(config)


# ---- scripts -------------------------------------------------------------------------------------


def test_a_script_starts_engines_with_the_tier(tmp_path: Path) -> None:
    config = tiered({"host": HOST}, {"workers": 2})
    text = engine_script(config, title="t", folder=tmp_path)
    ((name, _, *words),), _ = started(tmp_path, text, "worker_1")
    assert name == "vllm" and told(words) == connector_settings(config, None)
    assert words.count("--kv-transfer-config") == 1


def test_a_script_can_have_kvbm_keep_the_kv(tmp_path: Path) -> None:
    """What comes last is what vLLM takes."""
    config = tiered({"host": HOST}, {"workers": 2})
    text = engine_script(config, title="t", folder=tmp_path)
    text = text.replace('exec "${vllm[@]}"', 'env > "$CALLS/../env"; exec "${vllm[@]}"')
    ((_, _, *words),), _ = started(tmp_path, text, "worker_1", KVBM="1")
    assert words[-2] == "--kv-transfer-config"
    assert json.loads(words[-1]) == {
        "kv_connector": "DynamoConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "kvbm.vllm_integration.connector",
    }
    assert "DYN_KVBM_CPU_CACHE_GB=3.5\n" in (tmp_path / "env").read_text()


def test_a_script_for_both_pools_keeps_kv_where_prompts_are_computed(tmp_path: Path) -> None:
    config = tiered({"host": HOST}, SPLIT)
    text = engine_script(config, title="t", folder=tmp_path)
    calls, _ = started(tmp_path, text, "prefill_0")
    assert told(calls[0])["kv_connector"] == "MultiConnector"
    assert "KVBM" not in text
    files = pool_files(config, tmp_path)
    stated = yaml.safe_load(files["prefill_config.yaml"])["kv-transfer-config"]
    assert json.loads(stated) == told(calls[0])
    stated = yaml.safe_load(files["decode_config.yaml"])["kv-transfer-config"]
    assert json.loads(stated)["kv_connector"] == "NixlConnector"


@pytest.mark.parametrize("cluster", [{}, SPLIT], ids=["agg", "disagg"])
def test_a_script_for_tiers_that_vllm_does_not_have_says_so_and_starts_nothing(
    tmp_path: Path, cluster: dict[str, Any]
) -> None:
    config = tiered({"host": HOST, "disk": {"capacity_gb": 9}}, cluster)
    text = engine_script(config, title="t", folder=tmp_path)
    calls, said = started(tmp_path, text)
    assert calls == [] and said.count("error: ") == 1
    assert said.startswith("error: cluster.tiers.disk: ")
    assert (
        subprocess.run(["bash", str(tmp_path / "script.sh")], capture_output=True).returncode == 2
    )
    if cluster:
        prefill = pool_files(config, tmp_path)["prefill_config.yaml"]
        assert "# Without its tiers; cluster.tiers.disk: " in prefill
        assert "OffloadingConnector" not in prefill
