"""From a log's set-up to the engine that is replayed."""

from pathlib import Path
from typing import Any

import pytest
from recorded_runs import rows, workload, write

from dynosim.config.engine import EngineConfig
from dynosim.errors import ConfigError
from dynosim.fit.deployment import deployment_of, hardware_notes, rank_notes, vllm_arguments
from dynosim.fit.log_file import read_measurements
from dynosim.fit.prior import prior_of


def _setup(version: str = "0.19.0", **kwargs: Any) -> dict[str, Any]:
    return {"vllm_version": version, "engine_kwargs": kwargs}


def test_vllm_schedules_asynchronously_unless_told_otherwise_or_old() -> None:
    assert deployment_of(_setup()).engine.async_scheduling
    assert not deployment_of(_setup("0.11.2")).engine.async_scheduling
    assert not deployment_of(_setup(async_scheduling=False)).engine.async_scheduling
    assert not deployment_of({}).engine.async_scheduling


def test_graphs_pad_steps_on_gpus_that_are_not_eager() -> None:
    on_gpu = deployment_of(_setup(max_num_seqs=8), hardware="h100_sxm")
    assert on_gpu.graph_sizes == (1, 2, 4, 8, 16)
    eager = deployment_of(_setup(enforce_eager=True), hardware="h100_sxm")
    assert eager.graph_sizes == deployment_of(_setup()).graph_sizes == ()


def test_what_is_not_stated_is_assumed_and_said() -> None:
    assert deployment_of(_setup(max_num_seqs=8)).assumed == ("max_num_batched_tokens",)


def test_capacity_is_given_by_argument_or_set_up() -> None:
    assert deployment_of(_setup(num_gpu_blocks_override=900)).given_blocks == 900
    assert deployment_of(_setup(num_gpu_blocks_override=900), num_gpu_blocks=50).given_blocks == 50
    assert deployment_of(_setup()).given_blocks is None
    assert deployment_of(_setup()).blind_blocks() is None


def test_model_of_the_users_own_needs_no_catalogue(tmp_path: Path) -> None:
    trace = workload(5)
    found = deployment_of(_setup(model=str(tmp_path / "nowhere"))).engines(trace, 10_000)
    assert found.engine.max_model_len == int((trace.input_tokens + trace.output_tokens).max()) + 1


@pytest.mark.parametrize(
    ("model", "in_lock_step", "note"),
    [
        (None, False, "the log names no model"),
        ("no/such-model", False, "that do not wait for each other"),
        ("Qwen/Qwen3-32B", False, "that do not wait for each other"),
        ("Qwen/Qwen3-30B-A3B", True, "2 ranks in lock step"),
    ],
)
def test_data_parallel_ranks_are_replayed_and_told(
    model: str | None, in_lock_step: bool, note: str
) -> None:
    deployment = deployment_of(_setup(data_parallel_size=2, max_num_seqs=8, model=model))
    ranks = deployment.engines(workload(5), 10_000).ranks
    assert (ranks.number, ranks.in_lock_step, ranks.padded_up_to) == (2, in_lock_step, 16)
    assert ranks.rule is not None
    assert note in rank_notes(deployment)[0]
    assert rank_notes(deployment_of(_setup(data_parallel_size=None))) == []


def test_ranks_are_balanced_as_the_set_ups_version_does() -> None:
    old, new = (
        deployment_of({**_setup(version, data_parallel_size=2)}).ranks.rule
        for version in ("0.19.0", "0.28.0")
    )
    assert old is not None and not (old.rotates or old.counts_in_flight)
    assert new is not None and new.rotates and new.counts_in_flight


def test_experts_of_a_dense_model_cannot_be_spread() -> None:
    setup = _setup(model="Qwen/Qwen3-32B", enable_expert_parallel=True)
    with pytest.raises(ConfigError, match="expert_parallel: Qwen/Qwen3-32B has no experts"):
        deployment_of(setup).engines(workload(5), 10_000)


@pytest.mark.parametrize("number", [0, "2", True])
def test_a_number_of_engines_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(ConfigError, match=r"setup\.engine_kwargs: [\s\S]*data_parallel"):
        deployment_of(_setup(data_parallel_size=number))


def test_pipelines_are_refused() -> None:
    with pytest.raises(ConfigError, match="pipeline_parallel_size: 2; engines of one stage"):
        deployment_of(_setup(pipeline_parallel_size=2))


def test_null_is_as_good_as_left_out() -> None:
    names = ("max_num_seqs", "block_size", "max_model_len", "quantization", "kv_cache_dtype")
    silent = deployment_of(_setup(), hardware="l4")
    assert deployment_of(_setup(**dict.fromkeys(names)), hardware="l4") == silent


def test_limits_of_a_step_default_to_the_gpus() -> None:
    def limits(hardware: str) -> tuple[int, int]:
        engine = deployment_of(_setup(), hardware=hardware).engine
        return engine.max_num_seqs, engine.max_num_batched_tokens

    assert limits("rtx_4090") == limits("a100_sxm") == (256, 2048)
    assert limits("h100_sxm") == (1024, 8192)
    assert limits("b200_sxm") == (1024, 16384)


def test_captured_graphs_are_the_set_ups_own() -> None:
    stated = deployment_of(_setup(cudagraph_capture_sizes=[8, 1, 4]), hardware="l4")
    compiled = deployment_of(
        _setup(compilation_config={"cudagraph_capture_sizes": [1, 4, 8]}), hardware="l4"
    )
    assert stated.graph_sizes == compiled.graph_sizes == (1, 4, 8)
    none = _setup(compilation_config={"cudagraph_mode": "NONE"})
    assert deployment_of(none, hardware="l4").graph_sizes == ()


def test_number_formats_go_by_our_names() -> None:
    assert deployment_of(_setup(quantization="awq_marlin")).engine.quantization == "awq"
    assert deployment_of(_setup(quantization="compressed-tensors")).engine.quantization is None
    assert deployment_of(_setup(kv_cache_dtype="fp8_e4m3")).engine.kv_cache_dtype == "fp8"


def test_both_loops_are_possible_where_the_set_up_is_silent() -> None:
    assert deployment_of(_setup()).loops == (True, False)
    assert deployment_of(_setup("0.11.2")).loops == (False, True)
    assert deployment_of(_setup(async_scheduling=False)).loops == (False,)


def test_hardware_goes_by_its_usual_name() -> None:
    deployment = deployment_of(_setup(), hardware="RTX 4090")
    assert deployment.hardware == "rtx_4090" and hardware_notes(deployment) == []


def test_a_name_of_several_cards_is_said_in_the_notes() -> None:
    deployment = deployment_of({"hardware": "A100"})
    assert deployment.hardware == "a100_sxm"
    assert "a100_sxm_40gb" in hardware_notes(deployment)[0]
    assert hardware_notes(deployment_of({})) == []


def test_a_cpu_has_neither_graphs_nor_tables_and_does_not_overlap(tmp_path: Path) -> None:
    measured = read_measurements(write(tmp_path / "log.jsonl", rows(workload(40))))
    deployment = deployment_of(_setup(), model="Qwen/Qwen3-32B", hardware="cpu")
    assert deployment.graph_sizes == () and deployment.blind_blocks() is None
    prior = prior_of(deployment, measured)
    assert [one.fit.knee for one in prior.with_all_knees()] == [1.0]
    unknown = prior_of(deployment_of({}), measured)
    assert [one.fit.knee for one in unknown.with_all_knees()] == [1.0, 2.5]


@pytest.mark.parametrize(
    "engine",
    [
        EngineConfig(),
        EngineConfig(tensor_parallel=4, policy="priority", kv_cache_dtype="fp8", max_num_seqs=9),
        EngineConfig(num_gpu_blocks=70, max_model_len=99, quantization="awq", watermark=0.25),
        EngineConfig(long_prefill_token_threshold=7, max_num_active_seqs=3, async_scheduling=False),
    ],
)
def test_an_engine_is_read_as_it_was_told(engine: EngineConfig) -> None:
    """And with the loop that it comes to, for a log need not tell the engine's version."""
    told = engine.model_copy(update={"async_scheduling": engine.is_async})
    assert deployment_of({"engine_kwargs": vllm_arguments(engine)}).engine == told
