"""Files beside a disaggregated winner that others read: vLLM, and who reads AIConfigurator's.

`prefill_config.yaml` and `decode_config.yaml` are for `vllm serve MODEL --config FILE`, one a pool;
what single engines differ in (ports, GPUs, events) stands in run_0.sh. `generator_config.yaml` has
the sections that AIConfigurator's file of that name has.
"""

from pathlib import Path
from typing import Any

from dynosim.build.engine_command import name_for_clients
from dynosim.config.cluster import POOL_ROLES, PoolRole
from dynosim.config.schema import RunConfig
from dynosim.config.timing import AiconfiguratorTiming
from dynosim.sweep.engine_script import PORT, engine_flags, model_folder, unserved_tiers

POOL_FILES: dict[PoolRole, str] = {role: f"{role}_config.yaml" for role in POOL_ROLES}
GENERATOR_FILE = "generator_config.yaml"


def pool_files(config: RunConfig, folder: Path) -> dict[str, str]:
    """The files' texts by name; none for an aggregated plan. `config` lies in `folder`."""
    if not config.cluster.is_disagg:
        return {}
    texts = {POOL_FILES[role]: _engine_text(config, role, folder) for role in POOL_ROLES}
    return {**texts, GENERATOR_FILE: _yaml(generator_config(config, folder))}


def engine_config(flags: list[str]) -> dict[str, Any]:
    """vLLM's flags as keys of its `--config` file. A flag without a value is true, a number one."""
    found: dict[str, Any] = {}
    name = ""
    for word in flags:
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = True
        else:
            found[name] = _plain(word)
    return found


def generator_config(config: RunConfig, folder: Path) -> dict[str, Any]:
    """What AIConfigurator's generator is told of a deployment."""
    pools = dict(zip(POOL_ROLES, config.pools(), strict=True))
    synthetic = config.workload.synthetic
    lengths = {} if synthetic is None else {"isl": synthetic.isl.mean, "osl": synthetic.osl.mean}
    sla = config.sla
    bounds = {} if sla is None else {"ttft": sla.ttft_ms, "tpot": sla.itl_ms}
    told = {key: value for key, value in {**lengths, **bounds}.items() if value is not None}
    return {
        "backend": config.engine.kind,
        "version": _version(config),
        "ServiceConfig": {
            "model_path": config.model,
            "served_model_name": name_for_clients(config, lambda: model_folder(config, folder)),
            "port": config.live.port or PORT,
        },
        "DynConfig": {"mode": config.cluster.mode},
        "WorkerConfig": {
            **{f"{role}_workers": pool.cluster.workers for role, pool in pools.items()},
            **{f"{r}_gpus_per_worker": pool.engine.gpus_per_worker for r, pool in pools.items()},
        },
        **({"SlaConfig": told} if told else {}),
        "params": {role: _params(pool) for role, pool in pools.items()},
    }


def _params(pool: RunConfig) -> dict[str, Any]:
    engine = pool.engine
    blocks = {} if engine.num_gpu_blocks == "auto" else {"num_gpu_blocks": engine.num_gpu_blocks}
    return {
        "system": str(pool.hardware) if pool.hardware is not None else None,
        "tensor_parallel_size": engine.tensor_parallel,
        "pipeline_parallel_size": 1,
        "data_parallel_size": engine.data_parallel,
        "max_batch_size": engine.max_num_seqs,
        "max_num_tokens": engine.max_num_batched_tokens,
        "max_seq_len": engine.max_model_len,
        "tokens_per_block": engine.block_size,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "kv_cache_free_gpu_memory_fraction": engine.memory_fraction,
        "disable_prefix_cache": not engine.enable_prefix_caching,
        "enable_chunked_prefill": engine.enable_chunked_prefill,
        **blocks,
    }


def _version(config: RunConfig) -> str | None:
    timing = config.timing
    return timing.backend_version if isinstance(timing, AiconfiguratorTiming) else None


def _engine_text(config: RunConfig, role: PoolRole, folder: Path) -> str:
    problem = unserved_tiers(config) if role == "prefill" else ""
    warning = f"# Without its tiers; {problem}\n" if problem else ""
    keys = engine_config(engine_flags(config, config.for_pool(role), folder, role=role))
    return (
        f"# Engines of the {role} pool: vllm serve MODEL --config {POOL_FILES[role]} (vLLM 0.32)\n"
        + warning
        + _yaml(keys)
    )


def _plain(word: str) -> Any:
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word


def _yaml(data: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
