"""From the options of `serve worker` to the engine it stands for."""

import sys
import tempfile
from pathlib import Path

from dynosim.config import RunConfig
from dynosim.config.cluster import PoolRole
from dynosim.errors import ConfigError
from dynosim_runtime.adapters.base import EngineAdapter, KvExchange, LaunchSpec
from dynosim_runtime.adapters.sglang import SglangAdapter
from dynosim_runtime.adapters.trtllm import TrtllmAdapter
from dynosim_runtime.adapters.vllm import VllmAdapter
from dynosim_runtime.card import Role
from dynosim_runtime.config import (
    model_folder,
    require_one_rank,
    served_model_name,
    worker_plan,
)
from dynosim_runtime.hosts import advertised_host, http_url
from dynosim_runtime.mock.worker import MockWorker, mock_exchange
from dynosim_runtime.ports import listening_socket
from dynosim_runtime.worker.attach import Attachment, parse_attachment
from dynosim_runtime.worker.event_sources import (
    EngineSockets,
    EventEndpoints,
    GivenEvents,
    RelayedEvents,
)
from dynosim_runtime.worker.served import MockServed, RealServed, ServedEngine


def make_served(
    plan: RunConfig,
    *,
    name: str,
    engine: str,
    host: str,
    port: int,
    model: Path | None,
    engine_python: Path | None,
    attach: str | None,
    speedup: float,
    role: Role = "agg",
) -> ServedEngine:
    """The engine, not started. Raises: ConfigError; LiveError if the port is taken."""
    whole, plan = plan, worker_plan(plan, role)
    if attach is None:
        require_one_rank(plan.engine)
    if engine in ("mock", "mock-cpu"):
        on_cpu = engine == "mock-cpu"
        if attach is not None:
            raise ConfigError("--attach: a mock engine runs in the worker itself (remove it)")
        worker = MockWorker(
            plan,
            name=name,
            host=host,
            port=port,
            speedup=speedup,
            model_path=model,
            on_cpu=on_cpu,
            exchange=None if role == "agg" else mock_exchange(whole, role),
        )
        return MockServed(worker, name, plan, model, "cpu" if on_cpu else "gpu", role)
    if speedup != 1.0:
        raise ConfigError(f"--speedup {speedup:g}: only mock engines can be sped up (remove it)")
    adapter = make_adapter(engine)
    attachment = None if attach is None else parse_attachment(attach)
    scratch = tempfile.TemporaryDirectory(prefix="dynosim-", ignore_cleanup_errors=True)
    events = _events(plan, adapter, host, attachment, Path(scratch.name))
    spec = LaunchSpec(
        plan=plan,
        model=_model(plan, model, is_attached=attachment is not None),
        served_model_name=served_model_name(plan, model),
        host=host,
        port=_checked_port(host, port) if attachment is None else 0,
        python=_python(engine_python),
        event_sources=(events.told,) if isinstance(events, EngineSockets) else (),
        scratch=Path(scratch.name),
        exchange=None if role == "agg" else _exchange(role, whole, host),
    )
    url = http_url(host, spec.port) if attachment is None else attachment.url
    return RealServed(
        adapter,
        spec,
        events,
        name=name,
        url=url,
        is_attached=attachment is not None,
        on_stop=scratch.cleanup,
        role=role,
    )


def make_adapter(engine: str) -> EngineAdapter:
    """The adapter of a real engine. Raises: ConfigError for an unknown one."""
    if engine in ("vllm", "vllm-cpu"):
        return VllmAdapter(on_cpu=engine == "vllm-cpu")
    if engine == "sglang":
        return SglangAdapter()
    if engine == "trtllm":
        return TrtllmAdapter()
    raise ConfigError(
        f"--engine {engine}: expected mock, vllm, vllm-cpu, sglang, trtllm or mock-cpu"
    )


def _exchange(role: PoolRole, plan: RunConfig, host: str) -> KvExchange:
    return KvExchange(
        role=role,
        host=advertised_host(host),
        port=_checked_port(host, 0),
        load_failure_policy=plan.cluster.handoff.load_failure_policy,
    )


def _events(
    plan: RunConfig,
    adapter: EngineAdapter,
    host: str,
    attachment: Attachment | None,
    scratch: Path,
) -> EventEndpoints:
    """Without prefix caching there is nothing to tell."""
    if not plan.engine.enable_prefix_caching:
        return GivenEvents()
    if attachment is not None and (attachment.events or adapter.relay is None):
        return GivenEvents(attachment.events)
    if adapter.relay is not None:
        return RelayedEvents(host, adapter.relay, plan.engine.block_size)
    return EngineSockets(host, scratch)


def _model(plan: RunConfig, model: Path | None, *, is_attached: bool) -> str:
    """The folder or name that an engine loads."""
    folder = model_folder(plan, model)
    if folder is not None:
        return str(folder)
    if plan.model is None and not is_attached:
        raise ConfigError("model: missing; a real engine needs one (add --model DIR)")
    return plan.model or ""


def _python(engine_python: Path | None) -> Path:
    # not resolved: a virtual environment's python is a link, and its place says where it belongs
    python = Path(sys.executable) if engine_python is None else engine_python.absolute()
    if not python.is_file():
        raise ConfigError(f"--engine-python {engine_python}: there is no such file")
    return python


def _checked_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises: LiveError if it is taken."""
    with listening_socket(host, port) as probe:
        number: int = probe.getsockname()[1]
        return number
