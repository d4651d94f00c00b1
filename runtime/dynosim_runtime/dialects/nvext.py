"""The `nvext` extension: hints that come with a request, facts that go with its answer."""

from typing import Annotated, Any

import msgspec

from dynosim.workers.wishes import Overrides, WishError, read_overrides
from dynosim_runtime.dialects.cache_control import ttl_s
from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.requests import RequestRecord

Count = Annotated[int, msgspec.Meta(ge=0)]
Priority = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
PIN_FIELD = "nvext.cache_control"
PINS = ("worker_id", "backend_instance_id", "prefill_worker_id", "decode_worker_id")


class AgentHints(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's harness knows of its request."""

    priority: Priority | None = None  # higher is more important
    osl: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Expected output tokens; where the router tracks output, load fades towards them."""
    speculative_prefill: bool | None = None
    """Once the answer is out, have the conversation with it computed for the next turn."""
    prefetch: Any = None
    """Load KV ahead of the next turn: of no use to say, see `NvExt.check_hints`."""


class RoutingConstraints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which workers may take a request, and which are liked, by their taints.

    A worker has those of its card, and `dynamo.topology/DOMAIN=VALUE` for each of its topology.
    """

    required_taints: tuple[str, ...] = ()
    preferred_taints: dict[str, float] = {}  # weights: positive attracts, negative repels


class NvExt(msgspec.Struct, frozen=True, kw_only=True):
    """The extension of a request. Fields that are not known are ignored."""

    agent_hints: AgentHints = AgentHints()
    routing_constraints: RoutingConstraints = RoutingConstraints()
    router_config_override: dict[str, Any] | None = None  # weights of the cost, for this request
    cache_control: dict[str, Any] | None = None  # keep the prompt cached for so long
    backend_instance_id: Count | None = None  # the worker to use
    worker_id: Count | None = None  # the same
    prefill_worker_id: Count | None = None  # as in answers; here one worker does both,
    decode_worker_id: Count | None = None  # so that these are the same, too
    dp_rank: Count | None = None

    def check_hints(self) -> None:
        """Raises: ApiError 400 for a hint that no engine can follow, rather than to ignore it."""
        if self.agent_hints.prefetch is not None:
            what = "engines load KV for a request that has come, not ahead of it (leave it out)"
            raise refuse("nvext.agent_hints.prefetch", what, "unsupported_value")

    def pin_ttl_s(self) -> float | None:
        """How long after its end its prompt is to be kept. Raises: ApiError 400, see `ttl_s`."""
        return None if self.cache_control is None else ttl_s(self.cache_control, PIN_FIELD)

    def cost_overrides(self) -> Overrides:
        """Weights of the cost that this request brings. Raises: ApiError 400 that names the key."""
        try:
            return read_overrides(self.router_config_override or {})
        except WishError as error:
            where = f"nvext.router_config_override.{error.key}"
            raise refuse(where, error.message, "invalid_value") from None

    def pinned_worker_id(self) -> int | None:
        """The worker that the client asks for. Raises: ApiError 400 for two, or a rank of none."""
        named = {name: value for name in PINS if (value := getattr(self, name)) is not None}
        ids = set(named.values())
        if len(ids) > 1:
            first, *others = named
            other = next(name for name in others if named[name] != named[first])
            raise refuse(f"nvext.{first}", f"differs from nvext.{other}", "invalid_value")
        if self.dp_rank is not None and not ids:
            raise refuse("nvext.dp_rank", "a rank of which worker? Give worker_id", "invalid_value")
        return ids.pop() if ids else None


def answer_nvext(record: RequestRecord, received_ms: int) -> dict[str, Any]:
    """`worker_id` and `timing` of an answer; what is not known is left out.

    `received_ms` is the Unix time of arrival. `kv_hit_rate` is the router's expectation when it
    placed the request, `usage...cached_tokens` what the engine found: the two may differ.
    """
    timing = {
        "request_received_ms": received_ms,
        "prefill_wait_time_ms": record.prefill_wait_time_ms,
        "prefill_time_ms": record.prefill_time_ms,
        "ttft_ms": record.ttft_ms,
        "total_time_ms": record.e2e_ms,
        "kv_hit_rate": record.kv_hit_rate,
    }
    workers = {
        "prefill_worker_id": record.prefill_worker_id,
        "prefill_dp_rank": record.prefill_dp_rank,
        "decode_worker_id": record.decode_worker_id,
        "decode_dp_rank": record.decode_dp_rank,
    }
    answer = {"timing": {key: value for key, value in timing.items() if value is not None}}
    known = {key: value for key, value in workers.items() if value is not None}
    return {"worker_id": known, **answer} if known else answer
