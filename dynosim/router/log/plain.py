"""What a router takes in and tells, as values that any file format holds, and back."""

import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import Tier
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.router.decision import Decision, Refusal
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import CostSpec
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard

WISHES = tuple(field.name for field in fields(RoutingRequest)[5:])
NO_WISHES = RoutingRequest(0, 1, 0)  # what most requests leave at its default

Entry = list[Any]
"""What one line of a log holds: its kind, its time, and what the kind needs."""


def outcome_to_plain(outcome: Decision | Refusal) -> Any:
    """A decision or refusal as plain values."""
    if isinstance(outcome, Decision):
        return [getattr(outcome, field.name) for field in fields(outcome)]
    error = outcome.error
    return {"id": outcome.request_id, "status": error.http_status, "reason": str(error)}


def card_to_plain(card: WorkerCard) -> dict[str, Any]:
    """A worker card as plain values."""
    plain = _fields_of(card)
    return plain | {"taints": sorted(card.taints), "topology": dict(card.topology)}


def card_from_plain(plain: dict[str, Any]) -> WorkerCard:
    """The worker card again."""
    return WorkerCard(**{**plain, "taints": frozenset(plain["taints"])})


def event_to_plain(event: BlockEvent | KvEvent) -> Any:
    """A block event as plain values."""
    if isinstance(event, KvEvent):
        *plain, tier = (getattr(event, field.name) for field in fields(event))
        return plain if tier is Tier.DEVICE else [*plain, int(tier)]
    if isinstance(event, Stored):
        hashes, local = list(event.block_hashes), list(event.local_hashes)
        return {"stored": hashes, "local": local, "parent": event.parent, "tier": int(event.tier)}
    if isinstance(event, Removed):
        return {"removed": list(event.block_hashes), "tier": int(event.tier)}
    return {"cleared": None if event.tier is None else int(event.tier)}


def event_from_plain(plain: Any) -> BlockEvent | KvEvent:
    """The block event again."""
    if isinstance(plain, list):
        is_stored, content, first_block, num_blocks, parent, *tier = plain
        return KvEvent(is_stored, content, first_block, num_blocks, parent, *map(Tier, tier))
    if "stored" in plain:
        return Stored(plain["parent"], plain["stored"], plain["local"], Tier(plain["tier"]))
    if "removed" in plain:
        return Removed(plain["removed"], Tier(plain["tier"]))
    tier = plain["cleared"]
    return Cleared(None if tier is None else Tier(tier))


def cost_to_plain(cost: CostSpec) -> dict[str, Any]:
    """Weights of the cost function as plain values."""
    return _fields_of(cost)


def cost_from_plain(plain: dict[str, Any]) -> CostSpec:
    """The weights again."""
    return CostSpec(**plain)


def request_to_plain(request: RoutingRequest) -> dict[str, Any]:
    """A request as plain values; what has its default is left out."""
    plain: dict[str, Any] = {
        "request_id": request.request_id,
        "input_tokens": request.input_tokens,
        "num_blocks": request.num_blocks,
    }
    if len(request.blocks):
        plain["blocks"] = list(request.blocks)
    if len(request.keys):
        plain["keys"] = list(request.keys)
    for wish in WISHES:
        value = getattr(request, wish)
        if value != getattr(NO_WISHES, wish):
            plain[wish] = _wish_to_plain(value)
    return plain


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _wish_to_plain(value: Any) -> Any:
    if isinstance(value, CostSpec):
        return cost_to_plain(value)
    if not isinstance(value, Constraints):
        return value
    plain = _fields_of(value)
    plain["required_taints"] = sorted(value.required_taints)
    if value.allowed_workers is not None:
        plain["allowed_workers"] = sorted(value.allowed_workers)
    return plain | {"preferred_taints": dict(value.preferred_taints)}


def request_from_plain(plain: dict[str, Any]) -> RoutingRequest:
    """The request again."""
    values = dict(plain)
    if "overrides" in values:
        values["overrides"] = cost_from_plain(values["overrides"])
    if "shared_ranges" in values:
        values["shared_ranges"] = tuple([(first, end) for first, end in values["shared_ranges"]])
    if "constraints" in values:
        rules = dict(values["constraints"])
        rules["required_taints"] = frozenset(rules["required_taints"])
        if rules["allowed_workers"] is not None:
            rules["allowed_workers"] = frozenset(rules["allowed_workers"])
        values["constraints"] = Constraints(**rules)
    return RoutingRequest(**values)


def pack(hashes: Sequence[int]) -> str | list[int]:
    """Numbers as base64 of unsigned 64-bit little-endian ones: half the length of a JSON list.

    A list, if any of them does not fit.
    """
    try:
        packed = struct.pack(f"<{len(hashes)}Q", *hashes)
    except struct.error:
        return list(hashes)
    return b2a_base64(packed, newline=False).decode("ascii")


def unpack(packed: str | list[int]) -> list[int]:
    """The numbers again. Raises: ValueError for a text that holds none."""
    if not isinstance(packed, str):
        return packed
    data = a2b_base64(packed)
    if len(data) % 8:
        raise ValueError(f"{len(data)} bytes are no 64-bit numbers")
    return list(struct.unpack(f"<{len(data) // 8}Q", data))
