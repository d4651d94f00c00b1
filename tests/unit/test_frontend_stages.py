"""The frontend's stages in the twin: what takes how long, and who is where meanwhile."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import equal_workers
from probing import Ask, trace_of

from dynosim.build.cluster import cluster_spec
from dynosim.build.engine import prepare
from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.metrics_recorder import MetricsRecorder
from dynosim.config import RunConfig, load_run
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.planner.frontend_metrics import ACTIVE_REQUESTS, STAGE_REQUESTS, TTFT, sample_name
from dynosim.records import RunResult
from dynosim.router.frontend import FrontendSpec
from dynosim.timing.formulas import FixedModel
from dynosim.workload.load import NEVER, LoadDriver

LABELS = FrontendLabels("test", "m")
SPEC = EngineSpec(num_gpu_blocks=400, max_model_len=1000, block_size=4)
STAGES = FrontendSpec(
    preprocess_ms=10.0, preprocess_us_per_token=500.0, route_ms=3.0, dispatch_ms=2.0
)


def cluster_behind(frontend: FrontendSpec | None) -> ClusterSpec:
    return replace(equal_workers(SPEC, FixedModel(10.0, 5.0)), frontend=frontend)


def run(*asks: Ask, frontend: FrontendSpec = STAGES, **options: Any) -> RunResult:
    return simulate(trace_of(asks, 4), cluster_behind(frontend), RunOptions(**options))


def test_every_stage_counts_into_the_time_to_the_first_token() -> None:
    """8 tokens: 10 + 8 * 0.5, 3 and 2 ms before the worker has the request."""
    log = run(Ask(0.0, (1, 2), 0, output_tokens=3)).requests
    assert log.arrival_ms.tolist() == [0.0]
    assert log.dispatch_ms.tolist() == [19.0] == log.scheduled_ms.tolist()
    assert log.first_token_ms.tolist() == [29.0]
    assert log.finish_ms.tolist() == [39.0]


def test_a_short_prompt_overtakes_a_long_one() -> None:
    """200 tokens take 10 + 100 + 5 ms, 8 tokens 19."""
    log = run(Ask(0.0, tuple(range(50)), 0), Ask(4.0, (1, 2), 0)).requests
    assert log.dispatch_ms.tolist() == [115.0, 23.0]
    assert log.first_token_ms.tolist() == [125.0, 33.0]


def test_in_a_closed_loop_the_next_one_passes_them_too() -> None:
    asks = [Ask(0.0, (1, 2), 0, output_tokens=3)] * 3
    log = run(*asks, concurrency=1).requests
    assert log.arrival_ms.tolist() == [0.0, 39.0, 78.0]
    assert log.finish_ms.tolist() == [39.0, 78.0, 117.0]


def test_before_it_has_started_a_frontend_takes_nobody() -> None:
    """At 100 ms it takes who has come at 0 and 60; at 130 the next one."""
    spec = replace(STAGES, startup_ms=100.0)
    log = run(*[Ask(at_ms, (1, 2), 0) for at_ms in (0.0, 60.0, 130.0)], frontend=spec).requests
    assert log.arrival_ms.tolist() == [0.0, 60.0, 130.0]
    assert log.dispatch_ms.tolist() == [119.0, 119.0, 149.0]


def test_clients_give_up_as_they_would_have() -> None:
    """It came at 0, so it is over at 30 ms, after the first token and before the last one."""
    spec = FrontendSpec(route_ms=19.0)
    log = run(Ask(0.0, (1, 2), 0, output_tokens=9), frontend=spec, client_timeout_ms=30.0).requests
    assert log.gave_up_ms is not None and log.gave_up_ms.tolist() == [30.0]
    assert log.first_token_ms.tolist() == [29.0]


def scraped(*at_ms: float) -> tuple[list[dict[str, float]], Callable[..., str]]:
    recorder = MetricsRecorder(4.0, LABELS)
    asks = [Ask(one, (1, 2), 0, output_tokens=3) for one in at_ms]
    simulate(trace_of(asks, 4), cluster_behind(STAGES), processes=[recorder])

    def of(name: str, **labels: str) -> str:
        return sample_name(name, {"dynamo_namespace": "test", **labels})

    return [scrape.values for scrape in recorder.series.scrapes()], of


def test_the_gauge_tells_who_is_in_which_stage() -> None:
    """14 ms preprocessed, 3 routed, 2 dispatched; at the worker from 19 to 39 ms."""
    scrapes, of = scraped(0.0, 7.0)
    stages = [
        tuple(values[of(STAGE_REQUESTS, stage=stage, phase="")] for stage in
              ("preprocess", "route", "dispatch"))
        for values in scrapes
    ]  # fmt: skip
    # At 0, 4, ... ms. The first is preprocessed until 14, routed until 17; the second until 21, 24.
    assert stages[:8] == [
        (1, 0, 0), (1, 0, 0), (2, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 0, 2), (0, 0, 2)
    ]  # fmt: skip
    active = [values[of(ACTIVE_REQUESTS, model="m")] for values in scrapes]
    assert active == [sum(counts) for counts in stages]
    total = scrapes[-1][of(f"{TTFT}_sum", model="m")]
    # The second one's prompt is computed beside a decode, from 29 to 44.
    assert total == pytest.approx((29.0 + 37.0) / 1e3)


def test_held_requests_go_on_through_the_stages() -> None:
    trace = trace_of([Ask(0.0, (1, 2), 0), Ask(50.0, (1, 2), 0)], 4)
    load = StagedLoad(LoadDriver(trace), trace.input_tokens, STAGES)
    load.hold()
    assert load.next_ms == NEVER
    # At 65 ms the first one is through and waits, the second one is routed; at 68 dispatched.
    assert [load.in_stages(at_ms) for at_ms in (5.0, 65.0, 68.0, 70.0)] == [
        (1, 0, 0), (0, 2, 0), (0, 1, 1), (0, 2, 0)
    ]  # fmt: skip
    load.release()
    assert (load.next_ms, load.pop(), load.came_ms) == (19.0, 0, 0.0)
    assert (load.next_ms, load.pop(), load.came_ms) == (69.0, 1, 50.0)
    assert load.next_ms == NEVER


def test_times_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"frontend\.route_ms: expected at least 0, got -1"):
        FrontendSpec(route_ms=-1.0)


CONFIG: dict[str, Any] = {
    "workload": {"synthetic": {"requests": 3, "isl": 8, "osl": 2, "rate_rps": 1}},
    "engine": {"num_gpu_blocks": 100},
    "timing": {"kind": "fixed", "prefill_ms": 10, "decode_ms": 5},
    "cluster": {"frontend": {"preprocess_ms": 4.0}},
}


def built(**changes: Any) -> FrontendSpec | None:
    config = RunConfig.of(CONFIG | changes)
    return cluster_spec(config, prepare(config)).frontend


def test_a_plan_says_it() -> None:
    keys = {name: float(place) for place, name in enumerate(FrontendSpec.__slots__)}
    assert built(cluster={"frontend": keys}) == FrontendSpec(**keys)
    assert built(cluster={"frontend": {}}) is None
    assert built(cluster={}) is None


def test_the_way_in_is_not_counted_twice() -> None:
    """Fitted step times may have the frontend's work in their own way in; who knows says so."""
    config = RunConfig.of(CONFIG)
    prepared = prepare(config)
    prepared.timing.ingress_ms = 5.0
    with pytest.raises(ConfigError, match=r"way into the engine already, of 5 ms.*ingress_ms"):
        cluster_spec(config, prepared)
    assert built(timing=CONFIG["timing"] | {"ingress_ms": 5.0}) == FrontendSpec(preprocess_ms=4.0)
    alone = RunConfig.of(CONFIG | {"cluster": {"frontend": {"startup_ms": 4.0}}})
    assert cluster_spec(alone, prepared).frontend == FrontendSpec(startup_ms=4.0)


@pytest.mark.parametrize(
    ("keys", "timeout_ms", "message"),
    [
        ({"preprocess_us_per_token": 1.0}, 100.0, "cluster.frontend.preprocess_us_per_token"),
        ({"startup_ms": 1.0}, 100.0, "cluster.frontend.startup_ms"),
        ({"preprocess_ms": 60.0, "route_ms": 40.0}, 100.0, "workload.client_timeout_ms"),
    ],
)
def test_nobody_gives_up_in_the_frontend(
    tmp_path: Path, keys: dict[str, float], timeout_ms: float, message: str
) -> None:
    workload = CONFIG["workload"] | {"client_timeout_ms": timeout_ms}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(CONFIG | {"workload": workload, "cluster": {"frontend": keys}}))
    with pytest.raises(ConfigError, match=message):
        load_run(file)


def test_a_load_of_nothing() -> None:
    load = StagedLoad(LoadDriver(trace_of([], 4)), np.zeros(0, np.int64), STAGES)
    assert load.next_ms == NEVER and load.in_stages(5.0) == (0, 0, 0)
