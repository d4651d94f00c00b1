"""What a run file leaves out of its engine is its version's default, wherever it is asked."""

from pathlib import Path
from typing import Any

import pytest

from dynosim.build.engine import prepare
from dynosim.build.engine_command import vllm_flags
from dynosim.config import load_run
from dynosim.config.engine import EngineConfig
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.experiment.run import run


def config(*, timing: dict[str, Any] | None = None, **engine: Any) -> RunConfig:
    return RunConfig.of(
        {
            "workload": {"synthetic": {"requests": 20, "isl": 100, "osl": 10, "rate_rps": 5}},
            "engine": {"num_gpu_blocks": 500, **engine},
            "timing": {"kind": "fixed", "prefill_ms": 20, "decode_ms": 4, **(timing or {})},
        }
    )


@pytest.mark.parametrize(
    ("engine", "is_async"),
    [
        ({}, True),
        ({"version": "0.13.2"}, False),
        ({"version": "0.14.0"}, True),
        ({"version": "0.19.0", "async_scheduling": False}, False),
        ({"version": "0.10", "async_scheduling": True}, True),
    ],
)
def test_the_loop_is_the_versions(engine: dict[str, Any], is_async: bool) -> None:
    section = EngineConfig.of(engine)
    assert section.is_async is is_async
    assert prepare(config(**engine)).engine.pipeline_depth == (2 if is_async else 1)
    flag = "--async-scheduling" if is_async else "--no-async-scheduling"
    assert flag in vllm_flags(section, served_model_name="m")


def test_a_request_waits_for_the_step_that_runs_and_one_more_by_default() -> None:
    sync = run(config(async_scheduling=False)).report
    pipelined = run(config()).report
    assert pipelined["mean_ttft_ms"] > sync["mean_ttft_ms"]


def test_the_client_path_is_seen_by_clients_alone() -> None:
    plain = run(config()).report
    seen = run(config(timing={"ingress_ms": 4.0, "egress_ms": 1.5})).report
    assert seen["mean_ttft_ms"] == pytest.approx(plain["mean_ttft_ms"] + 5.5)
    assert seen["mean_tpot_ms"] == pytest.approx(plain["mean_tpot_ms"])


def test_what_is_no_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "workload: {trace: t.jsonl}\nengine:\n  num_gpu_blocks: 100\n  version: newest\n"
        "timing: {kind: polynomial}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    assert "engine.version: expected a version such as 0.19.0, got 'newest'" in str(caught.value)
