"""Deriving again what a log says: its entries' inputs, given to another router."""

from typing import Any

from dynosim.errors import ConfigError
from dynosim.router.kv_router import AnyRouter
from dynosim.router.log.checkpoint import RESTORERS
from dynosim.router.log.entries import PREDICTS, input_of, told
from dynosim.router.log.estimates import ReplayEstimator
from dynosim.router.log.plain import Entry

ANSWER = {"arrive": 3, "release": 2, "stale": 2, "best": 3, "loads": 3}
"""Where entries say what came of their input, if that is to be derived again."""
KINDS = ("join", "leave", "event", "first", "tokens", "end", "unbind", "broken", *ANSWER)


def replay_entry(router: AnyRouter, entry: Entry) -> tuple[Any, Any]:
    """Give a router one entry's input; returns (what was decided then, what is decided now).

    Raises: ConfigError for an entry that makes no sense.
    """
    try:
        kind, _now_ms, *rest = entry
        is_known = kind in KINDS or kind in RESTORERS
    except (ValueError, TypeError):
        is_known = False
    if not is_known:
        known = ", ".join([*KINDS, *RESTORERS])
        raise ConfigError(f"not an entry of a router log: {entry!r:.80}; kinds: {known}")
    try:
        if kind in RESTORERS:
            RESTORERS[kind](router, *rest)
            return None, None
        if kind == "broken":
            (reason,) = rest
            return reason, reason
        return _replay_input(router, entry)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(f"malformed {kind} entry: {error}") from None


def _replay_input(router: AnyRouter, entry: Entry) -> tuple[Any, Any]:
    given, at = input_of(entry), ANSWER.get(entry[0])
    if isinstance(router.estimator, ReplayEstimator) and entry[0] in PREDICTS and at is not None:
        router.estimator.expect(entry[at + 1] if len(entry) > at + 1 else ())
    outcome = router.take(given)
    return (None, None) if at is None else (entry[at], told(outcome))
