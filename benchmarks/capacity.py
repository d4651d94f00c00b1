"""KV blocks that vLLM printed, against ours: a table of start-ups.

    python benchmarks/capacity.py FILE [--version 0.15.1]

FILE is JSON: a list of start-ups with `id, model, hardware, tensor_parallel,
max_num_batched_tokens, max_num_seqs, gpu_memory_utilization, kv_blocks_of_16` and `model_config`
(the model's config.json; null: a model that dynosim knows). `left out` is the error with the one
constant that was fitted, the buffers of GPUs with peers, fitted on all other models instead.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.config.engine import EngineConfig
from dynosim.silicon import Capacity, capacity_of_running
from dynosim.silicon.engine_memory import PEERS_BYTES
from dynosim.silicon.hardware import usual_name


@dataclass(frozen=True, slots=True)
class StartUp:
    """One engine: what it printed, and what we say of it."""

    name: str
    model: str
    tensor_parallel: int
    tokens: int
    printed: int
    capacity: Capacity

    @property
    def error(self) -> float:
        return self.capacity.num_gpu_blocks / self.printed - 1

    @property
    def is_covered(self) -> bool:
        return self.capacity.low <= self.printed <= self.capacity.high

    @property
    def block_bytes(self) -> int:
        return 16 * self.capacity.breakdown["kv_bytes_per_token"]

    @property
    def peers_bytes(self) -> float:
        """What the buffers of GPUs with peers would have to be for our number to be the printed."""
        return PEERS_BYTES + (self.capacity.num_gpu_blocks - self.printed) * self.block_bytes

    def left_out_error(self, all_of_them: Sequence["StartUp"]) -> float:
        """The error with the buffers that the other models imply."""
        if self.tensor_parallel == 1:
            return self.error
        others = {
            (one.model, one.tensor_parallel, one.tokens): one.peers_bytes
            for one in all_of_them
            if one.model != self.model and one.tensor_parallel > 1
        }
        peers = sum(others.values()) / len(others)
        blocks = self.capacity.num_gpu_blocks + (PEERS_BYTES - peers) / self.block_bytes
        return blocks / self.printed - 1


def start_ups(rows: Sequence[Mapping[str, Any]], version: str) -> list[StartUp]:
    """All of a file, in its order."""
    found = []
    for row in rows:
        engine = EngineConfig(
            version=version,
            tensor_parallel=row["tensor_parallel"],
            max_num_batched_tokens=row["max_num_batched_tokens"],
            max_num_seqs=row["max_num_seqs"],
            gpu_memory_utilization=row["gpu_memory_utilization"],
        )
        with _model(row) as model:
            capacity = capacity_of_running(
                engine, model=model, hardware=usual_name(row["hardware"])
            )
        found.append(
            StartUp(
                row["id"],
                row["model"],
                engine.tensor_parallel,
                engine.max_num_batched_tokens,
                row["kv_blocks_of_16"],
                capacity,
            )
        )
    return found


@contextmanager
def _model(row: Mapping[str, Any]) -> Iterator[str]:
    """The model's name, or a file with its config."""
    if row["model_config"] is None:
        yield row["model"]
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(row["model_config"]))
        yield str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="KV blocks printed by vLLM against ours.")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--version", default="0.15.1", help="vLLM's version in all of them")
    arguments = parser.parse_args()
    found = start_ups(json.loads(arguments.file.read_bytes()), arguments.version)
    print(
        f"{'start-up':<16}{'model':<42}{'TP':>3}{'tokens':>7}{'printed':>9}{'ours':>9}"
        f"{'error':>9}{'left out':>10}  interval"
    )
    for one in found:
        low, high = one.capacity.low, one.capacity.high
        print(
            f"{one.name:<16}{one.model.split('/')[-1]:<42}{one.tensor_parallel:>3}{one.tokens:>7}"
            f"{one.printed:>9,}{one.capacity.num_gpu_blocks:>9,}{one.error:>+9.2%}"
            f"{one.left_out_error(found):>+10.2%}  {low:,} to {high:,}"
            f"{'' if one.is_covered else ' DOES NOT COVER'}"
        )
    worst = max(abs(one.error) for one in found)
    left_out = max(abs(one.left_out_error(found)) for one in found)
    print(f"largest error {worst:.2%}, with each model left out {left_out:.2%}")


if __name__ == "__main__":
    main()
