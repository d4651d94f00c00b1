"""What it costs to hand a request's KV cache from its prefill worker to its decode worker.

Knows layouts of caches and links, not who else uses a link: that is `FairNetwork`'s.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

from dynosim.engine.instant import instant_end
from dynosim.errors import ConfigError
from dynosim.memory.links import LinkSpec
from dynosim.memory.network import BYTES_PER_MS
from dynosim.timing.architecture import ModelShape

Moved = Literal["full_prompt", "destination_missing"]

LAYERWISE_EXPOSED_SHARE: Final = 0.34
"""Of a handoff that goes layer by layer behind the prefill's compute. Derived from Dynamo's
documentation: Llama-3.1-8B, 8,000 tokens, 1.05 GB at 9.6 GB/s are 109 ms, TTFT grew by 37 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideLayout:
    """How one side of a handoff keeps its cache."""

    tensor_parallel: int
    block_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGeometry:
    """A model's KV cache: heads of keys and values, or one latent vector that all ranks share."""

    layers: int
    kv_heads: int
    head_dim: int
    latent_width: int = 0  # cached elements per token and layer of latent attention; 0 without
    element_bytes: float = 2.0
    regions_per_layer: int = 2  # contiguous areas: keys and values apart, or 1 if kept together

    @classmethod
    def of_model(
        cls, shape: ModelShape, element_bytes: float, *, regions_per_layer: int | None = None
    ) -> "KvGeometry":
        """Of a model; unless stated, keys and values are kept apart and latent vectors in one."""
        return cls(
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            latent_width=shape.latent_width,
            element_bytes=element_bytes,
            regions_per_layer=regions_per_layer or (1 if shape.latent_width else 2),
        )

    @property
    def bytes_per_token(self) -> int:
        """Of one copy of the whole model's cache."""
        return self.worker_bytes_per_token(1)

    def worker_bytes_per_token(self, tensor_parallel: int) -> int:
        """Of all ranks of a worker; more than one copy where heads are too few, or latent."""
        return tensor_parallel * self.rank_bytes_per_token(tensor_parallel)

    def rank_bytes_per_token(self, tensor_parallel: int) -> int:
        """As `ModelShape.kv_bytes_per_token`: latent caches are replicated, heads are split."""
        width = self.latent_width or 2 * self.rank_heads(tensor_parallel) * self.head_dim
        return int(self.layers * width * self.element_bytes)

    def rank_heads(self, tensor_parallel: int) -> int:
        return -(-self.kv_heads // tensor_parallel)


class Handoff:
    """What one handoff needs once its prefill has ended."""

    __slots__ = ("exposed_bytes", "hidden_bytes", "setup_ms", "wire_bytes")

    def __init__(self, wire_bytes: int, exposed_bytes: int, setup_ms: float) -> None:
        self.wire_bytes = wire_bytes  # in all, hidden ones included
        self.exposed_bytes = exposed_bytes  # that still have to flow
        self.hidden_bytes = wire_bytes - exposed_bytes  # that flowed behind the prefill's compute
        self.setup_ms = setup_ms  # until the exposed ones begin to flow


@dataclass(kw_only=True)
class HandoffCost:
    """The cost of handoffs between two kinds of workers over a link. Not to be changed.

    The decode side's ranks each read their part, all at once; each posts its own descriptors.
    `gb_s` is what two workers reach while nobody else uses their links, `sources` how many prefill
    ranks one decode rank reads from.
    """

    link: LinkSpec
    geometry: KvGeometry
    prefill: SideLayout
    decode: SideLayout
    exposed_share: float = 1.0  # 1: nothing flows before the prefill's end
    gb_s: float = field(init=False)
    sources: int = field(init=False)
    _bytes_per_token: int = field(init=False)
    _block_size: int = field(init=False)
    _pieces_per_block: int = field(init=False)
    _per_descriptor_us: float = field(init=False)
    _latency_us: float = field(init=False)

    def __post_init__(self) -> None:
        link, geometry = self.link, self.geometry
        if not 0 < self.exposed_share <= 1:
            raise ConfigError(
                f"cluster.transfer.exposed_share: {self.exposed_share:g} is no share of a handoff "
                "that stays visible (state one above 0 and at most 1; 1 if the prefill's compute "
                "hides nothing)"
            )
        ranks = self.decode.tensor_parallel
        self.gb_s = min(link.worker_gb_s(self.prefill.tensor_parallel), link.worker_gb_s(ranks))
        kept = geometry.rank_heads(self.prefill.tensor_parallel)
        self.sources = 1 if geometry.latent_width else -(-geometry.rank_heads(ranks) // kept)
        self._bytes_per_token = geometry.worker_bytes_per_token(ranks)
        self._block_size = min(self.prefill.block_size, self.decode.block_size)
        self._pieces_per_block = geometry.layers * geometry.regions_per_layer * self.sources
        self._per_descriptor_us = link.per_descriptor_us
        self._latency_us = link.latency_us

    def wire_bytes(self, tokens: int) -> int:
        """Every decode rank gets its own copy of what it keeps."""
        return tokens * self._bytes_per_token

    def descriptors(self, tokens: int) -> int:
        """Pieces that one decode rank reads: of each region, block and rank that has a part.

        Blocks are those of the side that has smaller ones. A part of a block's heads is contiguous
        (layout HND).
        """
        return self._pieces_per_block * -(-tokens // self._block_size)

    def handoff(self, tokens: int, compute_ms: float, *, is_first: bool) -> Handoff:
        """Of `tokens` whose prefill computed for `compute_ms`, while bytes could already flow.

        What flows behind the compute is posted there too. `is_first`: of this pair of workers.
        """
        wire_bytes = self.wire_bytes(tokens)
        if not wire_bytes:
            return Handoff(0, 0, 0.0)
        exposed_bytes = self._exposed_bytes(wire_bytes, compute_ms)
        share = exposed_bytes / wire_bytes
        posted_us = share * self.descriptors(tokens) * self._per_descriptor_us
        setup_ms = (posted_us + self._latency_us) / 1e3
        if is_first:
            setup_ms += self.link.handshake_ms
        return Handoff(wire_bytes, exposed_bytes, setup_ms)

    def _exposed_bytes(self, wire_bytes: int, compute_ms: float) -> int:
        """No more is hidden than the share that can be, and than the link carries meanwhile."""
        hideable = int((1.0 - self.exposed_share) * wire_bytes)
        # A time is known to an instant: rounding must not decide about a byte.
        carried = int(self.gb_s * BYTES_PER_MS * instant_end(compute_ms))
        return wire_bytes - min(hideable, carried)

    def unloaded_ms(self, tokens: int, compute_ms: float = 0.0, *, is_first: bool = False) -> float:
        """From the prefill's end until all is there, while nobody else uses the links."""
        handoff = self.handoff(tokens, compute_ms, is_first=is_first)
        return handoff.setup_ms + handoff.exposed_bytes / (self.gb_s * BYTES_PER_MS)


def moved_tokens(mode: Moved, prompt_tokens: int, held_tokens: int, block_size: int) -> int:
    """Tokens to move: all of the prompt, or the blocks of it that the destination does not hold.

    `held_tokens` are leading ones; a block that they fill in part is missing.
    """
    if mode == "full_prompt":
        return prompt_tokens
    missing_blocks = -(-prompt_tokens // block_size) - held_tokens // block_size
    return max(0, missing_blocks) * block_size
