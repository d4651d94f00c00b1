"""When requests arrive: by timestamp, when others have finished, or in a closed loop.

`LoadDriver` is told what finished and says what arrives; it holds no clock.
"""

from array import array
from heapq import heappop, heappush
from typing import Final

import numpy as np

from dynosim.records import NO_REQUEST, IntArray, Trace, packed
from dynosim.workload.trees import WaitingRows

NEVER: Final = float("inf")


class Arrivals:
    """When requests arrive: `next_ms` is the time of the next known one.

    `reacts` tells whether ends of requests can cause arrivals.
    """

    next_ms: float
    reacts: bool
    _is_held: bool

    def pop(self) -> int:
        """The index of the request that arrives at `next_ms`."""
        raise NotImplementedError

    def on_end(self, index: int, now_ms: float) -> None:
        """Take note that a request ended (finished or was rejected) at `now_ms`."""
        raise NotImplementedError

    def on_give_up(self, index: int, now_ms: float) -> list[int]:
        """Take note that a client gave up a request; returns those that will not be sent."""
        raise NotImplementedError

    def hold(self) -> None:
        """Let nothing arrive before `release`."""
        self._is_held = True
        self._look_ahead()

    def release(self) -> None:
        """Let what is due arrive again."""
        self._is_held = False
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Set `next_ms` to when the next known request arrives; while held, none does."""
        raise NotImplementedError


class LoadDriver(Arrivals):
    """Arrivals of a trace in time order.

    With `concurrency`, timestamps are ignored: that many sessions (single requests, where the trace
    has no turns; whole trees, where requests wait for several) are in progress at once, and the
    next one starts the moment one ends. A turn always waits for the one before it to finish, plus
    its think time. `rows` are the requests to come, where that is not all of them and none waits
    for another.
    """

    def __init__(
        self, trace: Trace, concurrency: int | None = None, *, rows: IntArray | None = None
    ) -> None:
        self._caused: list[tuple[float, int]] = []  # heap: arrivals that an end brought about
        self._next_turn: dict[int, int] = {}
        self._delay_ms: list[float] = []
        self._waiting_rows: WaitingRows | None = None
        first_turns = np.arange(len(trace)) if rows is None else rows
        if trace.dependencies is not None:
            self._waiting_rows = WaitingRows(trace, trace.dependencies)
            first_turns = self._waiting_rows.starts()
        elif trace.previous_turn is not None:
            previous = trace.previous_turn.tolist()
            self._next_turn = {p: i for i, p in enumerate(previous) if p != NO_REQUEST}
            first_turns = np.flatnonzero(trace.previous_turn == NO_REQUEST)
            zeros = [0.0] * len(trace)
            self._delay_ms = zeros if trace.delay_ms is None else trace.delay_ms.tolist()
        waiting = first_turns[:0]
        if concurrency is not None:
            if self._waiting_rows is not None:
                first_turns = self._waiting_rows.first_of_trees()
            waiting, now = first_turns[concurrency:], first_turns[:concurrency]
            first_turns = first_turns[:0]
            for index in now.tolist():
                self._start_session(index, 0.0)
        # What timestamps alone decide, earliest last.
        self._timed = packed(first_turns[::-1])
        self._timed_ms = array("d", trace.arrival_ms[first_turns[::-1]].tobytes())
        self._waiting_sessions = packed(waiting[::-1])  # closed loop: not started, next last
        self.reacts = (
            concurrency is not None or bool(self._next_turn) or self._waiting_rows is not None
        )
        self.next_ms = NEVER
        self._is_held = False
        self._look_ahead()

    def pop(self) -> int:
        """See `Arrivals`; at equal times timed ones come first."""
        if self._waiting_rows is not None:
            return self._pop_of_tree(self._waiting_rows)
        timed_ms = self._timed_ms
        if timed_ms and timed_ms[-1] == self.next_ms:
            index = self._timed.pop()
            timed_ms.pop()
            if timed_ms and not self._caused:
                self.next_ms = timed_ms[-1]
                return index
        else:
            index = heappop(self._caused)[1]
        self._look_ahead()
        return index

    def on_end(self, index: int, now_ms: float) -> None:
        """See `Arrivals`."""
        if self._waiting_rows is not None:
            for due in self._waiting_rows.on_end(index, now_ms):
                heappush(self._caused, due)
            self._start_next(self._waiting_rows, index, now_ms)
            self._look_ahead()
            return
        follower = self._next_turn.get(index)
        if follower is not None:
            heappush(self._caused, (now_ms + self._delay_ms[follower], follower))
        elif self._waiting_sessions:
            heappush(self._caused, (now_ms, self._waiting_sessions.pop()))
        self._look_ahead()

    def on_give_up(self, index: int, now_ms: float) -> list[int]:
        """Take note that a client gave up a request at `now_ms`.

        Returns the later turns of its session, and of all that would wait for it, which it will not
        send. In a closed loop the next session starts.
        """
        if self._waiting_rows is not None:
            unsent = self._waiting_rows.on_give_up(index)
            self._start_next(self._waiting_rows, index, now_ms)
            self._look_ahead()
            return unsent
        unsent = []
        follower = self._next_turn.get(index)
        while follower is not None:
            unsent.append(follower)
            follower = self._next_turn.get(follower)
        if self._waiting_sessions:
            heappush(self._caused, (now_ms, self._waiting_sessions.pop()))
        self._look_ahead()
        return unsent

    def _pop_of_tree(self, waiting: WaitingRows) -> int:
        """`pop` where a start may cause arrivals, too."""
        now_ms = self.next_ms
        if self._timed_ms and self._timed_ms[-1] == now_ms:
            index = self._timed.pop()
            self._timed_ms.pop()
        else:
            index = heappop(self._caused)[1]
        for due in waiting.on_start(index, now_ms):
            heappush(self._caused, due)
        self._look_ahead()
        return index

    def _start_session(self, index: int, now_ms: float) -> None:
        """Let a session's first request come, and the others of its tree that wait for none."""
        if self._waiting_rows is None:
            heappush(self._caused, (now_ms, index))
            return
        for due in self._waiting_rows.starts_of_tree(index, now_ms):
            heappush(self._caused, due)

    def _start_next(self, waiting: WaitingRows, index: int, now_ms: float) -> None:
        """Closed loop: start a session if the tree of a request that ended is over with it."""
        if waiting.is_over(index) and self._waiting_sessions:
            self._start_session(self._waiting_sessions.pop(), now_ms)

    def _look_ahead(self) -> None:
        if self._is_held:
            self.next_ms = NEVER
            return
        timed_ms = self._timed_ms[-1] if self._timed_ms else NEVER
        caused_ms = self._caused[0][0] if self._caused else NEVER
        self.next_ms = timed_ms if timed_ms < caused_ms else caused_ms
