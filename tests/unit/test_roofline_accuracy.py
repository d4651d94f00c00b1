"""The roofline against tables of kernels, as they are served: a dense model on a card with HBM, and
one with experts on two cards without NVLink."""

from pathlib import Path

import numpy as np
import pytest
from timing_support import engine, timing

from dynosim.build.timing import build_timing
from dynosim.timing.step import StepShape

DECODES = [StepShape.of_decodes(b, b * c) for b in (1, 16, 64, 256) for c in (512, 2048)]
PROMPTS = [StepShape.of_prompts(1, n, p) for n in (256, 1024, 4096) for p in (0, 4096)]


@pytest.mark.parametrize(
    ("model", "hardware", "gpus", "decode_bound", "prompt_bound"),
    [
        ("meta-llama/Llama-3.1-8B", "a100_sxm", 1, 0.06, 0.05),
        ("Qwen/Qwen3-30B-A3B", "l40s", 2, 0.18, 0.10),
    ],
)
def test_mean_errors_against_tables(
    model: str,
    hardware: str,
    gpus: int,
    decode_bound: float,
    prompt_bound: float,
    tmp_path: Path,
) -> None:
    pytest.importorskip("aiconfigurator_core", reason="the tables' package is not installed")
    table, roofline = (
        build_timing(
            timing(kind, backend=None, backend_version=None),
            model=model,
            hardware=hardware,
            engine=engine(tensor_parallel=gpus),
            num_gpu_blocks=0,
            graph_sizes=(),
            cache_dir=tmp_path,
        )
        for kind in ("aiconfigurator", "roofline")
    )
    for steps, bound in ((DECODES, decode_bound), (PROMPTS, prompt_bound)):
        ratios = [roofline.step_ms(step) / table.step_ms(step) for step in steps]
        error = float(np.mean(np.abs(np.log(ratios))))
        assert error < bound, (error, ratios)
