"""The run file. Every field has its unit in its name.

A default stands once: here, or in the spec that is built from the section, from which it is taken.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, PrivateAttr, model_validator

from dynosim.config.base import Amount, Count, PositiveMs, Section, check_rules, refuse
from dynosim.config.cost import CostConfig
from dynosim.config.hardware import Hardware, NamedHardware
from dynosim.config.live import LiveConfig
from dynosim.config.router import RouterConfig
from dynosim.config.timing import NEEDS_MODEL, TimingConfig
from dynosim.config.workload import WorkloadConfig
from dynosim.engine.spec import EngineSpec, Policy
from dynosim.engine.vllm.versions import is_async, is_version, memory_fraction
from dynosim.timing.sampler import Sampling

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


class EngineConfig(Section):
    """One engine, in vLLM's words."""

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
        check_rules(
            [
                ("version", self.version is not None and not is_version(self.version),
                 f"expected a version such as 0.19.0, got {self.version!r}",
                 "write the engine's release, or leave it out"),
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
            ]
        )  # fmt: skip
        return self


class ClusterConfig(Section):
    """Equal workers that each serve whole requests (`agg`)."""

    mode: Literal["agg"] = "agg"
    """How the work is split: `agg`, every worker serves whole requests."""
    workers: Annotated[int, Field(ge=1, le=65536)] = 1
    """Equal workers, each of `engine.tensor_parallel` GPUs. Unit: workers."""
    cpu_workers: Annotated[int, Field(ge=0, le=65536)] = 0
    """How many of the workers, the last ones, run on CPUs. Unit: workers."""
    cpu_step_time_scale: Annotated[float, Field(gt=0)] = 8.0
    """How much longer steps take on a CPU worker. Unit: factor."""
    max_sim_time_ms: PositiveMs | None = None
    """Virtual time at which the run is cut off; null: it ends with the last request."""


class SlaConfig(Section):
    """Bounds that a request must keep to count as good; a missing one is no bound."""

    ttft_ms: PositiveMs | None = None
    """Bound on the time from a request's arrival to its first token."""
    itl_ms: PositiveMs | None = None
    """Bound on the mean time between a request's output tokens (its TPOT)."""
    e2e_ms: PositiveMs | None = None
    """Bound on the time from a request's arrival to its last token."""


def is_path(name: str) -> bool:
    """Whether a model or hardware is given as a file or folder, not by its name."""
    return name.endswith((".json", ".yaml", ".yml")) or name.startswith((".", "/", "~"))


class RunConfig(Section):
    """One configuration of one simulated cluster under one workload."""

    name: str = ""
    """Name of the run, for titles and the folder of results."""
    model: str | None = None
    """Name of the model, or path of a Hugging Face config.json."""
    hardware: Hardware = None
    """Name of the GPU, or path of a data sheet (YAML); or a section that also states the link
    between the GPUs of a worker."""
    workload: WorkloadConfig
    """What is offered to the cluster."""
    engine: EngineConfig = EngineConfig.model_construct()
    """How every worker's engine schedules and what it holds."""
    timing: TimingConfig
    """How long an engine step takes."""
    cluster: ClusterConfig = ClusterConfig.model_construct()
    """Which workers there are."""
    router: RouterConfig = RouterConfig.model_construct()
    """Which worker serves a request, and when it may go."""
    sla: SlaConfig | None = None
    """Bounds that a request must keep to count as good; null: none."""
    cost: CostConfig = CostConfig.model_construct()
    """What GPUs cost, for the cost of tokens."""
    live: LiveConfig = LiveConfig.model_construct()
    """How the same plan runs for real; a simulation does not read it."""
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0
    """Seed of everything that is drawn: same seed, same report."""
    _base_dir: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        cluster = self.cluster
        check_rules(
            [
                ("cluster.cpu_workers", cluster.cpu_workers > cluster.workers,
                 f"{cluster.cpu_workers} of {cluster.workers} workers", "at most all can be CPUs"),
            ]
        )  # fmt: skip
        self._check_price()
        self._check_version()
        kind = self.timing.kind
        is_blind = kind in NEEDS_MODEL
        check_rules(
            [
                ("workload.sampling", not is_blind and self.workload.sampling != "greedy",
                 f"timing kind {kind} does not know what sampling costs",
                 "remove it: its step times hold whatever the engine did"),
                ("workload.sampling", self.workload.sampling == "model" and self.model is None,
                 "model: no model is named", "name it, or say greedy, random or truncated"),
            ]
        )  # fmt: skip
        why = f"timing kind {kind} needs it" if kind in NEEDS_MODEL else ""
        if not why and self.engine.num_gpu_blocks == "auto":
            why = "engine.num_gpu_blocks: auto needs it"
        remedy = {
            "model": "add `model: Qwen/Qwen3-32B` or another known name",
            "hardware": "add `hardware: h200_sxm` or another known name",
        }
        check_rules(
            (key, bool(why) and getattr(self, key) is None, f"missing; {why}", remedy[key])
            for key in ("model", "hardware")
        )
        return self

    @property
    def sampling(self) -> Sampling:
        """How the workload's requests have their tokens chosen."""
        stated = self.workload.sampling
        if stated != "model":
            return stated
        from dynosim.silicon.generation import default_sampling

        return default_sampling(self.model or "")

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole cluster."""
        return self.cluster.workers * self.engine.gpus_per_worker

    @property
    def base_dir(self) -> Path:
        """Folder of the file this came from."""
        return self._base_dir

    def _check_version(self) -> None:
        """Refuses a version of the engine that cannot be."""
        from dynosim.silicon.table_versions import version_problem, versions_nearby

        version = self.engine.version
        problem = None if version is None else version_problem(version)
        known = [] if problem is None else versions_nearby(self.hardware, self.engine.kind)
        remedy = f"the tables know {', '.join(known)}" if known else "write 0.19.0 or another one"
        check_rules([("engine.version", problem is not None, problem or "", remedy)])

    def _check_price(self) -> None:
        """Prices of other GPUs alone have no effect."""
        has_none = bool(self.cost.gpu_hour) and self.cost.price_of(self.hardware) is None
        name = self.hardware or "the hardware"
        check_rules([("cost.gpu_hour", has_none, f"has no price of {name}", f"add {name}: 2.50")])

    @property
    def model_source(self) -> str | None:
        """The model's name, or where its config.json is."""
        return self._located(self.model)

    @property
    def hardware_source(self) -> str | None:
        """The hardware's name, or where its data sheet is."""
        return self._located(self.hardware)

    @property
    def link_gb_per_s(self) -> float | None:
        """Rate of the link between the GPUs of a worker, if one is stated."""
        return self.hardware.link_gb_per_s if isinstance(self.hardware, NamedHardware) else None

    def _located(self, name: str | None) -> str | None:
        if name is None:
            return None
        return str(self.resolve(name)) if is_path(name) else str(name)

    def resolve(self, name: str) -> Path:
        """Where the file `name` is: from the current folder, the file's, or that one's parent.

        The first place that has it wins; if none has, the name as given (its reader will say so).
        """
        given = Path(name).expanduser()
        places = (given, self._base_dir / given, self._base_dir.parent / given)
        return next((place for place in places if place.exists()), given)
