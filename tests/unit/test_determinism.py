"""The same configuration, trace and seed give the same bytes, in whatever process."""

import hashlib
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
from clusters import run_twin

from dynosim.engine.spec import EngineSpec
from dynosim.records import RequestLog, StepLog
from dynosim.router.knobs import AffinitySpec, CostSpec, RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.formulas import PolynomialModel
from dynosim.workload.synthetic import synthesize

LOAD = {
    "sessions": 30,
    "turns": {"dist": "geometric", "mean": 2},
    "isl": {"dist": "lognormal", "mean": 300, "std": 200, "max": 1200},
    "osl": {"dist": "exponential", "mean": 20, "min": 1, "max": 100},
    "think_time_ms": {"dist": "exponential", "mean": 200},
    "rate_rps": 12,
    "shared_prefix_ratio": 0.6,
    "prefix_groups": 4,
    "block_size": 32,
    "max_context_tokens": 3000,
}


def digest(seed: int) -> str:
    """A run that draws whatever can be drawn, as a number."""
    trace = synthesize(LOAD, seed)
    engine = EngineSpec(num_gpu_blocks=260, max_model_len=4000)
    settings = RouterSpec(
        engine.block_size,
        mode="kv",
        cost=CostSpec(temperature=0.5),
        affinity=AffinitySpec(300.0, "soft"),
        seed=seed,
    )
    routing = RoutingSpec(
        settings,
        events=DelaySpec(delay_ms=2.0, jitter_ms=20.0, loss=0.1),
        frontends=2,
        sync_delay_ms=4.0,
        records_events=True,
    )
    result = run_twin(
        trace, engine=engine, timing=PolynomialModel(4144), num_workers=3, routing=routing
    )
    hasher = hashlib.sha256(repr(result.routing).encode() + repr(result.end_ms).encode())
    for log, kind in ((result.requests, RequestLog), (result.steps, StepLog)):
        for column in fields(kind):
            value = getattr(log, column.name)
            is_array = isinstance(value, np.ndarray)
            hasher.update(value.tobytes() if is_array else repr(value).encode())
    assert result.kv_events is not None
    hasher.update(result.kv_events.time_ms.tobytes() + result.kv_events.num_blocks.tobytes())
    return hasher.hexdigest()


def test_a_run_gives_the_same_bytes_in_another_process_with_another_hash_seed(root: Path) -> None:
    paths = os.pathsep.join(str(path) for path in (root, root / "tests", root / "tests" / "unit"))
    environment = os.environ | {"PYTHONPATH": paths}
    environment["PYTHONHASHSEED"] = "4321"
    told = subprocess.run(
        [sys.executable, "-c", "import test_determinism as t; print(t.digest(7))"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.strip() == digest(7)


def test_another_seed_gives_another_run() -> None:
    assert digest(7) != digest(8)
