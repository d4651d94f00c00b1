"""The `live:` section: how a plan runs for real. A simulation reads its `migration_limit`, and
what its metrics are labelled with."""

from typing import Annotated, Literal

from pydantic import Field

from dynosim.config.base import Amount, Count, Section

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class LiveConfig(Section):
    """Frontend, discovery and workers of a deployment."""

    host: str = "127.0.0.1"
    """Address that the frontend listens on."""
    port: Port = 8000
    """Port of the frontend; 0 takes any free one."""
    served_model_name: str | None = None
    """Name that clients use for the model; null: the plan's model."""
    metrics_namespace: Annotated[str, Field(min_length=1)] = "dynosim"
    """The label `dynamo_namespace` of the frontend's metrics, live and simulated."""
    discovery: Literal["file", "etcd", "kubernetes"] = "file"
    """How frontends and workers find each other."""
    discovery_endpoint: str | None = None
    """Folder, etcd address or Kubernetes namespace of the discovery; null: its usual one."""
    tool_parser: Literal["hermes", "llama3_json", "mistral"] | None = None
    """How the model writes tool calls; null: they are not parsed."""
    reasoning_parser: Literal["deepseek_r1", "qwen3"] | None = None
    """How the model writes its reasoning; null: it is not parsed."""
    lease_s: Seconds = 5.0
    """A worker that was not heard of for so long is gone."""
    migration_limit: Amount = 3
    """How often a request may move to another worker when its own is lost. Unit: times."""
    max_body_bytes: Count = 16 << 20
    """Largest body of an HTTP request that the frontend reads."""
    max_concurrent_requests: Count = 8192
    """Requests in flight at the frontend; beyond them, 503. Unit: requests."""
    request_timeout_s: Seconds = 600.0
    """Longest time of a request, from its arrival to its last token."""
    first_token_timeout_s: Seconds = 300.0
    """Longest time of a request from its arrival to its first token."""
    drain_timeout_s: Seconds = 30.0
    """Time for what is under way when a process is told to stop."""
    ready_timeout_s: Seconds = 600.0
    """Time for a worker to become ready."""
    engine_args: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """More of a real engine's command line; what comes last wins."""
    engine_env: dict[str, str] = Field({})
    """More environment variables of a real engine, by name."""
    taints: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Labels of the workers, which a request may require or prefer."""
    topology: dict[str, str] = Field({})
    """Where the workers are: domain (like zone or rack) to value."""
    ignore_cache_control: bool = False
    """Whether a request that asks to keep its prompt (`nvext.cache_control`) is served by an engine
    that cannot, instead of being refused."""
    strip_anthropic_preamble: bool = False
    """Whether the billing line that clients put before the system prompt is left out."""
    router_log: bool = True
    """Whether the router's inputs and decisions are kept, for `dynosim replay-log`."""
    router_log_mib: Count = 64
    """Size of one file of the router's log, and of a controller's."""
    router_log_files: Annotated[int, Field(ge=2, le=10_000)] = 4
    """Files of the router's log that are kept, and of a controller's. Unit: files."""
    process_log_mib: Count = 64
    """Size of one file with the output of a deployment's process."""
    process_log_files: Annotated[int, Field(ge=2, le=10_000)] = 4
    """Files of each process's output that are kept. Unit: files."""
