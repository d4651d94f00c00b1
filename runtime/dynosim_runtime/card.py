"""What a worker says of itself to the frontends that will use it."""

from collections.abc import Mapping
from typing import Literal

import msgspec
from xxhash import xxh3_64_intdigest

from dynosim.router.workers import WorkerCard as RoutingCard

EngineKind = Literal["mock", "vllm", "sglang", "trtllm"]
Role = Literal["agg", "prefill", "decode"]


class EventSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker publishes KV events: ZMQ endpoints a frontend can connect to."""

    endpoint: str  # PUB socket, e.g. tcp://127.0.0.1:5557
    replay_endpoint: str | None = None  # ROUTER socket
    topic: str = ""


class WorkerCard(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as discovery publishes it. `worker_id` follows from `name` (`worker_id_of`)."""

    worker_id: int
    name: str
    namespace: str = "dynosim"
    component: str = "backend"
    endpoint: str = "generate"
    engine: EngineKind
    url: str  # of the engine's HTTP server, without a slash at the end
    model: str  # the name that clients use
    model_path: str | None = None  # folder of tokenizer and config; None: byte tokenizer
    role: Role = "agg"
    block_size: int
    total_kv_blocks: int | None = None  # per rank
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int
    dp_size: int = 1
    device: Literal["gpu", "cpu"] = "gpu"
    taints: tuple[str, ...] = ()
    topology: Mapping[str, str] = {}
    events: tuple[EventSource, ...] = ()  # by data-parallel rank; empty: none published
    accepts_priority: bool = False  # the engine schedules by priority; others refuse it
    speedup: float = 1.0  # of a simulated engine: its steps take so many times less
    pid: int | None = None
    is_draining: bool = False  # serves what it has, takes nothing new

    def routing_card(self) -> RoutingCard:
        """The part that the router decides by."""
        return RoutingCard(
            self.worker_id,
            self.block_size,
            total_kv_blocks=self.total_kv_blocks,
            max_num_batched_tokens=self.max_num_batched_tokens,
            dp_size=self.dp_size,
            device=self.device,
            taints=frozenset(self.taints),
            topology=dict(self.topology),
        )


def worker_id_of(name: str) -> int:
    """The stable number of a worker's name; below 2**53, so that JSON clients keep it exact."""
    return xxh3_64_intdigest(name.encode()) >> 11
