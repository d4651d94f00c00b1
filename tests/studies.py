"""Layouts that are studied in this process, load by load."""

from pathlib import Path
from typing import Any

from dynosim.config import load_run
from dynosim.config.schema import RunConfig
from dynosim.metrics.carried import Bounds, SlaTarget
from dynosim.sweep.probe import probe_request, run_probe
from dynosim.sweep.study import LayoutStudy, LoadPlan, Probe

SERVICE_MS = 100.0


def config_of(folder: Path, *overrides: str, requests: int = 3000) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(
        f"""
workload:
  synthetic: {{requests: {requests}, isl: 100, osl: 1, rate_rps: 10, arrival: poisson}}
engine: {{num_gpu_blocks: 1000, block_size: 16, max_num_seqs: 1, max_model_len: 4096}}
timing: {{kind: fixed, prefill_ms: {SERVICE_MS}, decode_ms: 1}}
"""
    )
    return load_run(path, overrides)


def studied(config: RunConfig, plan: LoadPlan, bounds: Bounds, **options: Any) -> LayoutStudy:
    study = LayoutStudy(plan)
    while loads := study.next_loads():
        for load in loads:
            answer = run_probe(
                probe_request(
                    config, load, vary="rate", target=SlaTarget(bounds, plan.attainment), **options
                )
            )
            assert answer["status"] == "ok", answer["reason"]
            study.told(Probe.of(answer))
    return study
