"""How far attainment may be off because other sessions might have come: a bootstrap by sessions.

Whole sessions are drawn, since the turns of one share its fate. The draws depend on the number of
sessions alone, so the same sessions are drawn at every load and for every layout: differences are
those of pairs.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dynosim.records import NO_REQUEST, FloatArray, IntArray, Trace
from dynosim.workload.trees import tree_numbers

NUM_DRAWS = 200
_SEED = 20_260_101


def sessions_of(trace: Trace) -> IntArray:
    """By request the number of its session: all turns that follow from the same first one. (n,)

    Where requests wait for several others, all that hang together are one session. Requests that
    name a session but do not wait for one another belong together, too.
    """
    if trace.dependencies is not None:
        return tree_numbers(trace)
    if trace.previous_turn is not None:
        session = np.arange(len(trace))
        for request, previous in enumerate(trace.previous_turn.tolist()):
            if previous != NO_REQUEST:
                session[request] = session[previous]
        return np.unique(session, return_inverse=True)[1].astype(np.int64)
    if trace.session_ids is None:
        return np.arange(len(trace))
    numbers: dict[str, int] = {}
    names = [name or f"\0{row}" for row, name in enumerate(trace.session_ids)]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def drawn_attainments(
    session: IntArray, good: NDArray[np.bool_], judged: NDArray[np.bool_]
) -> FloatArray:
    """Attainment of the judged requests in each of 200 draws of as many sessions; NaN: of none."""
    num_sessions = int(session.max(initial=-1)) + 1
    num_judged = np.bincount(session[judged], minlength=num_sessions)
    num_good = np.bincount(session[judged & good], minlength=num_sessions)
    draws = session_draws(num_sessions)
    with np.errstate(invalid="ignore"):
        found: FloatArray = (draws @ num_good) / (draws @ num_judged)
    return found


@lru_cache(maxsize=2)
def session_draws(num_sessions: int, *, stream: int = 0) -> FloatArray:
    """How often each session comes up in each draw: (200, sessions). Streams are independent."""
    rng = np.random.Generator(np.random.PCG64(_SEED + stream))
    drawn = rng.integers(0, num_sessions, (NUM_DRAWS, num_sessions))
    rows = np.arange(NUM_DRAWS)[:, None] * num_sessions
    counts = np.bincount((drawn + rows).ravel(), minlength=NUM_DRAWS * num_sessions)
    return counts.reshape(NUM_DRAWS, num_sessions).astype(np.float64)
