"""Which workers a frontend uses beside each other, and what of a plan it refuses at once."""

from typing import Any

import pytest
from handoff_support import workers
from live_support import card

from dynosim.build.offload import connector_settings
from dynosim.config import RunConfig
from dynosim.errors import ConfigError
from dynosim_runtime.config import check_live, worker_plan
from dynosim_runtime.launch.options import deploy_options
from dynosim_runtime.launch.specs import DeployOptions, num_workers, process_specs
from dynosim_runtime.serving.agreement import check_agreement, check_handoff, check_role


def plan(**sections: Any) -> RunConfig:
    cluster = {
        "mode": "disagg",
        "prefill": {"workers": 2, "engine": {"tensor_parallel": 2}},
        "decode": {"engine": {"tensor_parallel": 4}},
        "transfer": {"bandwidth_gb_s": 1, "kv_bytes_per_token": 1000},
        **sections.pop("cluster", {}),
    }
    return RunConfig.of(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 100, "osl": 10, "rate_rps": 1}},
            "engine": {"block_size": 16, "num_gpu_blocks": 200, "max_model_len": 1024},
            "timing": {"kind": "linear", "base_ms": 5.0},
            "cluster": cluster,
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("field", "mine", "theirs", "what"),
    [
        ("kv_dtype", "fp8", "bfloat16", "KV dtype fp8 and bfloat16"),
        ("block_size", 16, 32, "KV block size 16 and 32"),
        ("model", "a", "b", "model a and b"),
        ("engine", "mock", "vllm", "engine mock and vllm"),
    ],
)
def test_workers_that_do_not_agree_are_told_with_both_values(
    field: str, mine: object, theirs: object, what: str
) -> None:
    (prefill,) = workers("p1", **{field: mine})
    (decode,) = workers("d1", **{field: theirs})
    message = f"prefill worker p1 and decode worker d1 do not agree: {what}"
    with pytest.raises(ConfigError, match=message):
        check_agreement(prefill, [decode])
    check_agreement(prefill, workers("d1", **{field: mine}))
    if field == "kv_dtype":
        check_agreement(prefill, workers("d1"))  # one that does not tell


def test_workers_have_the_role_of_their_pool() -> None:
    with pytest.raises(ConfigError, match="a serves whole requests, but this frontend's plan has"):
        check_role(card("a"), "decode")
    with pytest.raises(ConfigError, match=r"p1 is there for prefill, but .* whole requests"):
        check_role(workers("p1")[0], "agg")
    with pytest.raises(ConfigError, match="sglang engines do not hand KV over"):
        check_handoff(workers("p1", engine="sglang")[0], first_token="decode")
    with pytest.raises(ConfigError, match="compute the first token themselves"):
        check_handoff(workers("p1", engine="vllm")[0], first_token="prefill")


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"handoff": {"order": "decode_first"}}, "cluster.handoff.order: decode_first, but live"),
        ({"prefill": {"engine": {"block_size": 32}}}, "block_size: 32, but .* workers' is 16"),
        ({"decode": {"engine": {"kv_cache_dtype": "fp8"}}}, "kv_cache_dtype: auto, .* is fp8"),
    ],
)
def test_plans_that_cannot_be_served_are_refused(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_live(plan(cluster=cluster))


def test_a_workers_role_and_its_plan_go_together() -> None:
    assert worker_plan(plan(), "decode").engine.tensor_parallel == 4
    with pytest.raises(ConfigError, match=r"add --role prefill\|decode"):
        worker_plan(plan(), "agg")
    with pytest.raises(ConfigError, match="serve whole requests"):
        worker_plan(plan().for_pool("decode"), "prefill")


def test_first_tokens_that_an_engine_cannot_pass_on_are_refused_at_the_start(tmp_path: Any) -> None:
    asked = plan(cluster={"handoff": {"first_token": "prefill"}})
    with pytest.raises(ConfigError, match="first_token: prefill, but vLLM's decode workers"):
        deploy_options(asked, tmp_path, mock=False, real=True, engine="vllm-cpu", out=tmp_path)
    with pytest.raises(ConfigError, match="sglang engines hand no KV over here"):
        deploy_options(plan(), tmp_path, mock=False, real=True, engine="sglang", out=tmp_path)


def test_each_pool_has_its_workers_their_places_and_their_gpus(tmp_path: Any) -> None:
    placed = plan(cluster={"topology": {"zone": ["a", "b"]}, "taints": ["fast"]})
    options = DeployOptions(out=tmp_path, engine="vllm", port=1)
    specs = process_specs(placed, options, port=1, gpus=("0,1", "2,3", "4,5,6,7"))
    assert [spec.name for spec in specs] == ["prefill-0", "prefill-1", "decode-0", "frontend"]
    assert num_workers(placed) == 3
    for spec, zone in zip(specs, ("a", "b", "a"), strict=False):
        role = spec.command.index("--role")
        assert spec.command[role + 1] == spec.name.partition("-")[0]
        place = spec.command.index("--topology")
        assert spec.command[place + 1] == f"zone={zone}"
        assert spec.command[spec.command.index("--taint") + 1] == "fast"
    assert specs[2].environment == {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}


def test_vllm_is_told_its_part() -> None:
    prefill, decode = plan().pools()
    told = connector_settings(decode, "decode", load_failure_policy="recompute")
    assert told is not None
    assert (told["kv_connector"], told["kv_role"]) == ("NixlConnector", "kv_consumer")
    assert (told["kv_buffer_device"], told["kv_load_failure_policy"]) == ("cuda", "recompute")
    told = connector_settings(prefill, "prefill", buffer_device="cpu")
    assert told is not None and told["kv_role"] == "kv_producer"
    assert (told["kv_buffer_device"], told["kv_load_failure_policy"]) == ("cpu", "fail")
