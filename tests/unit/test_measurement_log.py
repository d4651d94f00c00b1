"""What a validated run leaves behind can be calibrated on."""

import json
from array import array
from pathlib import Path

import numpy as np
import pytest

from dynosim.build.workload import load_trace
from dynosim.config import load_run
from dynosim.fit.deployment import deployment_of
from dynosim.fit.log_file import read_measurements
from dynosim.fit.point_gaps import roundest
from dynosim_runtime.measure.load import LoadRun
from dynosim_runtime.measure.measurement_log import measurement_log
from dynosim_runtime.requests import RequestRecord

NUM_REQUESTS = 5


def served(
    tmp_path: Path,
    *,
    workers: int = 1,
    status: str = "completed",
    num_gpu_blocks: int | str = 77,
    told: int | None = None,
) -> bytes | None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        json.dumps(
            {
                "workload": {
                    "synthetic": {
                        "requests": NUM_REQUESTS, "isl": 100, "osl": 4, "rate_rps": 2,
                        "shared_prefix_ratio": 0.7, "prefix_groups": 1, "block_size": 32,
                    }
                },
                "engine": {
                    "block_size": 32,
                    "num_gpu_blocks": num_gpu_blocks,
                    "async_scheduling": False,
                },
                "timing": {"kind": "linear", "base_ms": 5.0},
                "cluster": {"workers": workers},
                "model": "Qwen/Qwen3-32B",
                "hardware": "h200_sxm",
            }
        )
    )  # fmt: skip
    config = load_run(plan, [])
    trace = load_trace(config)
    records = [
        RequestRecord(
            request_id=str(index),
            arrival_ms=float(arrival_ms),
            first_token_ms=float(arrival_ms) + 10,
            finish_ms=float(arrival_ms) + 25,
            input_tokens=100,
            output_tokens=4,
            status=status,
        )
        for index, arrival_ms in enumerate(trace.arrival_ms)
    ]
    run = LoadRun(records, [array("d")] * NUM_REQUESTS, np.zeros(NUM_REQUESTS))
    return measurement_log(config, trace, run, num_gpu_blocks=told)


def test_the_log_says_what_was_asked_when_and_of_which_engine(tmp_path: Path) -> None:
    text = served(tmp_path)
    assert text is not None
    file = tmp_path / "measurements.jsonl"
    file.write_bytes(text)
    measured = read_measurements(file)
    assert measured.clock == "clients"
    assert measured.ttft_ms.tolist() == pytest.approx([10.0] * NUM_REQUESTS)
    assert measured.decode_ms.tolist() == pytest.approx([15.0] * NUM_REQUESTS)
    assert measured.block_tokens == 32
    assert all(len(row) == 3 for row in measured.hashes)  # the fourth block is not full
    assert len({row[:2] for row in measured.hashes}) == 1  # the shared prefix
    kwargs = measured.setup["engine_kwargs"]
    assert (kwargs["num_gpu_blocks_override"], kwargs["async_scheduling"]) == (77, False)


def test_capacity_that_the_plan_leaves_to_the_engine_is_what_it_tells(tmp_path: Path) -> None:
    for given, told, expected in (("auto", 901, 901), ("auto", None, None), (77, 901, 77)):
        text = served(tmp_path, num_gpu_blocks=given, told=told)
        assert text is not None
        setup = json.loads(text.splitlines()[0])["setup"]
        assert deployment_of(setup).given_blocks == expected


def test_a_log_that_would_not_be_true_is_not_written(tmp_path: Path) -> None:
    assert served(tmp_path, workers=2) is None
    assert served(tmp_path, status="failed") is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(501, 527, 512), (2000, 2100, 2048), (97, 97, 97), (999, 1001, 1000)],
)
def test_a_budget_between_two_bounds_is_a_round_one(low: int, high: int, expected: int) -> None:
    assert roundest(low, high) == expected
