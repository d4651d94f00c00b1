"""What is predicted of a plan whose engine runs, although it does not fit by our estimate."""

from typing import Any

import pytest

from dynosim.build.workload import load_trace
from dynosim.config.loading import run_config_from_dict
from dynosim.experiment.run import run as simulate
from dynosim_runtime.validate.running import plan_of_running


def plan(model: str, **engine: Any) -> Any:
    return run_config_from_dict(
        {
            "model": model,
            "hardware": "rtx_4090",
            "workload": {"synthetic": {"requests": 4, "isl": 100, "osl": 20, "rate_rps": 1}},
            "engine": engine,
            "timing": {"kind": "fixed", "prefill_ms": 5, "decode_ms": 2},
        }
    )


@pytest.mark.parametrize(
    ("engine", "blocks"), [({}, 9), ({"max_model_len": 1600}, 101)]
)  # its longest request of 120 tokens and the next one, or its context
def test_an_engine_that_runs_is_predicted(engine: dict[str, Any], blocks: int) -> None:
    config = plan("Qwen/Qwen3-32B", **engine)
    trace = load_trace(config)
    predicted, (said,) = plan_of_running(config, trace)
    assert predicted.engine.num_gpu_blocks == blocks
    assert f"{blocks} are taken" in said
    assert simulate(predicted, trace=trace).report["completed_requests"] == 4


@pytest.mark.parametrize("engine", [{"num_gpu_blocks": 50}, {"max_model_len": 640}])
def test_a_plan_that_fits_is_predicted_as_it_is(engine: dict[str, Any]) -> None:
    config = plan("Qwen/Qwen3-4B", **engine)
    assert plan_of_running(config, load_trace(config)) == (config, [])


def test_an_engine_takes_as_much_context_as_its_cache_holds() -> None:
    config = plan("Qwen/Qwen3-8B", gpu_memory_utilization=0.9)
    trace = load_trace(config)
    predicted, (said,) = plan_of_running(config, trace)
    blocks = predicted.engine.num_gpu_blocks
    assert isinstance(blocks, int)
    room = (blocks - 1) * 16
    assert predicted.engine.max_model_len == room < 40_960
    assert said == f"max_model_len: the {room:,} tokens that the cache holds"
    assert simulate(predicted, trace=trace).report["completed_requests"] == 4
