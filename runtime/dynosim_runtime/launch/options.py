"""What the user asks of a deployment, checked against the plan before anything starts."""

import subprocess
import sys
from pathlib import Path

from dynosim.atomic import check_folder
from dynosim.build.offload import check_vllm_tiers, refuse_tiers
from dynosim.config import RunConfig
from dynosim.errors import ConfigError
from dynosim.files.result_folder import DEPLOYMENT, check_results
from dynosim_runtime.card import HANDING_OVER, PASSING_FIRST_TOKEN
from dynosim_runtime.config import check_live, model_folder, require_one_rank
from dynosim_runtime.launch.specs import DeployOptions, Engine
from dynosim_runtime.mock.tiers import check_mock_tiers
from dynosim_runtime.ports import check_port

REAL_ENGINES: dict[str, str] = {  # and the module that its Python must have
    "vllm": "vllm",
    "vllm-cpu": "vllm",
    "sglang": "sglang",
    "trtllm": "tensorrt_llm",
}
DEPLOYMENTS = Path("deployments")
IMPORT_CHECK_TIMEOUT_S = 60.0


def deploy_options(
    plan: RunConfig,
    plan_path: Path,
    *,
    mock: bool,
    real: bool,
    target: str = "local",
    out: Path | None = None,
    overwrite: bool = False,
    model: Path | None = None,
    engine: Engine | None = None,
    engine_python: Path | None = None,
    speedup: float = 1.0,
    port: int | None = None,
) -> DeployOptions:
    """The options of `dynosim deploy`, complete and possible. Raises: ConfigError."""
    if target != "local":
        raise ConfigError(f"--target {target}: only local is there; Kubernetes comes later")
    check_live(plan)
    for part in plan.pools():
        require_one_rank(part.engine)
    check_port(port)
    kind = _engine(plan, mock=mock, real=real, engine=engine)
    _check_speedup(kind, speedup)
    if plan.cluster.is_disagg:
        _check_handoff(kind, plan)
    if plan.cluster.cpu_workers and kind in ("sglang", "trtllm"):
        raise ConfigError(f"cluster.cpu_workers: {kind} runs on GPUs only (set it to 0)")
    folder = model_folder(plan, model)
    _check_tiers(kind, plan)
    if kind != "mock":
        _check_model(kind, plan, folder)
    place = (out if out is not None else DEPLOYMENTS / _name(plan, plan_path)).absolute()
    check_folder(place)
    check_results(place, DEPLOYMENT, overwrite=overwrite)
    return DeployOptions(
        out=place,
        engine=kind,
        port=plan.live.port if port is None else port,
        model=folder,
        engine_python=None if engine_python is None else engine_python.absolute(),
        speedup=speedup,
    )


def _engine(plan: RunConfig, *, mock: bool, real: bool, engine: Engine | None) -> Engine:
    if mock == real:
        raise ConfigError("deploy: give either --mock (simulated engines) or --real")
    kind: Engine = engine if engine is not None else ("mock" if mock else plan.engine.kind)
    if kind != "mock" and kind not in REAL_ENGINES:
        raise ConfigError(f"--engine {kind}: expected mock, {', '.join(REAL_ENGINES)}")
    if mock != (kind == "mock"):
        mode = "--mock" if mock else "--real"
        raise ConfigError(f"{mode} --engine {kind}: these contradict each other (drop one)")
    return kind


def _check_handoff(kind: Engine, plan: RunConfig) -> None:
    engine = kind.removesuffix("-cpu")
    if engine not in HANDING_OVER:
        raise ConfigError(
            f"--engine {kind}: cluster.mode: disagg, but {kind} engines hand no KV over here "
            "(--mock or --engine vllm do; or set cluster.mode: agg)"
        )
    if plan.cluster.handoff.first_token == "prefill" and engine not in PASSING_FIRST_TOKEN:
        raise ConfigError(
            f"--engine {kind}: cluster.handoff.first_token: prefill, but vLLM's decode workers "
            "compute the first token themselves (set it to decode)"
        )


def _check_tiers(kind: Engine, plan: RunConfig) -> None:
    if kind == "mock":
        check_mock_tiers(plan.cluster.tiers)
    elif kind in ("vllm", "vllm-cpu"):
        check_vllm_tiers(plan, on_cpu=kind == "vllm-cpu")
    else:
        refuse_tiers(plan, kind)


def _check_speedup(kind: Engine, speedup: float) -> None:
    if not 0 < speedup < float("inf"):
        raise ConfigError(f"--speedup {speedup:g}: expected a number above 0")
    if kind != "mock" and speedup != 1:
        raise ConfigError(f"--speedup {speedup:g}: only simulated engines (--mock) can hurry")


def _check_model(kind: Engine, plan: RunConfig, folder: Path | None) -> None:
    if folder is None:
        if kind == "vllm-cpu" or plan.model is None:
            raise ConfigError(
                f"--engine {kind} needs --model DIR, a folder with the model's weights "
                f"({_where_weights_are(plan)})"
            )
        return  # a name: the engine fetches it
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ConfigError(f"model {folder}: no weights there (*.safetensors), only a description")


def _where_weights_are(plan: RunConfig) -> str:
    if plan.model is not None and plan.resolve(plan.model).is_dir():
        return f"model: {plan.model} counts as a name; as a folder it is ./{plan.model}"
    return "`dynosim tiny-model DIR` writes a small one"


def check_engine_installed(options: DeployOptions) -> None:
    """Raises: ConfigError if the Python that is to run a real engine does not have it."""
    if options.engine == "mock":
        return
    python = str(options.engine_python or sys.executable)
    module = REAL_ENGINES[options.engine]
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    try:
        done = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=IMPORT_CHECK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--engine-python {python}: {error}") from None
    if done.returncode != 0:
        raise ConfigError(
            f"--engine {options.engine}: {python} has no {module} (name the Python of the "
            "environment that has it: --engine-python PATH)"
        )


def _name(plan: RunConfig, plan_path: Path) -> str:
    """The deployment's name: the plan's, or its file's or folder's."""
    return (plan.name or plan_path.resolve().stem).replace("/", "-")
