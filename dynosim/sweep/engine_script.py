"""engine.sh: the plan's engines and router, as exact command lines that a user may start.

Of a disaggregated plan it is run_0.sh: engines of both pools, which find each other's KV by NIXL.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from dynosim.build.engine_command import (
    kv_event_settings,
    name_for_clients,
    vllm_flags,
    vllm_gpu_flags,
)
from dynosim.build.offload import KVBM_SETTINGS, check_vllm_tiers, connector_settings
from dynosim.build.tiers import host_bytes
from dynosim.config.cluster import POOL_ROLES, PoolRole
from dynosim.config.schema import RunConfig, is_path
from dynosim.errors import ConfigError
from dynosim.sweep.travelling_files import has_weights

PORT = 8000  # of the frontend, where the plan leaves it open
SIDE_CHANNEL_PORT = 5600  # of the first engine; vLLM's default
KVBM_PORT = 56001  # of the first engine; each has two
FIRST_ENGINE_PORT = 100  # above the frontend's
LAST_PORT = 65535
GPUS_OF_A_MACHINE = 8

_HEAD = """\
#!/usr/bin/env bash
# {title}
#   ./{file:<20} start all of it; Ctrl-C stops all
#   ./{one:<20} start one engine alone (GPUS=... for other GPUs)
#   ./{attach:<20} bring a running engine to the router
#   ./{router:<20} start the router alone
# MODEL, VLLM, DYNOSIM, HOST, PORT and RUN change the model's folder or name, the commands, the
# address and the folder of sockets. Flags are those of vLLM 0.32.
set -euo pipefail
[ ! -d "${{MODEL:-}}" ] || MODEL=$(realpath "$MODEL")
cd "$(dirname "${{BASH_SOURCE[0]}}")"
model={model}
read -r -a vllm <<< "${{VLLM:-vllm}}"
read -r -a dynosim <<< "${{DYNOSIM:-dynosim}}"
host=${{HOST:-{host}}}
port=${{PORT:-{port}}}
run=${{RUN:-${{TMPDIR:-/tmp}}/dynosim-{run}}}  # short: a socket's path has 107 characters at most
mkdir -p -m 700 "$run"
found=(--discovery "file:$run/discovery")
[ ! -d "$model" ] || found+=(--model "$model")
export VLLM_NO_USAGE_STATS=1
"""

_HOW_KV_GOES = """\
# SIDE_HOST is where engines of other machines ask for KV; UCX_TLS and UCX_NET_DEVICES choose the
# link that it takes (unset, UCX may choose TCP in silence). A worker that is started alone with
# `dynosim serve worker` says `--role prefill` or `--role decode`.
side_host=${SIDE_HOST:-127.0.0.1}
"""

_KVBM = """\
# KVBM=1 has Dynamo's KVBM (pip install kvbm; it needs etcd) keep KV in the host's memory, in place
# of vLLM itself, which the twin follows; a later flag takes the place of an earlier one.
kvbm=()
if [ -n "${{KVBM:-}}" ]; then
  kvbm=(--kv-transfer-config {settings})
  export DYN_KVBM_CPU_CACHE_GB=${{DYN_KVBM_CPU_CACHE_GB:-{size_gb:g}}}
fi
"""

_MAIN = """\

all() {{
  pids=()
  trap 'kill "${{pids[@]}}" 2> /dev/null || true; wait' EXIT
  for part in {parts}; do
    "$part" & pids+=("$!")
  done
  echo "starting; clients: http://$host:$port" >&2
  wait -n  # all of it runs for good: whatever ends first ends the rest
}}

"${{1:-all}}"
"""


@dataclass(frozen=True, slots=True)
class _Engine:
    """A worker on GPUs, and what it needs of the machine."""

    name: str  # of its function: worker_0, prefill_0
    plan: RunConfig  # as its pool sees it
    role: PoolRole | None  # None: it serves whole requests
    first_gpu: int
    port: int
    side_port: int  # where other engines ask for its KV; one for each of its ranks

    @property
    def attach(self) -> str:
        """The function that brings it to the router."""
        return f"attach_{self.name.removeprefix('worker_')}"

    @property
    def worker(self) -> str:
        """Its name for the router."""
        return self.name.replace("_", "-")


def script_name(config: RunConfig) -> str:
    """The file's name."""
    return "run_0.sh" if config.cluster.is_disagg else "engine.sh"


def engine_script(config: RunConfig, *, title: str, folder: Path) -> str:
    """The script for a plan that lies as config.yaml in `folder`, from which files are named."""
    num_workers = config.num_workers
    engines = _engines(config)
    first = engines[0] if engines else None
    file = script_name(config)
    head = _HEAD.format(
        title=f"{title}: {_counted(num_workers)} and the router before them, on this machine.",
        file=file,
        one=f"{file} {first.name if first else 'worker_0'}",
        attach=f"{file} {first.attach if first else 'attach_0'}",
        router=f"{file} router",
        model=_model(config, folder),
        host=config.live.host,
        port=config.live.port or PORT,
        run=shlex.quote(config.name.replace("/", "-") or "run"),
    )
    if config.cluster.is_disagg:
        head += _HOW_KV_GOES
    problem = unserved_tiers(config)
    if problem:
        head += f"echo {shlex.quote('error: ' + problem)} >&2\nexit 2\n"
    elif _may_use_kvbm(config):
        settings, size_gb = shlex.quote(json.dumps(KVBM_SETTINGS)), host_bytes(config) / 1e9
        head += _KVBM.format(settings=settings, size_gb=size_gb)
    if config.num_gpus > GPUS_OF_A_MACHINE:
        head += f"""\
# The plan has {config.num_gpus} GPUs. Where no machine has so many, start workers one by one on
# several machines with `dynosim serve worker config.yaml --engine vllm` and a shared discovery.
"""
    cpus = range(len(engines), num_workers)
    parts = [_worker(config, engine, folder) for engine in engines]
    parts += [_cpu_worker(index) for index in cpus]
    names = [engine.name for engine in engines] + [f"worker_{index}" for index in cpus]
    names += [engine.attach for engine in engines]
    return "\n".join([head, *parts, _router(config)]) + _MAIN.format(
        parts=" ".join([*names, "router"])
    )


def _engines(config: RunConfig) -> list[_Engine]:
    """The workers on GPUs, those that compute prompts first."""
    roles: tuple[PoolRole | None, ...] = POOL_ROLES if config.cluster.is_disagg else (None,)
    engines: list[_Engine] = []
    first_gpu, side_port = 0, SIDE_CHANNEL_PORT
    for role, pool in zip(roles, config.pools(), strict=True):
        for index in range(pool.cluster.workers - pool.cluster.cpu_workers):
            port = engine_port(config, len(engines))
            name = f"{role or 'worker'}_{index}"
            engines.append(_Engine(name, pool, role, first_gpu, port, side_port))
            first_gpu += pool.engine.gpus_per_worker
            side_port += pool.engine.data_parallel
    return engines


def _worker(config: RunConfig, started: _Engine, folder: Path) -> str:
    """One engine on its GPUs, and what makes the router know it."""
    engine, last_gpu = started.plan.engine, started.first_gpu + started.plan.engine.gpus_per_worker
    gpus = ",".join(str(gpu) for gpu in range(started.first_gpu, last_gpu))
    flags = [*engine_flags(config, started.plan, folder, role=started.role)]
    environment, role = "", ""
    if started.role is not None:
        role = f" --role {started.role}"
        environment = (
            'VLLM_NIXL_SIDE_CHANNEL_HOST="$side_host" '
            f"VLLM_NIXL_SIDE_CHANNEL_PORT={started.side_port} \\\n    "
        )
    elif _may_use_kvbm(config):
        # those who lead its copies, one for each engine, need ports of their own
        first = KVBM_PORT + 2 * int(started.name.removeprefix("worker_"))
        environment = (
            f"DYN_KVBM_LEADER_ZMQ_PUB_PORT={first} "
            f"DYN_KVBM_LEADER_ZMQ_ACK_PORT={first + 1} \\\n    "
        )
    events, query = "", ""
    # Without prefix caching there is nothing to tell; and of an engine with several ranks each
    # tells of its own cache, while the router behind this script knows workers only.
    if engine.enable_prefix_caching and engine.data_parallel == 1:
        sockets = [f"ipc://$run/{started.name}.{name}" for name in ("events", "replay")]
        settings = json.dumps(kv_event_settings(*sockets)).replace('"', '\\"')
        events = f' \\\n    --kv-events-config "{settings}"'
        query = f"?events={sockets[0]}&replay={sockets[1]}"
    if _may_use_kvbm(config):
        events += ' \\\n    "${kvbm[@]}"'
    return f"""\
{started.name}() {{
  {environment}CUDA_VISIBLE_DEVICES=${{GPUS:-{gpus}}} exec "${{vllm[@]}}" serve "$model" \\
    --host 127.0.0.1 --port {started.port} \\
    {_lines(flags)}{events}
}}
{started.attach}() {{
  exec "${{dynosim[@]}}" serve worker config.yaml --name {started.worker}{role} --engine vllm \\
    --attach "http://127.0.0.1:{started.port}{query}" "${{found[@]}}"
}}
"""


def _cpu_worker(index: int) -> str:
    """Its flags are those of the CPU it runs on, which dynosim asks then."""
    return f"""\
worker_{index}() {{
  exec "${{dynosim[@]}}" serve worker config.yaml --name worker-{index} --engine vllm-cpu \\
    "${{found[@]}}"
}}
"""


def _router(config: RunConfig) -> str:
    # The live layer runs one frontend, however many were simulated.
    one = " --set router.frontends=1" if config.router.frontends > 1 else ""
    return f"""\
router() {{
  exec "${{dynosim[@]}}" serve frontend config.yaml{one} --host "$host" --port "$port" \\
    "${{found[@]}}"
}}
"""


def engine_port(config: RunConfig, index: int) -> int:
    """The port of a worker's own server."""
    frontend = config.live.port or PORT
    first = frontend + FIRST_ENGINE_PORT
    if first + config.num_workers > LAST_PORT:
        first = frontend - FIRST_ENGINE_PORT - config.num_workers
    return first + index


def model_folder(config: RunConfig, folder: Path) -> Path | None:
    """The folder of the plan's model, seen from the plan's own."""
    if config.model is None:
        return None
    place = (folder / config.model).resolve()
    return place.parent if place.suffix == ".json" else place


def engine_flags(
    config: RunConfig, pool: RunConfig, folder: Path, *, role: PoolRole | None
) -> list[str]:
    """Flags of the engines of a pool, without what a single engine of it has: ports, events.

    Tiers that vLLM does not have are not in them: see `unserved_tiers`.
    """
    if unserved_tiers(config):
        cluster = pool.cluster.model_copy(update={"tiers": None})
        pool = pool.model_copy(update={"cluster": cluster})
    name = name_for_clients(config, lambda: model_folder(config, folder))
    flags = [*vllm_flags(pool.engine, served_model_name=name), *vllm_gpu_flags(pool.engine)]
    settings = connector_settings(
        pool, role, load_failure_policy=config.cluster.handoff.load_failure_policy
    )
    if settings is not None:
        flags += ["--kv-transfer-config", json.dumps(settings)]
    return flags


def unserved_tiers(config: RunConfig) -> str:
    """Why vLLM cannot be started with the plan's tiers; "" if it can, or there are none."""
    try:
        check_vllm_tiers(config)
    except ConfigError as error:
        return str(error)
    return ""


def _may_use_kvbm(config: RunConfig) -> bool:
    """Whether the script can also start engines whose KV is kept by KVBM."""
    has_tiers = config.cluster.tiers is not None and not unserved_tiers(config)
    return has_tiers and not config.cluster.is_disagg


def _model(config: RunConfig, folder: Path) -> str:
    """The model as vLLM takes it; who starts the script says it where only its shape is known."""
    if config.model is None:
        return "${MODEL:?set it to the name of a model, or to the folder with its weights}"
    if not is_path(config.model):
        return f"${{MODEL:-{shlex.quote(config.model)}}}"
    place = model_folder(config, folder)
    if place is not None and has_weights(place):
        return f"${{MODEL:-{shlex.quote(config.model.removesuffix('/config.json'))}}}"
    return "${MODEL:?set it to the folder with the weights of the model}"


def _lines(flags: list[str]) -> str:
    """One option with its value a line."""
    lines: list[list[str]] = []
    for word in flags:
        if word.startswith("--") or not lines:
            lines.append([word])
        else:
            lines[-1].append(word)
    return " \\\n    ".join(shlex.join(words) for words in lines)


def _counted(number: int) -> str:
    return "one engine" if number == 1 else f"{number} engines"
