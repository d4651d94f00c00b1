"""A plan: a run file, or a folder of a sweep (`agg/top1`) that holds one as config.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dynosim.build.engine_command import name_for_clients
from dynosim.config import RunConfig, load_run
from dynosim.config.cluster import PoolRole
from dynosim.config.engine import EngineConfig
from dynosim.config.schema import is_path
from dynosim.errors import ConfigError

RUN_FILE = "config.yaml"


def load_plan(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The plan's run configuration, changed by the overrides.

    Raises: ConfigError if there is none, or naming what is wrong with it.
    """
    return load_run(plan_file(path), overrides)


def plan_file(path: Path) -> Path:
    """The run file of a plan. Raises: ConfigError if a folder has none."""
    if not path.is_dir():
        return path
    file = path / RUN_FILE
    if not file.is_file():
        raise ConfigError(
            f"{path}: the folder has no {RUN_FILE} (name a run file, or a folder such as "
            "results/NAME/agg/top1 that a sweep has written)"
        )
    return file


def check_live(plan: RunConfig) -> None:
    """Raises: ConfigError for what can be simulated but not served."""
    if plan.router.frontends > 1:
        raise ConfigError(
            f"router.frontends: {plan.router.frontends}, but the live layer runs one frontend "
            "(add --set router.frontends=1)"
        )
    if any(part.router.shared_cache_multiplier for part in plan.pools()):
        raise ConfigError(
            "router.shared_cache_multiplier: live routers know of no store that all workers share "
            "(simulate the plan with `dynosim run`, or --set router.shared_cache_multiplier=0)"
        )
    if plan.cluster.is_disagg:
        _check_handoff(plan)


def _check_handoff(plan: RunConfig) -> None:
    """Raises: ConfigError for ways from prefill to decode workers that are only simulated."""
    if plan.cluster.handoff.order == "decode_first":
        raise ConfigError(
            "cluster.handoff.order: decode_first, but live workers make room after the prefill, as "
            "vLLM does (set it to prefill_first)"
        )
    prefill, decode = (part.engine for part in plan.pools())
    for key in ("block_size", "kv_cache_dtype"):
        mine, theirs = getattr(prefill, key), getattr(decode, key)
        if mine != theirs:
            raise ConfigError(
                f"cluster.prefill.engine.{key}: {mine}, but the decode workers' is {theirs}; "
                "KV can only be handed over between equal ones"
            )


def worker_plan(plan: RunConfig, role: PoolRole | Literal["agg"]) -> RunConfig:
    """The plan as a worker of this role sees it.

    Raises: ConfigError if there are no workers of that role in it.
    """
    if role != "agg" and plan.cluster.is_disagg:
        return plan.for_pool(role)
    if role == "agg" and not plan.cluster.is_disagg:
        return plan
    if role == "agg":
        raise ConfigError(
            "cluster.mode: disagg, so a worker has a role (add --role prefill|decode)"
        )
    raise ConfigError(
        f"--role {role}: the plan's workers serve whole requests (set cluster.mode: disagg)"
    )


def model_folder(plan: RunConfig, model: Path | None) -> Path | None:
    """The folder with the weights and tokenizer: `model` if given, else the plan's if it is one.

    None: the plan names its model only, or has none. Raises: ConfigError if it is not there.
    """
    if model is None:
        if plan.model is None or not is_path(plan.model):
            return None
        model = plan.resolve(plan.model)
    folder = model.parent if model.suffix == ".json" else model
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model {folder}: no config.json there (name a model's folder)")
    return folder.resolve()


def served_model_name(plan: RunConfig, model: Path | None) -> str:
    """The name that clients use: the plan's `live.served_model_name`, or that of its model."""
    return name_for_clients(plan, lambda: model_folder(plan, model))


def require_one_rank(engine: EngineConfig) -> None:
    """Refuse to start an engine of several data-parallel ranks.

    Raises: ConfigError with what to do instead.
    """
    number = engine.data_parallel
    if number > 1:
        raise ConfigError(
            f"engine.data_parallel: {number}, but live engines are started with one rank (set "
            f"engine.data_parallel: 1 and {number} times as many cluster.workers; or start `vllm "
            f"serve --data-parallel-size {number}` yourself and have `dynosim serve worker "
            "--attach URL` name it)"
        )
