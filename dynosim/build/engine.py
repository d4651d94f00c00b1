"""From a configuration to its engine: how it schedules, how long its steps take, what it caches."""

from dataclasses import MISSING, dataclass, fields, replace

from dynosim.build.knobs import from_section
from dynosim.build.ranks import rank_spec
from dynosim.build.tiers import host_cache_spec, tiers_spec
from dynosim.build.timing import build_timing
from dynosim.config.cluster import POOL_ROLES, PoolRole
from dynosim.config.engine import EngineConfig
from dynosim.config.schema import RunConfig
from dynosim.engine.ranks import ONE_RANK, RankSpec
from dynosim.engine.room import require_room_for
from dynosim.engine.spec import KV_ROLES, EngineSpec
from dynosim.errors import InfeasibleError
from dynosim.memory.tiers import TiersSpec
from dynosim.silicon import Capacity, resolve_num_gpu_blocks
from dynosim.timing.model import StepTimeModel

GIVEN_ELSEWHERE = ("kv_role", "kv_load_failure_policy", "host_cache", "speculation")
"""What its section does not say: the first two follow from an engine's place among others, a tier
from `cluster.tiers`; drafts are for scenarios of conformance."""

KNOBS = tuple(
    knob.name
    for knob in fields(EngineSpec)
    if knob.default is not MISSING and knob.name not in GIVEN_ELSEWHERE
)
"""What a section says of its scheduler; the rest is worked out here, or by `GIVEN_ELSEWHERE`."""

_NO_COMMON_PART = (
    "ranks in lock step: a step takes as long as the slowest rank's own; experts that ranks share"
    " and the exchange of tokens are in it as far as these step times were measured on such ranks"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a configuration means, before any request is served.

    Of a disaggregated cluster it is the decode pool's, and `prefill` the other one's.
    """

    engine: EngineSpec
    timing: StepTimeModel
    capacity: Capacity
    ranks: RankSpec = ONE_RANK
    prefill: "Prepared | None" = None
    tiers: TiersSpec | None = None


def prepare(config: RunConfig) -> Prepared:
    """The engine and the step times that the configuration means.

    Raises: ConfigError for an unknown model, hardware or profile, or ranks that cannot be;
    InfeasibleError for an engine that the hardware cannot hold or that vLLM would not start.
    """
    if config.cluster.is_disagg:
        prefill, decode = [_prepared_pool(config, role) for role in POOL_ROLES]
        return replace(decode, prefill=prefill)
    engine, model, hardware = config.engine, config.model_source, config.hardware_source
    ranks = rank_spec(config)
    capacity = resolve_num_gpu_blocks(engine, model=model, hardware=hardware)
    blocks = capacity.num_gpu_blocks
    tiers = tiers_spec(config)
    spec = replace(
        engine_spec(engine, num_gpu_blocks=blocks, max_model_len=_max_model_len(config, blocks)),
        host_cache=host_cache_spec(tiers),
    )
    timing = build_timing(
        config.timing,
        model=model,
        hardware=hardware,
        engine=engine,
        num_gpu_blocks=spec.usable_blocks,
        link_gb_per_s=config.link_gb_per_s,
        sampling=config.sampling,
        resolve=config.resolve,
    )
    if ranks.in_lock_step and timing.experts is None:
        timing.notes = (*timing.notes, _NO_COMMON_PART)
    return Prepared(spec, timing, capacity, ranks, tiers=tiers)


def _prepared_pool(config: RunConfig, role: PoolRole) -> Prepared:
    """A pool of a disaggregated cluster. Raises: as `prepare`, in the words of the pool's keys."""
    try:
        prepared = prepare(config.for_pool(role))
    except InfeasibleError as error:
        raise InfeasibleError(f"cluster.{role}: {error}") from None
    spec = replace(
        prepared.engine,
        kv_role=KV_ROLES[role],
        kv_load_failure_policy=config.cluster.handoff.load_failure_policy,
    )
    return replace(prepared, engine=spec)


def engine_spec(engine: EngineConfig, *, num_gpu_blocks: int, max_model_len: int) -> EngineSpec:
    """The scheduler's configuration.

    Raises: InfeasibleError if vLLM refuses it now that `max_model_len` is known.
    """
    require_long_prompts(engine, max_model_len)
    return from_section(
        EngineSpec,
        engine,
        num_gpu_blocks=num_gpu_blocks,
        max_model_len=max_model_len,
        async_scheduling=engine.is_async,
    )


def require_long_prompts(engine: EngineConfig | EngineSpec, max_model_len: int) -> None:
    """Refuse an engine that cannot compute the longest prompts.

    Raises: InfeasibleError, as vLLM refuses it.
    """
    tokens, threshold = engine.max_num_batched_tokens, engine.long_prefill_token_threshold
    if not engine.enable_chunked_prefill and tokens < max_model_len:
        raise InfeasibleError(
            f"engine.max_num_batched_tokens: {tokens} is less than max_model_len ({max_model_len}) "
            "without chunked prefill; vLLM refuses that (raise it, lower engine.max_model_len, or "
            "enable chunked prefill)"
        )
    if threshold > max_model_len:
        raise InfeasibleError(
            f"engine.long_prefill_token_threshold: {threshold} is more than max_model_len "
            f"({max_model_len}); vLLM refuses that (lower it)"
        )


def _max_model_len(config: RunConfig, num_gpu_blocks: int) -> int:
    """As configured; else the model's own; without a model, all that the cache holds.

    Raises: InfeasibleError if the cache holds less than the model's own.
    """
    if config.engine.max_model_len is not None:
        return config.engine.max_model_len
    if config.model_source is not None:
        from dynosim.silicon.catalogue import model_entry
        from dynosim.timing.architecture import context_length

        length = context_length(model_entry(config.model_source).config)
        if length is not None:
            require_room_for(
                length,
                usable_blocks=num_gpu_blocks - 1,
                block_size=config.engine.block_size,
                remedy=f"that is the context of {config.model}: state a lower engine.max_model_len,"
                " or give more blocks",
            )
            return length
    return (num_gpu_blocks - 1) * config.engine.block_size
