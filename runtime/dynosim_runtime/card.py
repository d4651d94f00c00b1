"""What a worker says of itself to the frontends that will use it."""

from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from xxhash import xxh3_64_intdigest

from dynosim.router.workers import WorkerCard as RoutingCard
from dynosim.workers.ids import WorkerId

EngineKind = Literal["mock", "vllm", "sglang", "trtllm"]
Role = Literal["agg", "prefill", "decode"]
HANDING_OVER = frozenset({"mock", "vllm"})
"""Engines that hand KV over as a frontend asks for it."""

PASSING_FIRST_TOKEN = frozenset({"mock"})
"""Engines whose decode side goes on behind the prefill worker's token. vLLM's takes KV for all of
the prompt that it is given, and the prefill worker has none of its own token."""

MAX_DP_SIZE = 4096  # a router keeps a place for each rank

Count = Annotated[int, msgspec.Meta(ge=1)]
Label = Annotated[
    str, msgspec.Meta(min_length=1, max_length=1024, pattern=r"\A[^\x00-\x1f\x7f]*\Z")
]


class EventSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a worker publishes KV events: ZMQ endpoints a frontend can connect to."""

    endpoint: str  # PUB socket, e.g. tcp://127.0.0.1:5557
    replay_endpoint: str | None = None  # ROUTER socket
    topic: str = ""


class LiveCard(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as discovery publishes it. `worker_id` follows from `name` (`worker_id_of`).

    Anybody who can write there may publish one: what cannot be a worker is refused when it is read,
    before it can change anything for others.
    """

    worker_id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    name: Label
    namespace: Label = "dynosim"
    component: Label = "backend"
    endpoint: Label = "generate"
    engine: EngineKind
    url: Label  # of the engine's HTTP server, without a slash at the end
    model: Label  # the name that clients use
    model_path: str | None = None  # folder of tokenizer and config; None: byte tokenizer
    role: Role = "agg"
    block_size: Count
    kv_dtype: str | None = None  # of its KV cache; None: it does not tell
    total_kv_blocks: Annotated[int, msgspec.Meta(ge=0)] | None = None  # per rank
    max_num_batched_tokens: Count | None = None
    max_num_seqs: Count | None = None
    max_model_len: Count
    dp_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_DP_SIZE)] = 1
    device: Literal["gpu", "cpu"] = "gpu"
    taints: tuple[str, ...] = ()
    topology: Mapping[str, str] = {}
    events: tuple[EventSource, ...] = ()  # by data-parallel rank; empty: none published
    accepts_priority: bool = False  # the engine schedules by priority; others refuse it
    speedup: Annotated[float, msgspec.Meta(gt=0)] = 1.0  # of a simulated engine's steps
    pid: int | None = None
    is_draining: bool = False  # serves what it has, takes nothing new

    def __post_init__(self) -> None:
        """Raises: ValueError for an address that is none, or events of ranks that are not there."""
        check_http_address(self.url)
        if len(self.events) > self.dp_size:
            raise ValueError(f"{len(self.events)} event sources for {self.dp_size} ranks")

    def routing_card(self) -> RoutingCard:
        """The part that the router decides by."""
        return RoutingCard(
            WorkerId(self.worker_id),
            self.block_size,
            total_kv_blocks=self.total_kv_blocks,
            max_num_batched_tokens=self.max_num_batched_tokens,
            dp_size=self.dp_size,
            device=self.device,
            taints=frozenset(self.taints),
            topology=dict(self.topology),
        )


def check_http_address(url: str) -> None:
    """Raises: ValueError if this is not where an HTTP server could be."""
    parts = urlsplit(url)
    try:
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # a port beyond 65535, a name that no resolver takes
        is_address = False
    if not is_address or not url.isprintable() or " " in url:
        raise ValueError("url: expected http://HOST:PORT")


def worker_id_of(name: str) -> int:
    """The stable number of a worker's name; below 2**53, so that JSON clients keep it exact."""
    return xxh3_64_intdigest(name.encode()) >> 11
