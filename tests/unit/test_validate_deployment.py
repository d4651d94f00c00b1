"""From a log's set-up to the engine that is replayed."""

from typing import Any

import pytest
from recorded_runs import workload

from dynosim.errors import ConfigError
from dynosim.validate.deployment import deployment_of


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


def test_model_of_the_users_own_needs_no_catalogue() -> None:
    trace = workload(5)
    spec = deployment_of(_setup(model="models/tiny")).spec(trace, 10_000)
    assert spec.max_model_len == int((trace.input_tokens + trace.output_tokens).max()) + 1


def test_several_engines_in_one_log_are_refused() -> None:
    with pytest.raises(ConfigError, match="data_parallel_size: 2; one engine is replayed"):
        deployment_of(_setup(data_parallel_size=2))
