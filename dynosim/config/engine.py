"""The `engine:` section: one engine, in vLLM's words.

A default stands once: here, or in the spec that is built from the section, from which it is taken.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from dynosim.config.base import Amount, Count, Section, check_rules, refuse
from dynosim.engine.spec import EngineSpec, Policy
from dynosim.engine.vllm.versions import is_async, is_version, memory_fraction

_SPEC = EngineSpec(num_gpu_blocks=2, max_model_len=1)


def _num_blocks(value: Any) -> int | str:
    if value == "auto" or (type(value) is int and 2 <= value <= 1 << 40):
        return value  # type: ignore[no-any-return]
    raise refuse(f"expected auto or an integer >= 2, got {value!r}", "one block is a placeholder")


NumBlocks = Annotated[
    int | Literal["auto"],
    PlainValidator(
        _num_blocks,
        json_schema_input_type=Annotated[int, Field(ge=2, le=1 << 40)] | Literal["auto"],
    ),
]


def _version(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise refuse(
            f"expected text, got the number {value:g}", f'write "{value:g}" or {value:g}.0'
        )
    return value


Version = Annotated[str, BeforeValidator(_version)]


class EngineKnobs(Section):
    """The keys of an engine. A pool states those in which it differs from what all pools share."""

    kind: Literal["vllm"] = "vllm"
    """Engine whose scheduler is simulated."""
    version: Version | None = None
    """Version of the engine, such as 0.19.0: its defaults, and whose measured times are taken;
    null: the newest known."""
    tensor_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    """GPUs that share each layer; a divisor of the model's attention heads. Unit: GPUs."""
    data_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    """Ranks of a worker, each of `tensor_parallel` GPUs with its own scheduler and KV cache. Unit:
    ranks."""
    expert_parallel: bool = False
    """Whether whole experts are spread over all GPUs of a worker, instead of a part of each."""
    rank_balancing: Literal["internal", "router"] | None = None
    """Who chooses the rank of a worker that serves a request: its own front end, by the rule of its
    version, or the router, which addresses every rank; null: the router if it follows caches."""
    block_size: Annotated[int, Field(ge=1, le=1 << 20)] = _SPEC.block_size
    """Size of a KV block. Unit: tokens."""
    num_gpu_blocks: NumBlocks = "auto"
    """KV blocks of each of a worker's ranks, as vLLM prints them (one is never handed out); `auto`:
    what fits its memory. Unit: blocks."""
    max_num_seqs: Count = _SPEC.max_num_seqs
    """Most requests in a step. Unit: requests."""
    max_num_batched_tokens: Count = _SPEC.max_num_batched_tokens
    """Most tokens that a step computes."""
    max_model_len: Count | None = None
    """Most tokens of a request, prompt and answer; null: the model's context, or what the cache
    holds. Unit: tokens."""
    enable_prefix_caching: bool = _SPEC.enable_prefix_caching
    """Whether prompts reuse cached blocks of equal prefixes."""
    reuse_granularity_tokens: Count | None = _SPEC.reuse_granularity_tokens
    """Cached prefixes are reused in multiples of so many tokens, which some models' layers demand;
    null: in blocks. A multiple of `block_size`. Unit: tokens."""
    enable_chunked_prefill: bool = _SPEC.enable_chunked_prefill
    """Whether a long prompt may be computed in several steps."""
    long_prefill_token_threshold: Amount = _SPEC.long_prefill_token_threshold
    """Most tokens of one prompt in a step that others share; 0: no cap. Unit: tokens."""
    long_prefill_token_threshold_adaptive: bool = _SPEC.long_prefill_token_threshold_adaptive
    """Whether that cap grows to an equal share of a step's tokens where few requests share it."""
    policy: Policy = _SPEC.policy
    """Which waiting request is admitted first."""
    watermark: Annotated[float, Field(ge=0, lt=1)] = _SPEC.watermark
    """Part of the blocks that admissions leave free. Unit: share."""
    scheduler_reserve_full_isl: bool = _SPEC.scheduler_reserve_full_isl
    """Whether a request is admitted only if its whole prompt fits."""
    max_num_active_seqs: Count | None = _SPEC.max_num_active_seqs
    """Most requests that hold blocks at once; null: `max_num_seqs`. Unit: requests."""
    async_scheduling: bool | None = None
    """Whether a step is planned while the one before it runs; null: the version's default, which is
    true since vLLM 0.14."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of a GPU's memory that the engine uses; null: the version's default. Unit: share."""
    quantization: str | None = None
    """Quantization of the weights; null: the checkpoint's own."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of the cached keys and values; `auto`: the model's."""


class EngineConfig(EngineKnobs):
    """One engine, in vLLM's words."""

    @property
    def memory_fraction(self) -> float:
        """`gpu_memory_utilization`, resolved."""
        return memory_fraction(self.version, self.gpu_memory_utilization)

    @property
    def gpus_per_worker(self) -> int:
        """GPUs of one worker, all its ranks together."""
        return self.tensor_parallel * self.data_parallel

    @property
    def is_async(self) -> bool:
        """What `async_scheduling` comes to."""
        return is_async(self.version, self.async_scheduling)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        """Refuses what vLLM refuses to start with."""
        tokens, seqs, context = (self.max_num_batched_tokens, self.max_num_seqs, self.max_model_len)
        threshold, active = self.long_prefill_token_threshold, self.max_num_active_seqs
        reuse = self.reuse_granularity_tokens
        check_rules(
            [
                ("version", self.version is not None and not is_version(self.version),
                 f"expected a version such as 0.19.0, got {self.version!r}",
                 "write the engine's release, or leave it out"),
                ("reuse_granularity_tokens", reuse is not None and reuse % self.block_size > 0,
                 f"{reuse} is no multiple of block_size ({self.block_size})",
                 "round it up to one"),
                ("max_num_batched_tokens", tokens < seqs,
                 f"{tokens} is less than max_num_seqs ({seqs}); vLLM refuses that",
                 "raise it, or lower max_num_seqs"),
                ("max_num_batched_tokens",
                 not self.enable_chunked_prefill and context is not None and tokens < context,
                 f"{tokens} is less than max_model_len ({context}), without chunked prefill",
                 "vLLM refuses that: raise it, or enable chunked prefill"),
                ("long_prefill_token_threshold", context is not None and threshold > context,
                 f"{threshold} is more than max_model_len ({context}); vLLM refuses that",
                 "lower it"),
                ("max_num_active_seqs", active is not None and active > seqs,
                 f"{active} is more than max_num_seqs ({seqs}); vLLM refuses that", "lower it"),
                ("rank_balancing", self.rank_balancing is not None and self.data_parallel == 1,
                 "a worker has one rank: there is nothing to balance",
                 "leave it out, or set data_parallel above 1"),
            ]
        )  # fmt: skip
        return self
