"""Small facts that clients and tools go by: nvext of answers, served models, AIPerf's results."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynosim_runtime.dialects.nvext import answer_nvext
from dynosim_runtime.errors import ApiError
from dynosim_runtime.http.registry import ModelRegistry
from dynosim_runtime.measure.aiperf import read_aiperf
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer


def test_an_answer_tells_workers_and_times_of_its_record() -> None:
    record = RequestRecord(
        request_id="r",
        arrival_ms=100.0,
        first_token_ms=130.0,
        finish_ms=190.0,
        input_tokens=9,
        output_tokens=4,
        prefill_worker_id=5,
        prefill_dp_rank=0,
        decode_worker_id=6,
        decode_dp_rank=1,
        prefill_wait_time_ms=10.0,
        prefill_time_ms=20.0,
        kv_hit_rate=0.0,
    )
    assert answer_nvext(record, 1_700) == {
        "worker_id": {
            "prefill_worker_id": 5,
            "prefill_dp_rank": 0,
            "decode_worker_id": 6,
            "decode_dp_rank": 1,
        },
        "timing": {
            "request_received_ms": 1_700,
            "prefill_wait_time_ms": 10.0,
            "prefill_time_ms": 20.0,
            "ttft_ms": 30.0,
            "total_time_ms": 90.0,
            "kv_hit_rate": 0.0,
        },
    }
    unknown = RequestRecord(request_id="r", arrival_ms=0.0, input_tokens=1)
    assert answer_nvext(unknown, 7) == {"timing": {"request_received_ms": 7}}


def test_models_are_served_by_name_and_keep_their_age() -> None:
    models, tokenizer = ModelRegistry(), ByteTokenizer()
    with pytest.raises(ApiError, match=r"served: none at the moment") as caught:
        models.get("a")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    models.add("a", tokenizer, 10, created_s=5)
    models.add("a", tokenizer, 20)
    assert (models.get("a").max_model_len, models.get("a").created_s) == (20, 5)
    assert models.only().name == "a"
    models.add("b", tokenizer, 30, created_s=6)
    assert ([model.name for model in models], len(models)) == (["a", "b"], 2)
    with pytest.raises(ApiError, match="since 2 models are served") as caught:
        models.only()
    assert (caught.value.status, caught.value.param) == (400, "model")
    models.remove("a")
    models.remove("a")
    assert models.only().name == "b"


def aiperf_line(**metrics: Any) -> str:
    return json.dumps(
        {
            "metadata": {
                "session_num": 3, "conversation_id": "c",
                "request_start_ns": 5_000_000, "request_end_ns": 9_000_000,
            },
            "metrics": {name: {"value": value} for name, value in metrics.items()},
        }
    )  # fmt: skip


def test_every_field_of_an_aiperf_record(tmp_path: Path) -> None:
    file = tmp_path / "profile_export.jsonl"
    file.write_text(
        aiperf_line(
            time_to_first_token=10.0,
            request_latency=16.0,
            inter_chunk_latency=[2.0, 4.0],
            usage_completion_tokens=5,
            output_sequence_length=4,
            usage_prompt_tokens=70,
            input_sequence_length=64,
            usage_prompt_cache_read_tokens=32,
        )
    )
    run = read_aiperf(file).run
    assert run is not None
    assert run.records == [
        RequestRecord(
            request_id="3",
            session_id="c",
            arrival_ms=0.0,
            dispatch_ms=0.0,
            first_token_ms=10.0,
            finish_ms=16.0,
            input_tokens=70,  # as the server counts, where it does
            output_tokens=5,
            cached_tokens=32,
            status="completed",
        )
    ]
    assert run.token_ms[0].tolist() == [10.0, 12.0, 16.0, 16.0, 16.0]


def test_every_statistic_of_an_aiperf_summary(tmp_path: Path) -> None:
    names = ("avg", "p50", "p90", "p95", "p99", "min", "max", "std")
    metrics = {
        "time_to_first_token": "ttft_ms",
        "time_to_second_token": "ttst_ms",
        "inter_token_latency": "tpot_ms",
        "request_latency": "e2e_latency_ms",
    }
    data: dict[str, Any] = {
        name: {key: 10.0 * number + place for place, key in enumerate(names)}
        for number, name in enumerate(metrics)
    }
    data |= {
        "request_throughput": {"avg": 2.5},
        "output_token_throughput": {"avg": 20.0},
        "total_token_throughput": {"avg": 90.0},
        "request_count": {"avg": 8.0},
        "benchmark_duration": {"avg": 3.5},
        "error_summary": [{"count": 2}, {"count": 3}],
    }
    (tmp_path / "profile_export_aiperf.json").write_text(json.dumps(data))
    ours = ("mean", "median", "p90", "p95", "p99", "min", "max", "std")
    expected = {
        f"{statistic}_{metric}": 10.0 * number + place
        for number, metric in enumerate(metrics.values())
        for place, statistic in enumerate(ours)
    }
    assert read_aiperf(tmp_path).report == expected | {
        "request_throughput_rps": 2.5,
        "output_throughput_tok_s": 20.0,
        "total_throughput_tok_s": 90.0,
        "completed_requests": 8.0,
        "failed_requests": 5,
        "num_requests": 13,
        "duration_ms": 3500.0,
    }
