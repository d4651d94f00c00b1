"""What an engine is configured with, in vLLM's words."""

from dataclasses import dataclass
from typing import Final, Literal

Policy = Literal["fcfs", "priority"]
KvRole = Literal["kv_both", "kv_producer", "kv_consumer"]
LoadFailurePolicy = Literal["fail", "recompute"]
EvictionPolicy = Literal["lru", "arc"]
TierPolicy = Literal["lru", "arc", "priority"]
"""`priority`: what requests say of their blocks counts (`dynosim.engine.retaining_cache`)."""
DraftMethod = Literal["ngram", "eagle", "mtp", "draft_model"]

KV_ROLES: Final[dict[str, KvRole]] = {"prefill": "kv_producer", "decode": "kv_consumer"}
"""By role of a pool: who computes prompts gives their KV away, who answers takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCacheSpec:
    """A tier of KV in host memory, as vLLM's offloading connector keeps one."""

    num_chunks: int
    policy: TierPolicy = "lru"
    blocks_per_chunk: int = 1
    store_threshold: int = 0  # a chunk is stored from the so many-th offer on
    prompt_only: bool = False  # generated text is not stored


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeSpec:
    """Speculative decoding: where drafts come from, and how many a request has at most."""

    num_drafts: int
    method: DraftMethod = "ngram"

    @property
    def lookahead_tokens(self) -> int:
        """Tokens beyond those of a step that the drafter needs room for."""
        return 0 if self.method == "ngram" else self.num_drafts

    @property
    def slot_tokens(self) -> int:
        """Tokens of a step's budget that the drafter takes for each request."""
        return 1 if self.method == "draft_model" else 0

    @property
    def drops_last_hit(self) -> bool:
        """Whether the last block of a prefix hit is computed again, for the drafter's sake."""
        return self.method in ("eagle", "mtp")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The knobs of one engine that its scheduler reads; defaults are vLLM 0.32's.

    `kind` says whose scheduler it is, one of `dynosim.engine.cores.CORES`.

    `num_gpu_blocks` is the number vLLM prints at start-up; its block 0 is a placeholder that is
    never handed out, so one block fewer is usable.
    """

    num_gpu_blocks: int
    max_model_len: int
    kind: str = "vllm"
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    enable_prefix_caching: bool = True
    reuse_granularity_tokens: int | None = None  # None: block_size
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0  # 0: no cap
    long_prefill_token_threshold_adaptive: bool = False
    policy: Policy = "fcfs"
    watermark: float = 0.0  # share of num_gpu_blocks kept free by admissions
    scheduler_reserve_full_isl: bool = True
    max_num_active_seqs: int | None = None  # None: max_num_seqs
    async_scheduling: bool = False
    kv_role: KvRole | None = None  # None: it takes and gives KV nowhere
    kv_load_failure_policy: LoadFailurePolicy = "fail"
    host_cache: HostCacheSpec | None = None
    speculation: SpeculativeSpec | None = None

    @property
    def usable_blocks(self) -> int:
        """Blocks that can hold KV."""
        return self.num_gpu_blocks - 1

    @property
    def capacity_tokens(self) -> int:
        """Tokens whose KV fits the cache."""
        return self.usable_blocks * self.block_size

    @property
    def reuse_blocks(self) -> int:
        """Blocks in multiples of which prefixes are reused."""
        tokens = self.reuse_granularity_tokens
        return 1 if tokens is None else tokens // self.block_size

    @property
    def watermark_blocks(self) -> int:
        """Blocks an admission must leave free while something runs."""
        return int(self.watermark * self.num_gpu_blocks)

    @property
    def max_active(self) -> int:
        """Requests that may hold a seat at once."""
        return self.max_num_seqs if self.max_num_active_seqs is None else self.max_num_active_seqs

    @property
    def takes_kv(self) -> bool:
        """Whether KV may come from elsewhere."""
        return self.kv_role in ("kv_both", "kv_consumer") or self.host_cache is not None

    @property
    def gives_kv(self) -> bool:
        """Whether KV may go elsewhere."""
        return self.kv_role in ("kv_both", "kv_producer")

    @property
    def pipeline_depth(self) -> int:
        """Steps that may be in flight at once."""
        return 2 if self.async_scheduling else 1
