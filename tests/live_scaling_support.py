"""What drives live controllers in tests: plans, workforces without processes, made-up metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynosim.config import RunConfig
from dynosim.config.loading import run_config_from_dict
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.look import Look
from dynosim.planner.observation import Observation, PoolState
from dynosim.workers.lifecycle import Phase, WorkerEvent
from dynosim_runtime.errors import LiveError
from dynosim_runtime.planner.driver import StopWatch
from dynosim_runtime.planner.lives import LivingWorkers
from dynosim_runtime.planner.workforce import Serving

PLANNER: dict[str, Any] = {
    "optimization_target": "load",
    "max_endpoint": 3,
    "decode_scale_up_kv_rate": 30,
    "decode_scale_down_kv_rate": 5,
    "load_adjustment_interval_ms": 500,
    "throughput_adjustment_interval_ms": 5000,
    "max_metric_age_ms": 5000,
}
"""A planner that goes by the KV in use, twice a second."""


def scaled_plan(planner: Mapping[str, Any] = PLANNER, **sections: Any) -> RunConfig:
    """A plan of small, slow engines: a few requests fill one."""
    return run_config_from_dict(scaled_sections(planner, **sections))


def scaled_sections(planner: Mapping[str, Any] | None = PLANNER, **sections: Any) -> dict[str, Any]:
    """The same as a run file; without a planner if there is none."""
    document = {
        "workload": {"synthetic": {"requests": 1, "isl": 64, "osl": 32, "rate_rps": 1}},
        "timing": {"kind": "linear", "base_ms": 20.0, "per_prefill_token_ms": 0.05},
        "engine": {
            "block_size": 16, "num_gpu_blocks": 200, "max_num_seqs": 8,
            "max_num_batched_tokens": 512, "max_model_len": 512,
        },
        "live": {"ready_timeout_s": 120, "drain_timeout_s": 120},
        "planner": None if planner is None else dict(planner),
        "scaling": {"scrape_interval_ms": 500},
        **sections,
    }  # fmt: skip
    return {name: section for name, section in document.items() if section is not None}


class MadeUpWorkforce:
    """Workers that are ready as soon as they are launched, and gone as soon as they drain."""

    def __init__(self, watch: StopWatch, num_workers: int = 1, most: int = 100) -> None:
        self.wanted = {"workers": num_workers}
        self.done: list[tuple[float, str]] = []
        self._watch = watch
        self._most = most
        self._lives = LivingWorkers()
        self._num_named = 0
        for _ in range(num_workers):
            self._add()

    def _add(self) -> None:
        name = f"worker-{self._num_named}"
        self._num_named += 1
        self._lives.begin(name, "workers", self._watch())
        self._lives.happens(name, WorkerEvent.BECAME_READY, self._watch())

    def serving(self) -> Sequence[Serving]:
        return ()

    def pool(self, name: str, num_requests: Mapping[int, int]) -> PoolState:
        return self._lives.pool(name, self.wanted[name], num_requests)

    async def launch(self, pool: str) -> None:
        if len(self._lives.lives(Phase.READY)) >= self._most:
            raise LiveError("no GPU is left")
        self._add()
        self.done.append((self._watch(), "launched"))

    def drain(self, worker_id: int) -> None:
        name = self._lives.name_of(worker_id)
        assert name is not None
        self._lives.happens(name, WorkerEvent.TOLD_TO_DRAIN, self._watch())
        self._lives.happens(name, WorkerEvent.DRAINED, self._watch())
        self.done.append((self._watch(), f"drained {worker_id}"))


class Scripted:
    """A controller that looks every second and wants what a list says, then the last for ever."""

    name = "scripted"

    def __init__(self, *targets: int, is_advisory: bool = False) -> None:
        self.looks: list[Look] = []
        self.next_ms = 1000.0
        self._targets = targets
        self._is_advisory = is_advisory

    def look(self, seen: Observation) -> ScalingDecision | None:
        assert seen.now_ms >= self.next_ms
        target = self._targets[min(len(self.looks), len(self._targets) - 1)]
        pool = seen.pool("workers")
        decided = PoolDecision("workers", pool.count(Phase.READY), target, "scripted")
        decision = ScalingDecision(seen.now_ms, self.name, (decided,), self._is_advisory)
        self.looks.append(Look(seen, decision))
        self.next_ms += 1000.0
        return decision
