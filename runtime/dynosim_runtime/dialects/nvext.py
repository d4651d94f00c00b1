"""The `nvext` extension: hints that come with a request, facts that go with its answer."""

import re
from typing import Annotated, Any, Literal

import msgspec

from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.requests import RequestRecord

Count = Annotated[int, msgspec.Meta(ge=0)]
Priority = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
PINS = ("worker_id", "backend_instance_id", "prefill_worker_id", "decode_worker_id")
DEFAULT_TTL_S = 300.0  # Anthropic's
_TTL = re.compile(r"^(\d+(?:\.\d+)?)([smh]?)$")
_UNIT_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class AgentHints(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's harness knows of its request."""

    priority: Priority | None = None  # higher is more important
    osl: Annotated[int, msgspec.Meta(ge=1)] | None = None  # expected output tokens


class CacheControl(msgspec.Struct, frozen=True, kw_only=True):
    """Keep the prefix of this prompt."""

    type: Literal["ephemeral"]
    ttl: str | Annotated[float, msgspec.Meta(gt=0)] | None = None  # "5m", "1h", or seconds

    def ttl_s(self) -> float:
        """Seconds to keep it. Raises: ApiError 400."""
        if self.ttl is None:
            return DEFAULT_TTL_S
        if not isinstance(self.ttl, str):
            return float(self.ttl)
        match = _TTL.match(self.ttl)
        seconds = float(match[1]) * _UNIT_S[match[2]] if match else 0.0
        if seconds <= 0:
            raise refuse(
                "nvext.cache_control.ttl",
                f'expected a time like "5m" or "1h", got {self.ttl!r}',
                "invalid_value",
            )
        return seconds


class NvExt(msgspec.Struct, frozen=True, kw_only=True):
    """The extension of a request. Fields that are not known are ignored."""

    agent_hints: AgentHints = AgentHints()
    cache_control: CacheControl | None = None
    backend_instance_id: Count | None = None  # the worker to use
    worker_id: Count | None = None  # the same
    prefill_worker_id: Count | None = None  # as in answers; here one worker does both,
    decode_worker_id: Count | None = None  # so that these are the same, too
    dp_rank: Count | None = None

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
