"""Entries of a router's log: every input with its time, and what came of it, as plain values.

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
`dynosim.router.log.checkpoint` instead of an empty router.

A decision is `[request_id, worker_id, dp_rank, slot, cost, overlap_blocks, cached_tokens,
queued_ms]`, a refusal `{"id": ..., "status": ..., "reason": ...}`.
"""

from typing import Any

from dynosim.router.decision import Decision, Refusal
from dynosim.router.inputs import (
    Arrive,
    AskBest,
    AskLoads,
    DropStale,
    E,
    End,
    FirstToken,
    Input,
    Join,
    Leave,
    Outcome,
    Release,
    Tokens,
    Unbind,
    WorkerEvents,
)
from dynosim.router.log.plain import (
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

PREDICTS = ("arrive", "release", "best")  # these place requests


def entries_of(given: Input[E], outcome: Outcome) -> list[Entry]:  # noqa: C901
    """What a log says of an input and of what came of it; one entry, but for several events."""
    now_ms = given.now_ms
    match given:
        case WorkerEvents():
            who = given.worker_id, given.dp_rank
            return [["event", now_ms, *who, event_to_plain(event)] for event in given.events]
        case Arrive():
            return [["arrive", now_ms, request_to_plain(given.request), told(outcome)]]
        case FirstToken():
            return [["first", now_ms, given.request_id]]
        case End():
            return [["end", now_ms, given.request_id]]
        case Tokens():
            return [["tokens", now_ms, given.request_id, given.num_tokens]]
        case Release():
            return [["release", now_ms, told(outcome)]]
        case Join():
            return [["join", now_ms, card_to_plain(given.card)]]
        case Leave():
            return [["leave", now_ms, given.worker_id]]
        case DropStale():
            return [["stale", now_ms, outcome]]
        case Unbind():
            return [["unbind", now_ms, given.session_id]]
        case AskBest():
            overrides = None if given.overrides is None else cost_to_plain(given.overrides)
            asked = [list(given.token_ids), given.request_id, given.update_states, overrides]
            return [["best", now_ms, asked, told(outcome)]]
        case AskLoads():
            return [["loads", now_ms, list(given.token_ids), told(outcome)]]


def told(outcome: Outcome) -> Any:
    """What came of an input, as a log says it."""
    if isinstance(outcome, Decision | Refusal):
        return outcome_to_plain(outcome)
    if isinstance(outcome, tuple):
        return list(outcome)
    return [told_part(part) for part in outcome] if isinstance(outcome, list) else outcome


def told_part(part: object) -> Any:
    """One of several things that came of an input."""
    return outcome_to_plain(part) if isinstance(part, Decision | Refusal) else part


def input_of(entry: Entry) -> Input[Any]:  # noqa: C901
    """The input again; its events are what the logged router's index took.

    Raises: ValueError, TypeError, KeyError, IndexError, AttributeError for an entry that makes no
    sense; KeyError for an unknown kind.
    """
    kind, at_ms, *rest = entry
    now_ms = float(at_ms)
    match kind, rest:
        case "event", [worker_id, dp_rank, event]:
            return WorkerEvents(now_ms, worker_id, dp_rank, [event_from_plain(event)])
        case "arrive", [request, _, *_]:
            return Arrive(now_ms, request_from_plain(request))
        case "first", [request_id]:
            return FirstToken(now_ms, request_id)
        case "end", [request_id]:
            return End(now_ms, request_id)
        case "tokens", [request_id, num_tokens]:
            return Tokens(now_ms, request_id, num_tokens)
        case "release", [_, *_]:
            return Release(now_ms)
        case "join", [card]:
            return Join(now_ms, card_from_plain(card))
        case "leave", [worker_id]:
            return Leave(now_ms, worker_id)
        case "stale", [_]:
            return DropStale(now_ms)
        case "unbind", [session_id]:
            return Unbind(now_ms, session_id)
        case "best", [[token_ids, request_id, update_states, overrides], _, *_]:
            cost = None if overrides is None else cost_from_plain(overrides)
            return AskBest(now_ms, token_ids, request_id, update_states, cost)
        case "loads", [token_ids, _]:
            return AskLoads(now_ms, token_ids)
        case _:
            raise ValueError(f"{len(rest)} values do not make one")
