"""From every argument of a set-up to the engine that is replayed, and its capacities."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import rows, workload, write

from dynosim.config.engine import EngineConfig
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.fit.capacity import start_of
from dynosim.fit.deployment import Deployment, deployment_of, rank_notes
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import Measurements
from dynosim.fit.needed import needed_blocks
from dynosim.silicon import resolve_num_gpu_blocks

MODEL = "Qwen/Qwen3-8B"


def measurements(folder: Path) -> Measurements:
    return read_measurements(write(folder / "log.jsonl", rows(workload(40))))


def deployed(
    version: str = "0.19.0", /, *, setup: dict[str, Any] | None = None, **kwargs: Any
) -> Deployment:
    names = {name: kwargs.pop(name) for name in ("hardware", "model") if name in kwargs}
    whole = {"vllm_version": version, "engine_kwargs": kwargs, **(setup or {})}
    return deployment_of(whole, **names)


ARGUMENTS: dict[str, Any] = {
    "block_size": 32,
    "max_num_seqs": 77,
    "max_num_batched_tokens": 3000,
    "max_model_len": 4321,
    "enable_prefix_caching": False,
    "enable_chunked_prefill": True,
    "long_prefill_token_threshold": 99,
    "gpu_memory_utilization": 0.77,
    "async_scheduling": False,
}


def test_arguments_of_the_same_name_are_taken_over() -> None:
    engine = deployed(**ARGUMENTS).engine
    assert {name: getattr(engine, name) for name in ARGUMENTS} == ARGUMENTS


@pytest.mark.parametrize(
    ("kwargs", "field", "value"),
    [
        ({}, "tensor_parallel", 1),
        ({"tensor_parallel_size": 4}, "tensor_parallel", 4),
        ({"scheduling_policy": "priority"}, "policy", "priority"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype", "fp8"),
        ({"kv_cache_dtype": "fp8_e5m2"}, "kv_cache_dtype", "fp8"),
        ({"kv_cache_dtype": "auto"}, "kv_cache_dtype", EngineConfig().kv_cache_dtype),
        ({"quantization": "fp8"}, "quantization", "fp8"),
        ({"quantization": "gptq_marlin"}, "quantization", "gptq"),
        ({"quantization": "modelopt_fp4"}, "quantization", "nvfp4"),
        ({"quantization": "bitsandbytes"}, "quantization", "int4"),
        ({"quantization": "modelopt"}, "quantization", None),  # as the checkpoint says
        ({"quantization": "fbgemm_fp8"}, "quantization", None),
        ({"max_model_len": "auto"}, "max_model_len", None),
        ({"max_model_len": -1}, "max_model_len", None),
        ({}, "num_gpu_blocks", "auto"),
        ({"num_gpu_blocks": 55}, "num_gpu_blocks", 55),
        ({"num_gpu_blocks": 55, "num_gpu_blocks_override": 66}, "num_gpu_blocks", 66),
    ],
)
def test_arguments_under_our_own_names(kwargs: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(deployed(**kwargs).engine, field) == value


def test_blocks_may_stand_beside_the_arguments() -> None:
    assert deployed(setup={"num_gpu_blocks": 44}).given_blocks == 44
    assert deployed(setup={"num_gpu_blocks": 44}, num_gpu_blocks=55).given_blocks == 55


@pytest.mark.parametrize(
    ("version", "is_async"),
    [("0.13.9", False), ("0.14.0", True), ("0.14", True), ("1.0", True), ("0.9.1", False),
     ("", False), ("main", False), ("0.19.0rc1", True)],
)  # fmt: skip
def test_the_loop_goes_by_the_version(version: str, is_async: bool) -> None:
    found = deployed(version)
    assert found.engine.async_scheduling is is_async
    assert found.loops == (is_async, not is_async)


@pytest.mark.parametrize(
    ("hardware", "seqs", "tokens"),
    [
        ("l40s", 256, 2048),  # 45 GiB
        ("a100_sxm", 256, 2048),  # 80 GiB, but an A100
        ("h100_sxm", 1024, 8192),
        ("h200_sxm", 1024, 8192),  # 140 GiB
        ("b200_sxm", 1024, 16384),  # 179 GiB
    ],
)
def test_limits_of_a_step_by_the_gpu(hardware: str, seqs: int, tokens: int) -> None:
    found = deployed(hardware=hardware)
    assert (found.engine.max_num_seqs, found.engine.max_num_batched_tokens) == (seqs, tokens)
    assert found.assumed == ("max_num_seqs", "max_num_batched_tokens")
    told = deployed(hardware=hardware, max_num_seqs=9, max_num_batched_tokens=99)
    assert (told.engine.max_num_seqs, told.engine.max_num_batched_tokens) == (9, 99)
    assert told.assumed == ()


@pytest.mark.parametrize("hardware", [None, "cpu", "never_heard_of"])
def test_limits_of_a_step_without_a_known_gpu_are_the_engines(hardware: str | None) -> None:
    engine, plain = deployed(hardware=hardware).engine, EngineConfig()
    assert engine.max_num_seqs == plain.max_num_seqs
    assert engine.max_num_batched_tokens == plain.max_num_batched_tokens


def test_names_that_the_user_gives_win() -> None:
    setup = {"model": "in/setup", "hardware": "L4"}
    assert deployed(setup=setup).model == "in/setup"
    assert deployed(setup=setup).hardware == "l4"
    found = deployment_of({**setup, "engine_kwargs": {"model": "in/kwargs"}})
    assert (found.model, found.is_model_given) == ("in/kwargs", False)
    given = deployed(setup=setup, model="mine", hardware="H100")
    assert (given.model, given.hardware, given.is_model_given) == ("mine", "h100_sxm", True)


def test_what_tells_of_graphs_and_loops_and_engines() -> None:
    found = deployed(hardware="l4", enforce_eager=True, async_scheduling=True, data_parallel_size=3)
    assert (found.is_eager, found.is_loop_told, found.ranks.number) == (True, True, 3)
    plain = deployed(hardware="l4")
    assert (plain.is_eager, plain.is_loop_told, plain.ranks.number) == (False, False, 1)
    assert found.loops == (True,)
    assert deployed(hardware="cpu").is_cpu and not plain.is_cpu


@pytest.mark.parametrize(
    ("kwargs", "sizes"),
    [
        ({"cudagraph_capture_sizes": [8, 1, 8]}, (1, 8)),
        ({"cuda_graph_sizes": [4, 2]}, (2, 4)),
        ({"cudagraph_capture_sizes": [0, 1], "max_num_seqs": 2}, (1, 2, 4)),  # no such graph
        ({"cudagraph_capture_sizes": [], "max_num_seqs": 2}, (1, 2, 4)),
        ({"compilation_config": {"cudagraph_mode": "none"}}, ()),
        ({"compilation_config": {"cudagraph_mode": "FULL"}, "max_num_seqs": 1}, (1, 2)),
        ({"compilation_config": 3, "max_num_seqs": 1}, (1, 2)),
        (
            {
                "cudagraph_capture_sizes": [1],
                "compilation_config": {"cudagraph_capture_sizes": [9]},
            },
            (1,),
        ),
    ],
)
def test_graphs_of_a_set_up(kwargs: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert deployed(hardware="l4", **kwargs).graph_sizes == sizes


def test_the_engine_that_is_replayed_has_the_knobs_that_were_told() -> None:
    found = deployed(**ARGUMENTS, scheduling_policy="priority", data_parallel_size=2)
    engines = found.engines(workload(5), 1000)
    plain = EngineSpec(num_gpu_blocks=1000, max_model_len=4321)
    told = {knob.name: getattr(engines.engine, knob.name) for knob in fields(EngineSpec)}
    expected = {knob.name: getattr(plain, knob.name) for knob in fields(EngineSpec)}
    shared = {name: value for name, value in ARGUMENTS.items() if name in expected}
    assert told == expected | shared | {"policy": "priority"}
    assert engines.ranks.number == 2
    assert found.engines(workload(5), 1000, is_async=True).engine.async_scheduling is True


@pytest.mark.parametrize(
    ("kwargs", "blocks", "length"),
    [
        ({"max_model_len": 4321}, 1000, 4321),
        ({"max_model_len": 4321}, 100, 99 * 16),  # no more than the cache holds
        ({"model": MODEL}, 10_000, 40_960),  # the model's own
        ({"model": MODEL}, 101, 1600),
        ({"model": "models/nobody_knows"}, 10_000, None),  # the longest request, and one more
        ({}, 10_000, None),
    ],
)
def test_the_longest_sequence(kwargs: dict[str, Any], blocks: int, length: int | None) -> None:
    trace = workload(5)
    longest = int((trace.input_tokens + trace.output_tokens).max()) + 1
    setup = {"model": kwargs.pop("model")} if "model" in kwargs else {}
    spec = deployed(setup=setup, **kwargs).engines(trace, blocks).engine
    assert spec.max_model_len == (length or longest)
    assert spec.num_gpu_blocks == blocks


def test_a_log_may_hold_more_than_the_models_context() -> None:
    trace = workload(2)
    long_inputs = np.array([50_000, 10])
    found = deployed(setup={"model": MODEL})
    longer = replace(trace, input_tokens=long_inputs)
    longest = 50_000 + int(trace.output_tokens[0]) + 1
    assert found.engines(longer, 10_000).engine.max_model_len == longest


def test_capacities_that_follow_from_names() -> None:
    found = deployed(setup={"model": MODEL}, hardware="rtx_4090", num_gpu_blocks=70)
    auto = found.engine.model_copy(update={"num_gpu_blocks": "auto"})
    capacity = resolve_num_gpu_blocks(auto, model=MODEL, hardware="rtx_4090")
    assert found.blind_blocks() == capacity.num_gpu_blocks != 70
    assert found.given_blocks == 70


def test_an_eager_engine_has_more_room() -> None:
    eager, compiled = (
        deployed(setup={"model": MODEL}, hardware="h100", enforce_eager=is_eager).blind_capacity()
        for is_eager in (True, False)
    )
    assert eager is not None and compiled is not None
    assert eager.num_gpu_blocks >= compiled.num_gpu_blocks
    assert eager.breakdown["cuda_graphs_bytes"] == 0


def test_an_engine_that_ran_is_never_without_a_capacity(tmp_path: Path) -> None:
    measured = measurements(tmp_path)
    longest = int((measured.input_tokens + measured.output_tokens).max())
    too_big = deployed(setup={"model": "Qwen/Qwen3-32B"}, hardware="rtx_4090")
    start = start_of(too_big, measured)
    assert start.blocks == too_big.blind_blocks(longest) == -(-longest // 16) + 1
    assert start.warning is not None
    assert "leaves 0 blocks on rtx_4090, yet the engine ran" in start.warning
    fits = deployed(setup={"model": MODEL}, hardware="rtx_4090")
    assert start_of(fits, measured).warning is None


@pytest.mark.parametrize("setup", [{}, {"model": "models/nobody_knows"}])
def test_a_capacity_that_does_not_follow_is_what_the_log_shows(
    tmp_path: Path, setup: dict[str, Any]
) -> None:
    measured = measurements(tmp_path)
    found = deployed(setup=setup, block_size=32)
    start = start_of(found, measured)
    assert start.blocks == needed_blocks(measured, 32)
    assert start.warning is not None and "does not follow" in start.warning


def test_notes_of_ranks() -> None:
    assert rank_notes(deployed(data_parallel_size=1)) == []
    (note,) = rank_notes(deployed(data_parallel_size=3))
    assert note.startswith("3 ranks that do not wait for each other, each with these limits")


def test_arguments_that_no_engine_takes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"setup\.engine_kwargs: "):
        deployed(max_num_seqs="many")
    assert deployed(setup={"engine_kwargs": 3}).engine == deployed().engine
