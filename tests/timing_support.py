"""Small stand-ins for the timing tests: engine settings, a silicon table."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from dynosim.timing.silicon_table import SiliconTable


def engine(**changes: Any) -> Any:
    """An engine configuration with vLLM's defaults."""
    settings = {
        "version": None,
        "tensor_parallel": 1,
        "data_parallel": 1,
        "expert_parallel": False,
        "block_size": 16,
        "num_gpu_blocks": "auto",
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": None,
        "gpu_memory_utilization": 0.9,
        "quantization": None,
        "kv_cache_dtype": "auto",
        "async_scheduling": None,
    }
    return SimpleNamespace(**(settings | changes))


def timing(kind: str, **settings: Any) -> Any:
    """A timing section; the device alone, unless told otherwise."""
    alone = dict.fromkeys(("step_overhead_ms", "ingress_ms", "egress_ms"), 0.0)
    return SimpleNamespace(**{"kind": kind, "trust_tables": False, **alone, **settings})


def silicon_table(seed: int = 0) -> SiliconTable:
    """A made-up table with jumps in the linear part and bends in the attention surfaces."""
    random = np.random.default_rng(seed)
    counts = np.array([1.0, 2.0, 4.0])
    new = np.array([1.0, 16.0, 128.0, 512.0])
    prefix = np.array([0.0, 64.0, 1024.0])
    batches = np.array([1.0, 2.0, 8.0, 64.0])
    contexts = np.array([1.0, 16.0, 40.0, 100.0, 1000.0])
    decode = random.uniform(0.1, 0.5, (4, 5)).cumsum(axis=1) * np.sqrt(batches)[:, None]
    linear = 5 + random.uniform(0, 0.2, 513) + np.arange(513) * 0.01
    linear[0] = 0
    head = random.uniform(0, 0.1, 65)
    head[0] = 0
    return SiliconTable(
        linear_ms=linear,
        collective_ms=np.zeros(513),
        head_ms=head,
        counts=counts,
        new_tokens=new,
        prefix_tokens=prefix,
        prefill_ms=random.uniform(0.1, 4, (3, 4, 3)).astype(np.float32),
        batches=batches,
        contexts=contexts,
        decode_ms=decode.astype(np.float32),
        measured_batches=np.array([1.0, 8.0, 64.0]),
        measured_contexts=np.array([1000.0, 500.0, 50.0]),
        measured_counts=np.array([1.0, 4.0]),
        measured_new_tokens=np.array([512.0, 100.0]),
        meta={
            "prefill_measured_share": 0.95,
            "decode_measured_share": 0.95,
            "sources": {},
            "guard": [],
            "is_guarded": True,
            "collectives": [],
            "decode_error": {"mean": 0.0, "p99": 0.0, "max": 0.0},
            "prefill_error": {"mean": 0.0, "p99": 0.0, "max": 0.0},
        },
    )
