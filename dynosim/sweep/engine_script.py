"""engine.sh: the plan's engines and router, as exact command lines that a user may start."""

import json
import shlex
from pathlib import Path

from dynosim.build.engine_command import (
    kv_event_settings,
    name_for_clients,
    vllm_flags,
    vllm_gpu_flags,
)
from dynosim.config.schema import RunConfig, is_path
from dynosim.sweep.travelling_files import has_weights

PORT = 8000  # of the frontend, where the plan leaves it open
FIRST_ENGINE_PORT = 100  # above the frontend's
LAST_PORT = 65535
GPUS_OF_A_MACHINE = 8

_HEAD = """\
#!/usr/bin/env bash
# {title}
#   ./engine.sh            start all of it; Ctrl-C stops all
#   ./engine.sh worker_0   start one engine alone (GPUS=... for other GPUs)
#   ./engine.sh attach_0   bring a running engine to the router
#   ./engine.sh router     start the router alone
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


def engine_script(config: RunConfig, *, title: str, folder: Path) -> str:
    """The script for a plan that lies as config.yaml in `folder`, from which files are named."""
    num_workers = config.cluster.workers
    num_gpu_workers = num_workers - config.cluster.cpu_workers
    head = _HEAD.format(
        title=f"{title}: {_counted(num_workers)} and the router before them, on this machine.",
        model=_model(config, folder),
        host=config.live.host,
        port=config.live.port or PORT,
        run=shlex.quote(config.name.replace("/", "-") or "run"),
    )
    if config.num_gpus > GPUS_OF_A_MACHINE:
        head += f"""\
# The plan has {config.num_gpus} GPUs. Where no machine has so many, start workers one by one on
# several machines with `dynosim serve worker config.yaml --engine vllm` and a shared discovery.
"""
    parts = [_worker(config, index, folder) for index in range(num_gpu_workers)]
    parts += [_cpu_worker(index) for index in range(num_gpu_workers, num_workers)]
    names = [f"worker_{index}" for index in range(num_workers)]
    names += [f"attach_{index}" for index in range(num_gpu_workers)]
    return "\n".join([head, *parts, _router(config)]) + _MAIN.format(
        parts=" ".join([*names, "router"])
    )


def _worker(config: RunConfig, index: int, folder: Path) -> str:
    """One engine on its GPUs, and what makes the router know it."""
    engine = config.engine
    first = index * engine.gpus_per_worker
    gpus = ",".join(str(gpu) for gpu in range(first, first + engine.gpus_per_worker))
    port = engine_port(config, index)
    flags = [*_flags(config, folder), *vllm_gpu_flags(engine)]
    events, query = "", ""
    # Without prefix caching there is nothing to tell; and of an engine with several ranks each
    # tells of its own cache, while the router behind this script knows workers only.
    if engine.enable_prefix_caching and engine.data_parallel == 1:
        sockets = [f"ipc://$run/worker_{index}.{name}" for name in ("events", "replay")]
        settings = json.dumps(kv_event_settings(*sockets)).replace('"', '\\"')
        events = f' \\\n    --kv-events-config "{settings}"'
        query = f"?events={sockets[0]}&replay={sockets[1]}"
    return f"""\
worker_{index}() {{
  CUDA_VISIBLE_DEVICES=${{GPUS:-{gpus}}} exec "${{vllm[@]}}" serve "$model" \\
    --host 127.0.0.1 --port {port} \\
    {_lines(flags)}{events}
}}
attach_{index}() {{
  exec "${{dynosim[@]}}" serve worker config.yaml --name worker-{index} --engine vllm \\
    --attach "http://127.0.0.1:{port}{query}" "${{found[@]}}"
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
    if first + config.cluster.workers > LAST_PORT:
        first = frontend - FIRST_ENGINE_PORT - config.cluster.workers
    return first + index


def model_folder(config: RunConfig, folder: Path) -> Path | None:
    """The folder of the plan's model, seen from the plan's own."""
    if config.model is None:
        return None
    place = (folder / config.model).resolve()
    return place.parent if place.suffix == ".json" else place


def _flags(config: RunConfig, folder: Path) -> list[str]:
    name = name_for_clients(config, lambda: model_folder(config, folder))
    return vllm_flags(config.engine, served_model_name=name)


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
