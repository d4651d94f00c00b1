"""From a configuration to the data-parallel ranks of its workers, or to why it has none such."""

from dynosim.config.engine import EngineConfig
from dynosim.config.schema import RunConfig
from dynosim.engine.rank_balance import rule_of
from dynosim.engine.ranks import ONE_RANK, RankSpec
from dynosim.errors import ConfigError

_LARGEST_GRAPH = 512
"""vLLM captures CUDA graphs of up to so many tokens, or twice `max_num_seqs` if that is fewer."""


def rank_spec(config: RunConfig) -> RankSpec:
    """The ranks of each worker of a configuration.

    Raises: ConfigError for ranks or a spread of experts that the model or the cluster cannot have.
    """
    engine, router = config.engine, config.router
    follows_caches = router.mode == "kv" or router.policy is not None
    if engine.rank_balancing == "internal" and follows_caches:
        raise ConfigError(
            "engine.rank_balancing: internal, but the router follows the caches of single ranks and"
            " addresses them itself (use router, or router.mode: round-robin)"
        )
    if engine.data_parallel > 1 and config.cluster.cpu_workers:
        raise ConfigError(
            f"engine.data_parallel: {engine.data_parallel}, but {config.cluster.cpu_workers} of the"
            " workers run on CPUs, where step times of ranks are not known (leave out"
            " cluster.cpu_workers, or set engine.data_parallel: 1)"
        )
    if engine.data_parallel > 1 and config.model is None:
        raise ConfigError(
            "engine.data_parallel: whether ranks wait for each other depends on the model (add"
            " `model: Qwen/Qwen3-30B-A3B` or another known name)"
        )
    is_router_addressing = follows_caches or engine.rank_balancing == "router"
    return ranks_of(engine, model=config.model_source, is_internal=not is_router_addressing)


def ranks_of(engine: EngineConfig, *, model: str | None, is_internal: bool = True) -> RankSpec:
    """The ranks of an engine; without a model they do not wait for each other.

    `is_internal`: the engine's own front end chooses among them.

    Raises: ConfigError for experts to be spread of a model that has none, or is not known.
    """
    has_experts = model is not None and _has_experts(model, engine)
    if engine.expert_parallel and not has_experts:
        why = "no model is named" if model is None else f"{model} has no experts"
        remedy = "add `model:`" if model is None else "leave it out, or choose a model with experts"
        raise ConfigError(f"engine.expert_parallel: {why} ({remedy})")
    if engine.data_parallel == 1:
        return ONE_RANK
    return RankSpec(
        number=engine.data_parallel,
        in_lock_step=has_experts,
        padded_up_to=min(_LARGEST_GRAPH, 2 * engine.max_num_seqs),
        rule=rule_of(engine.version) if is_internal else None,
    )


def _has_experts(model: str, engine: EngineConfig) -> bool:
    if engine.data_parallel == 1 and not engine.expert_parallel:
        return False  # nobody asks; a model file need not be read
    from dynosim.silicon.catalogue import model_entry
    from dynosim.timing.architecture import model_shape

    return model_shape(model_entry(model)).experts > 0
