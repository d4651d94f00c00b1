"""`cache_control`: how long a client wants its prompt kept, whoever uses the cache meanwhile."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from dynosim_runtime.dialects.decoding import refuse

DEFAULT_TTL_S = 300.0
"""Where no `ttl` is given, as in Anthropic's API."""
TTL_MAX_S = 86_400.0
_TTL = re.compile(r"\A(\d{1,6})([smh])\Z")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def ttl_s(control: Any, where: str) -> float:
    """How long in s. Raises: ApiError 400 for what is no `{type: ephemeral, ttl: 5m}`."""
    if not isinstance(control, dict):
        raise refuse(where, 'expected an object such as {"type": "ephemeral"}', "invalid_type")
    if control.get("type") != "ephemeral":
        raise refuse(f"{where}.type", "expected ephemeral", "invalid_value")
    ttl = control.get("ttl")
    if ttl is None:
        return DEFAULT_TTL_S
    match = _TTL.match(ttl) if isinstance(ttl, str) else None
    seconds = 0.0 if match is None else int(match[1]) * _UNIT_S[match[2]]
    if not 0 < seconds <= TTL_MAX_S:
        raise refuse(f"{where}.ttl", "expected a time up to 24h, such as 30s, 5m or 1h",
                     "invalid_value")  # fmt: skip
    return seconds


def longest_ttl_s(*lists: tuple[str, Any]) -> float | None:
    """The longest time that any of these blocks is marked with; None: none is.

    Each list of blocks, or of messages with blocks in them, comes with its place in the body.
    Raises: ApiError 400 as `ttl_s`.
    """
    return max((seconds for where, blocks in lists for seconds in _marks(blocks, where)),
               default=None)  # fmt: skip


def _marks(blocks: Any, where: str) -> Iterator[float]:
    for index, block in enumerate(_listed(blocks)):
        if not isinstance(block, dict):
            continue
        here = f"{where}[{index}]"
        if block.get("cache_control") is not None:
            yield ttl_s(block["cache_control"], f"{here}.cache_control")
        yield from _marks(block.get("content"), f"{here}.content")


def _listed(blocks: Any) -> Iterable[Any]:
    return blocks if isinstance(blocks, list) else ()
