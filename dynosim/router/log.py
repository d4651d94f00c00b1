"""The router's log: every input with its time, and what was decided. Enough to do it all again.

An entry is a list that begins with its kind and time, made of plain values only:

    join   t card                               a worker came
    leave  t worker_id
    event  t worker_id dp_rank event            blocks stored, removed, cleared
    arrive t request outcome                    outcome: decision, null (it waits) or refusal
    first  t request_id                         first token
    tokens t request_id count
    end    t request_id
    unbind t session_id
    release t outcomes                          what stopped waiting: decisions and refusals
    stale  t request_ids

A decision is `[request_id, worker_id, dp_rank, slot, cost, overlap_blocks, cached_tokens,
queued_ms]`, a refusal `{"id": ..., "status": ..., "reason": ...}`.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from dynosim.errors import ConfigError
from dynosim.indexer.base import Cleared, Removed, Stored, Tier
from dynosim.records import KvEvent
from dynosim.router.eligibility import Constraints
from dynosim.router.kv_router import AnyEvent, Decision, KvRouter, Refusal
from dynosim.router.refusals import RequestRefusedError
from dynosim.router.request import RoutingRequest
from dynosim.router.settings import CostSettings
from dynosim.router.workers import WorkerCard

Entry = list[Any]
Sink = Callable[[Entry], None]


class LoggedRouter(KvRouter):
    """A `KvRouter` that tells a sink of all it hears and decides.

    Entries are told after the fact, so that events which a decision brought in come before it.
    `now_ms` of joins, leaves and events is that of the last timed call unless given.
    """

    def __init__(self, sink: Sink, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sink = sink
        self._now_ms = 0.0

    def add_worker(self, card: WorkerCard) -> list[int]:
        """See `KvRouter`."""
        slots = super().add_worker(card)
        self._sink(["join", self._now_ms, card_to_plain(card)])
        return slots

    def remove_worker(self, worker_id: int) -> list[Hashable]:
        """See `KvRouter`."""
        lost = super().remove_worker(worker_id)
        self._sink(["leave", self._now_ms, worker_id])
        return lost

    def apply_events(self, worker_id: int, dp_rank: int, events: Iterable[AnyEvent]) -> None:
        """See `KvRouter`."""
        events = list(events)
        super().apply_events(worker_id, dp_rank, events)
        for event in events:
            self._sink(["event", self._now_ms, worker_id, dp_rank, event_to_plain(event)])

    def submit(self, request: RoutingRequest, now_ms: float) -> Decision | None:
        """See `KvRouter`."""
        self._now_ms = now_ms
        try:
            decision = super().submit(request, now_ms)
        except RequestRefusedError as error:
            refusal = outcome_to_plain(Refusal(request.request_id, error))
            self._sink(["arrive", now_ms, request_to_plain(request), refusal])
            raise
        outcome = None if decision is None else outcome_to_plain(decision)
        self._sink(["arrive", now_ms, request_to_plain(request), outcome])
        return decision

    def release(self, now_ms: float) -> list[Decision | Refusal]:
        """See `KvRouter`."""
        self._now_ms = now_ms
        outcomes = super().release(now_ms)
        self._sink(["release", now_ms, [outcome_to_plain(outcome) for outcome in outcomes]])
        return outcomes

    def first_token(self, request_id: Hashable, now_ms: float) -> None:
        """See `KvRouter`."""
        self._now_ms = now_ms
        super().first_token(request_id, now_ms)
        self._sink(["first", now_ms, request_id])

    def output_tokens(self, request_id: Hashable, num_tokens: int, now_ms: float) -> None:
        """See `KvRouter`."""
        self._now_ms = now_ms
        super().output_tokens(request_id, num_tokens, now_ms)
        self._sink(["tokens", now_ms, request_id, num_tokens])

    def free(self, request_id: Hashable, now_ms: float) -> None:
        """See `KvRouter`."""
        self._now_ms = now_ms
        super().free(request_id, now_ms)
        self._sink(["end", now_ms, request_id])

    def drop_stale(self, now_ms: float) -> list[Hashable]:
        """See `KvRouter`."""
        self._now_ms = now_ms
        stale = self.load.stale(now_ms)
        for request_id in stale:
            super().free(request_id, now_ms)
        self._sink(["stale", now_ms, stale])
        return stale

    def unbind_session(self, session_id: str) -> None:
        """See `KvRouter`."""
        super().unbind_session(session_id)
        self._sink(["unbind", self._now_ms, session_id])


def replay_entry(router: KvRouter, entry: Entry) -> tuple[Any, Any]:
    """Give a router one entry's input; returns (what was decided then, what is decided now).

    Raises: ConfigError for an entry that makes no sense.
    """
    try:
        kind, now_ms, *rest = entry
        handler = _HANDLERS[kind]
    except (ValueError, TypeError, KeyError):
        known = ", ".join(_HANDLERS)
        raise ConfigError(f"not an entry of a router log: {entry!r:.80}; kinds: {known}") from None
    try:
        return handler(router, float(now_ms), *rest)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(f"malformed {kind} entry: {error}") from None


def _join(router: KvRouter, now_ms: float, card: Any) -> tuple[None, None]:
    router.add_worker(card_from_plain(card))
    return None, None


def _leave(router: KvRouter, now_ms: float, worker_id: int) -> tuple[None, None]:
    router.remove_worker(worker_id)
    return None, None


def _event(
    router: KvRouter, now_ms: float, worker_id: int, dp_rank: int, event: Any
) -> tuple[None, None]:
    router.apply_events(worker_id, dp_rank, [event_from_plain(event)])
    return None, None


def _arrive(router: KvRouter, now_ms: float, request: Any, outcome: Any) -> tuple[Any, Any]:
    rebuilt = request_from_plain(request)
    try:
        decision = router.submit(rebuilt, now_ms)
    except RequestRefusedError as error:
        return outcome, outcome_to_plain(Refusal(rebuilt.request_id, error))
    return outcome, None if decision is None else outcome_to_plain(decision)


def _release(router: KvRouter, now_ms: float, outcomes: Any) -> tuple[Any, Any]:
    return outcomes, [outcome_to_plain(outcome) for outcome in router.release(now_ms)]


def _first(router: KvRouter, now_ms: float, request_id: Hashable) -> tuple[None, None]:
    router.first_token(request_id, now_ms)
    return None, None


def _tokens(
    router: KvRouter, now_ms: float, request_id: Hashable, num_tokens: int
) -> tuple[None, None]:
    router.output_tokens(request_id, num_tokens, now_ms)
    return None, None


def _end(router: KvRouter, now_ms: float, request_id: Hashable) -> tuple[None, None]:
    router.free(request_id, now_ms)
    return None, None


def _stale(router: KvRouter, now_ms: float, request_ids: Any) -> tuple[Any, Any]:
    return request_ids, router.drop_stale(now_ms)


def _unbind(router: KvRouter, now_ms: float, session_id: str) -> tuple[None, None]:
    router.unbind_session(session_id)
    return None, None


_HANDLERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "join": _join,
    "leave": _leave,
    "event": _event,
    "arrive": _arrive,
    "release": _release,
    "first": _first,
    "tokens": _tokens,
    "end": _end,
    "stale": _stale,
    "unbind": _unbind,
}

# ---- plain values ------------------------------------------------------------------------------


def outcome_to_plain(outcome: Decision | Refusal) -> Any:
    """A decision or refusal as plain values."""
    if isinstance(outcome, Decision):
        return list(outcome)
    error = outcome.error
    return {"id": outcome.request_id, "status": error.http_status, "reason": str(error)}


def card_to_plain(card: WorkerCard) -> dict[str, Any]:
    """A worker card as plain values."""
    plain = {name: getattr(card, name) for name in card.__slots__}
    return plain | {"taints": sorted(card.taints), "topology": dict(card.topology)}


def card_from_plain(plain: dict[str, Any]) -> WorkerCard:
    """The worker card again."""
    return WorkerCard(**{**plain, "taints": frozenset(plain["taints"])})


def event_to_plain(event: AnyEvent) -> Any:
    """A block event as plain values."""
    if isinstance(event, KvEvent):
        return list(event)
    if isinstance(event, Stored):
        hashes, local = list(event.block_hashes), list(event.local_hashes)
        return {"stored": hashes, "local": local, "parent": event.parent, "tier": int(event.tier)}
    if isinstance(event, Removed):
        return {"removed": list(event.block_hashes), "tier": int(event.tier)}
    return {"cleared": None if event.tier is None else int(event.tier)}


def event_from_plain(plain: Any) -> AnyEvent:
    """The block event again."""
    if isinstance(plain, list):
        return KvEvent(*plain)
    if "stored" in plain:
        return Stored(plain["parent"], plain["stored"], plain["local"], Tier(plain["tier"]))
    if "removed" in plain:
        return Removed(plain["removed"], Tier(plain["tier"]))
    tier = plain["cleared"]
    return Cleared(None if tier is None else Tier(tier))


def request_to_plain(request: RoutingRequest) -> dict[str, Any]:
    """A request as plain values; what has its default is left out."""
    defaults = RoutingRequest._field_defaults
    plain: dict[str, Any] = {}
    for name, value in request._asdict().items():
        if name in defaults and value == defaults[name]:
            continue
        if isinstance(value, CostSettings):
            value = {field: getattr(value, field) for field in value.__slots__}
        elif isinstance(value, Constraints):
            value = {field: getattr(value, field) for field in value.__slots__}
            value["required_taints"] = sorted(value["required_taints"])
            if value["allowed_workers"] is not None:
                value["allowed_workers"] = sorted(value["allowed_workers"])
            value["preferred_taints"] = dict(value["preferred_taints"])
        elif name == "blocks" or name == "keys":
            value = list(value)
        plain[name] = value
    return plain


def request_from_plain(plain: dict[str, Any]) -> RoutingRequest:
    """The request again."""
    values = dict(plain)
    if "overrides" in values:
        values["overrides"] = CostSettings(**values["overrides"])
    if "constraints" in values:
        rules = dict(values["constraints"])
        rules["required_taints"] = frozenset(rules["required_taints"])
        if rules["allowed_workers"] is not None:
            rules["allowed_workers"] = frozenset(rules["allowed_workers"])
        values["constraints"] = Constraints(**rules)
    return RoutingRequest(**values)
