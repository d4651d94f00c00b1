"""The `live:` section: how a plan runs for real. The simulation does not read it."""

from typing import Annotated, Literal

from pydantic import Field

from dynosim.config.base import Amount, Count, Section

Seconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]


class LiveConfig(Section):
    """Frontend, discovery and workers of a deployment."""

    host: str = "127.0.0.1"  # what the frontend listens on
    port: Port = 8000  # 0: any free one
    served_model_name: str | None = None  # the name clients use; None: the plan's model
    discovery: Literal["file", "etcd", "kubernetes"] = "file"
    discovery_endpoint: str | None = None  # folder, etcd address or namespace; None: a default
    tool_parser: Literal["hermes", "llama3_json", "mistral"] | None = None  # how calls are written
    reasoning_parser: Literal["deepseek_r1", "qwen3"] | None = None  # how reasoning is
    lease_s: Seconds = 5.0  # a worker not heard of for so long is gone
    migration_limit: Amount = 3  # times a request may move on when its worker is lost
    max_body_bytes: Count = 16 << 20
    max_concurrent_requests: Count = 8192  # beyond: 503
    request_timeout_s: Seconds = 600.0  # from arrival to the last token
    first_token_timeout_s: Seconds = 300.0
    drain_timeout_s: Seconds = 30.0  # for what is under way when a process is told to stop
    ready_timeout_s: Seconds = 600.0  # for a worker to become ready
    engine_args: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """More of a real engine's command line; what comes last wins. A list, in YAML."""
    engine_env: dict[str, str] = Field({})  # more variables of a real engine
    taints: Annotated[tuple[str, ...], Field(strict=False)] = ()  # of workers; a list, in YAML
    topology: dict[str, str] = Field({})  # of workers: domain to value
    strip_anthropic_preamble: bool = False  # clients' billing line before the system prompt
    router_log: bool = True  # keep the router's inputs and decisions, for replay-log
    router_log_mib: Count = 64  # size of one file of it
    router_log_files: Annotated[int, Field(ge=2, le=10_000)] = 4  # so many are kept
    process_log_mib: Count = 64  # of a file with the output of a deployment's process
    process_log_files: Annotated[int, Field(ge=2, le=10_000)] = 4  # so many are kept of each
