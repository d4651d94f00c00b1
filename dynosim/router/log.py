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
    best   t arguments outcome                  of `best_worker`; outcome: its answer or refusal
    loads  t token_ids outcome                  of `get_potential_loads`, likewise
    broken t reason                             the router failed: what follows cannot be derived

Where prefill load decays, `arrive`, `release` and `best` end with a list of the prefill times that
were predicted for what was placed. A log may begin with the entries of
`dynosim.router.checkpoint` instead of an empty router.

A decision is `[request_id, worker_id, dp_rank, slot, cost, overlap_blocks, cached_tokens,
queued_ms]`, a refusal `{"id": ..., "status": ..., "reason": ...}`.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from dynosim.errors import ConfigError
from dynosim.router.checkpoint import RESTORERS
from dynosim.router.kv_router import AnyEvent, Decision, KvRouter, Refusal
from dynosim.router.plain import (
    Entry,
    card_from_plain,
    card_to_plain,
    cost_from_plain,
    cost_to_plain,
    event_from_plain,
    event_to_plain,
    outcome_to_plain,
    request_from_plain,
    request_to_plain,
)
from dynosim.router.prefill_load import NotedEstimator, PrefillEstimator, RetoldEstimator
from dynosim.router.refusals import RequestRefusedError, UnknownWorkerError
from dynosim.router.request import RoutingRequest
from dynosim.router.settings import CostSettings
from dynosim.router.workers import WorkerCard

Sink = Callable[[Entry], None]
P = ParamSpec("P")
T = TypeVar("T")


def tells_failure(
    method: Callable[Concatenate["LoggedRouter", P], T],
) -> Callable[Concatenate["LoggedRouter", P], T]:
    """Let the log know if an input ends in an error that may have left half of its traces.

    Refusals and news of unknown workers leave none. Others come from placement policies.
    """

    @wraps(method)
    def told(router: "LoggedRouter", /, *args: P.args, **options: P.kwargs) -> T:
        try:
            return method(router, *args, **options)
        except (RequestRefusedError, UnknownWorkerError):
            raise
        except Exception as error:
            router.tell(["broken", router.now_ms, f"{type(error).__name__}: {error}"])
            raise

    return told


class LoggedRouter(KvRouter):
    """A `KvRouter` that tells a sink of all it hears and decides.

    Entries are told after the fact, so that events which a decision brought in come before it.
    `now_ms` of joins, leaves and events is that of the last timed call unless given.
    """

    def __init__(
        self, sink: Sink, *args: Any, estimator: PrefillEstimator | None = None, **kwargs: Any
    ) -> None:
        self._noted = None if estimator is None else NotedEstimator(estimator)
        super().__init__(*args, estimator=self._noted, **kwargs)
        self.tell = sink
        self.now_ms = 0.0

    def add_worker(self, card: WorkerCard) -> list[int]:
        """See `KvRouter`."""
        slots = super().add_worker(card)
        self.tell(["join", self.now_ms, card_to_plain(card)])
        return slots

    def remove_worker(self, worker_id: int) -> list[Hashable]:
        """See `KvRouter`."""
        lost = super().remove_worker(worker_id)
        self.tell(["leave", self.now_ms, worker_id])
        return lost

    @tells_failure
    def apply_events(self, worker_id: int, dp_rank: int, events: Iterable[AnyEvent]) -> None:
        """See `KvRouter`."""
        events = list(events)
        super().apply_events(worker_id, dp_rank, events)
        for event in events:
            self.tell(["event", self.now_ms, worker_id, dp_rank, event_to_plain(event)])

    @tells_failure
    def submit(self, request: RoutingRequest, now_ms: float) -> Decision | None:
        """See `KvRouter`."""
        self.now_ms = now_ms
        try:
            decision = super().submit(request, now_ms)
        except RequestRefusedError as error:
            refusal = outcome_to_plain(Refusal(request.request_id, error))
            self._tell_placing(["arrive", now_ms, request_to_plain(request), refusal])
            raise
        outcome = None if decision is None else outcome_to_plain(decision)
        self._tell_placing(["arrive", now_ms, request_to_plain(request), outcome])
        return decision

    @tells_failure
    def release(self, now_ms: float) -> list[Decision | Refusal]:
        """See `KvRouter`."""
        self.now_ms = now_ms
        outcomes = super().release(now_ms)
        told = [outcome_to_plain(outcome) for outcome in outcomes]
        self._tell_placing(["release", now_ms, told])
        return outcomes

    @tells_failure
    def first_token(self, request_id: Hashable, now_ms: float) -> None:
        """See `KvRouter`."""
        self.now_ms = now_ms
        super().first_token(request_id, now_ms)
        self.tell(["first", now_ms, request_id])

    @tells_failure
    def output_tokens(self, request_id: Hashable, num_tokens: int, now_ms: float) -> None:
        """See `KvRouter`."""
        self.now_ms = now_ms
        super().output_tokens(request_id, num_tokens, now_ms)
        self.tell(["tokens", now_ms, request_id, num_tokens])

    @tells_failure
    def free(self, request_id: Hashable, now_ms: float) -> None:
        """See `KvRouter`."""
        self.now_ms = now_ms
        super().free(request_id, now_ms)
        self.tell(["end", now_ms, request_id])

    @tells_failure
    def drop_stale(self, now_ms: float) -> list[Hashable]:
        """See `KvRouter`."""
        self.now_ms = now_ms
        stale = self.load.stale(now_ms)
        for request_id in stale:
            super().free(request_id, now_ms)
        self.tell(["stale", now_ms, stale])
        return stale

    def unbind_session(self, session_id: str) -> None:
        """See `KvRouter`."""
        super().unbind_session(session_id)
        self.tell(["unbind", self.now_ms, session_id])

    @tells_failure
    def best_worker(
        self,
        token_ids: Sequence[int],
        request_id: Hashable = None,
        *,
        update_states: bool = False,
        router_config_override: CostSettings | None = None,
        now_ms: float = 0.0,
    ) -> tuple[int, int, int]:
        """See `KvRouter`."""
        self.now_ms = now_ms
        overrides = (
            None if router_config_override is None else cost_to_plain(router_config_override)
        )
        asked = [list(token_ids), request_id, update_states, overrides]
        try:
            best = super().best_worker(
                token_ids,
                request_id,
                update_states=update_states,
                router_config_override=router_config_override,
                now_ms=now_ms,
            )
        except RequestRefusedError as error:
            refusal = outcome_to_plain(Refusal(request_id, error))
            self._tell_placing(["best", now_ms, asked, refusal])
            raise
        self._tell_placing(["best", now_ms, asked, list(best)])
        return best

    @tells_failure
    def get_potential_loads(
        self, token_ids: Sequence[int], now_ms: float = 0.0
    ) -> list[dict[str, int]]:
        """See `KvRouter`."""
        self.now_ms = now_ms
        try:
            loads = super().get_potential_loads(token_ids, now_ms)
        except RequestRefusedError as error:
            refusal = outcome_to_plain(Refusal(None, error))
            self.tell(["loads", now_ms, list(token_ids), refusal])
            raise
        self.tell(["loads", now_ms, list(token_ids), loads])
        return loads

    def _tell_placing(self, entry: Entry) -> None:
        """Tell what was placed, and how long its prefills were taken to last."""
        durations_ms = None if self._noted is None else self._noted.take()
        self.tell([*entry, durations_ms] if durations_ms else entry)


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


def _arrive(
    router: KvRouter, now_ms: float, request: Any, outcome: Any, durations_ms: Any = ()
) -> tuple[Any, Any]:
    rebuilt = request_from_plain(request)
    _retell(router, durations_ms)
    try:
        decision = router.submit(rebuilt, now_ms)
    except RequestRefusedError as error:
        return outcome, outcome_to_plain(Refusal(rebuilt.request_id, error))
    return outcome, None if decision is None else outcome_to_plain(decision)


def _release(
    router: KvRouter, now_ms: float, outcomes: Any, durations_ms: Any = ()
) -> tuple[Any, Any]:
    _retell(router, durations_ms)
    return outcomes, [outcome_to_plain(outcome) for outcome in router.release(now_ms)]


def _best(
    router: KvRouter, now_ms: float, asked: Any, outcome: Any, durations_ms: Any = ()
) -> tuple[Any, Any]:
    token_ids, request_id, update_states, overrides = asked
    _retell(router, durations_ms)
    try:
        best = router.best_worker(
            token_ids,
            request_id,
            update_states=update_states,
            router_config_override=None if overrides is None else cost_from_plain(overrides),
            now_ms=now_ms,
        )
    except RequestRefusedError as error:
        return outcome, outcome_to_plain(Refusal(request_id, error))
    return outcome, list(best)


def _loads(router: KvRouter, now_ms: float, token_ids: Any, outcome: Any) -> tuple[Any, Any]:
    try:
        return outcome, router.get_potential_loads(token_ids, now_ms)
    except RequestRefusedError as error:
        return outcome, outcome_to_plain(Refusal(None, error))


def _retell(router: KvRouter, durations_ms: Any) -> None:
    """Let the router's estimator predict what was predicted then."""
    if isinstance(router.estimator, RetoldEstimator):
        router.estimator.expect(durations_ms)


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


def _broken(router: KvRouter, now_ms: float, reason: str) -> tuple[str, str]:
    return reason, reason


def _restoring(restore: Callable[..., None]) -> Callable[..., tuple[None, None]]:
    def handler(router: KvRouter, now_ms: float, *rest: Any) -> tuple[None, None]:
        restore(router, *rest)
        return None, None

    return handler


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
    "best": _best,
    "loads": _loads,
    "broken": _broken,
    **{kind: _restoring(restore) for kind, restore in RESTORERS.items()},
}
