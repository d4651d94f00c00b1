"""`dynosim validate`: intervals, two columns, and what is said of errors.

Engines serve in virtual time; a real one's figures would depend on what else the machine does.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import TRUE
from stub_server import StubServer
from virtual_engine import VirtualEngine, own_page, serve_commands

from dynosim.config import load_run
from dynosim.errors import ConfigError
from dynosim.experiment.run import prepare
from dynosim.silicon.fitted_file import write_fit
from dynosim.timing.fitted import Fit, FittedParameters
from dynosim_runtime.validate.command import validate

DRAWS = tuple(replace(TRUE, weights_ms=8.0 + 0.1 * number) for number in range(-8, 9))
PLAN = """
name: honest
workload:
  synthetic: {{requests: {requests}, isl: {{dist: lognormal, mean: 200, std: 100, max: 600}},
              osl: {{dist: lognormal, mean: 20, std: 10, min: 2, max: 60}}, rate_rps: {rate}}}
engine: {{num_gpu_blocks: {blocks}, max_num_seqs: 16, max_num_batched_tokens: 1024,
         max_model_len: 1024}}
timing: {{kind: fitted, file: {timing}}}
cluster: {{workers: {workers}}}
"""


def plan_file(tmp_path: Path, name: str, parameters: FittedParameters, **values: Any) -> Path:
    timing = tmp_path / f"{name}.json"
    write_fit(Fit(parameters=parameters, knee=2.5, draws=DRAWS), timing)
    given = {"requests": 40, "rate": 8, "blocks": 500, "workers": 1, **values}
    path = tmp_path / f"{name}.yaml"
    path.write_text(PLAN.format(timing=timing, **given))
    return path


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Serve a plan at every URL, in virtual time."""

    def serve(plan: Path) -> None:
        prepared = prepare(load_run(plan))
        serve_commands(monkeypatch, VirtualEngine(prepared.engine, prepared.timing, page=own_page))

    return serve


def document_of(
    plan: Path, url: str, capsys: pytest.CaptureFixture[str], **options: Any
) -> dict[str, Any]:
    given: dict[str, Any] = {
        "url": url, "trace": None, "out": None, "mock": False, "real": False, "model": None,
        "engine": None, "engine_python": None, "speedup": 1.0, "warmup": 2, "aiperf": None,
        "as_json": True, "intervals": 4, **options,
    }  # fmt: skip
    assert validate(plan, [], **given) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_every_metric_has_an_interval_and_equal_capacities_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], virtual: Callable[[Path], None]
) -> None:
    plan = plan_file(tmp_path, "plan", TRUE)
    virtual(plan)
    document = document_of(plan, "http://virtual", capsys)
    for row in document["metrics"]:
        low, high = row["interval"]
        assert low <= high
        assert row["is_inside_interval"] is (low <= row["measured"] <= high)
        assert row["capacity_given"] is None
        assert row["measured"] == pytest.approx(row["predicted"], rel=1e-6), row["key"]
    assert document["num_gpu_blocks_given"] == 500
    assert document["predictions"]["blind"]["num_gpu_blocks"] == 500
    assert document["predictions"]["capacity_given"] is None
    assert any("both are the same" in note for note in document["notes"])
    assert document["predictions"]["blind"]["intervals"]["replays"] == 4
    attribution = document["attribution"]
    parts = {"none", "arrival jitter", "scheduling", "step time", "host overhead"}
    assert parts < set(attribution["mean_abs_error"])
    assert "has the deployment's capacity already" in attribution["not_swapped"]["KV capacity"]


def test_another_clock_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], virtual: Callable[[Path], None]
) -> None:
    plan = plan_file(tmp_path, "plan", TRUE)
    virtual(plan)
    with pytest.raises(ConfigError, match=r"--speedup 4: .*use --speedup 1"):
        document_of(plan, "http://virtual", capsys, speedup=4.0)


def test_another_capacity_makes_a_second_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], virtual: Callable[[Path], None]
) -> None:
    load = {"requests": 60, "rate": 40}
    plan = plan_file(tmp_path, "plan", TRUE, blocks=5000, **load)
    served = plan_file(tmp_path, "served", TRUE, blocks=70, **load)
    virtual(served)
    document = document_of(plan, "http://virtual", capsys)
    predictions = document["predictions"]
    assert predictions["blind"]["num_gpu_blocks"] == 5000
    assert predictions["capacity_given"]["num_gpu_blocks"] == 70
    assert any("tell 70 KV blocks, blind are 5,000" in note for note in document["notes"])
    rows = {row["key"]: row for row in document["metrics"]}
    latency = rows["mean_e2e_latency_ms"]
    assert latency["predicted"] < latency["capacity_given"]["predicted"]
    assert latency["capacity_given"]["interval"] is not None
    assert "KV capacity" in document["attribution"]["mean_abs_error"]


async def test_what_cannot_be_swapped_is_said_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_file(tmp_path, "plan", TRUE, requests=10, rate=100)
    stub = StubServer()
    async with stub.serving() as url:
        document = await asyncio.to_thread(document_of, plan, url, capsys, intervals=0)
    assert all(row["interval"] is None for row in document["metrics"])
    assert any("does not tell its KV blocks" in note for note in document["notes"])
    skipped = document["attribution"]["not_swapped"]
    assert skipped["KV capacity"] == "the deployment does not tell its KV blocks"
    assert skipped["step time"] == "10 requests are too few to fit (30 are needed)"
    several = plan_file(tmp_path, "several", TRUE, requests=10, rate=100, workers=2)
    async with stub.serving() as url:
        document = await asyncio.to_thread(document_of, several, url, capsys, intervals=0)
    assert "several were measured" in document["attribution"]["not_swapped"]["host overhead"]


async def test_ctrl_c_behind_the_measurement_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dynosim_runtime.validate.judge.prediction_intervals", interrupt)
    plan, out = plan_file(tmp_path, "plan", TRUE, requests=10, rate=100), tmp_path / "out"
    stub = StubServer()
    async with stub.serving() as url:
        call: Callable[[], int] = lambda: validate(  # noqa: E731
            plan, [], url=url, trace=None, out=out, mock=False, real=False, model=None,
            engine=None, engine_python=None, speedup=1.0, warmup=0, aiperf=None, as_json=True,
        )  # fmt: skip
        assert await asyncio.to_thread(call) == 130
    document = json.loads((out / "validation.json").read_text())
    assert document["metrics"][0]["measured"] is not None
    assert any("interrupted after the measurement" in note for note in document["notes"])
    assert np.isfinite(document["metrics"][0]["predicted"])
